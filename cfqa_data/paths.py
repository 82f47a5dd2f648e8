"""Make paths given by the user absolute; what cannot be a path is reported in one line.

Every path that is passed to this package goes through :func:`absolute_path` (or :func:`real_path`,
which also resolves links) at once, so that a later change of the working directory has no effect.
"""

from __future__ import annotations

import os
from pathlib import Path

from cfqa_data.errors import CfqaError

__all__ = ["absolute_path", "absolute_program", "exists", "expanded", "is_file", "real_path"]


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
        CfqaError: There is no user of that name on this machine.
    """
    text = os.fspath(path)
    home = os.path.expanduser(text)
    if home == text and text.startswith("~"):
        name = Path(text).parts[0]
        raise CfqaError(
            f"{text}: {name} is not a user's home; for a folder of this name write ./{text}"
        )
    return Path(home)


def absolute_path(path: str | Path, base: str | Path = "") -> Path:
    """Return a path that means the same wherever the process goes; links and ``..`` stay.

    Args:
        path: As the user gave it: ``~`` is the home folder.
        base: Folder that a relative path starts from; the working directory if it is empty.

    Raises:
        CfqaError: The working directory is gone, or see :func:`expanded`.
    """
    try:
        return (Path(base) / expanded(path)).absolute()
    except FileNotFoundError:
        raise CfqaError(
            f"{path}: the working directory no longer exists; give an absolute path"
        ) from None


def absolute_program(given: str | Path) -> str | Path:
    """Return the absolute path of a program; a bare name is of one on PATH, and stays."""
    return absolute_path(given) if os.path.dirname(given) else given


def real_path(path: str | Path) -> Path:
    """Return an absolute path without links, ``..`` and ``~``, whether or not it exists.

    Raises:
        CfqaError: Links go in a circle, a part is too long, or see :func:`absolute_path`.
    """
    try:
        return absolute_path(path).resolve()
    except (RuntimeError, ValueError, OSError) as error:  # which, depends on Python's version
        why = error.strerror if isinstance(error, OSError) else error
        raise CfqaError(f"{path}: cannot be resolved: {why}") from None
