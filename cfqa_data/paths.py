"""Paths as people write them, made absolute; what no path can be is told of in one line."""

from __future__ import annotations

from pathlib import Path

from cfqa_data.errors import CfqaError

__all__ = ["exists", "expanded", "is_file", "real_path"]


def is_file(path: Path) -> bool:
    """Return whether there is such a file; of a name that no file can have, there is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def exists(path: Path) -> bool:
    """Return whether there is such a file or folder; see :func:`is_file`."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def expanded(path: str | Path) -> Path:
    """Return a path with the home folder in place of ``~`` or ``~user``.

    Raises:
        CfqaError: nobody of that name has a home on this machine.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        name = Path(path).parts[0]
        raise CfqaError(
            f"{path}: {name} is nobody's home; if it is a folder, write ./{path}"
        ) from None


def real_path(path: str | Path) -> Path:
    """Return an absolute path without links, ``..`` and ``~``, whether or not it exists.

    Raises:
        CfqaError: links go in a circle, a part is too long, or see :func:`expanded`.
    """
    try:
        return expanded(path).resolve()
    except (RuntimeError, ValueError, OSError) as error:  # which, depends on Python's version
        why = error.strerror if isinstance(error, OSError) else error
        raise CfqaError(f"{path}: leads to no place: {why}") from None
