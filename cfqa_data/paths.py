"""Make the paths that users pass absolute, and report invalid ones in one line.

Public functions pass every path through :func:`absolute_path` (or :func:`real_path`, which also
resolves links) at once, so that a later change of the working directory has no effect.
"""

from __future__ import annotations

import os
from pathlib import Path

from cfqa_data.errors import CfqaError

__all__ = ["absolute_path", "absolute_program", "expanded", "real_path"]


def expanded(path: str | Path) -> Path:
    """Expand ``~`` and ``~user`` in a path.

    Raises:
        CfqaError: If the user does not exist.
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
    """Return an absolute path, with ``~`` expanded; links and ``..`` are not resolved.

    Args:
        path: Path from the user.
        base: Folder of a relative path; the working directory if empty.

    Raises:
        CfqaError: If the working directory no longer exists, or the user of ``~user`` does not.
    """
    try:
        return (Path(base) / expanded(path)).absolute()
    except FileNotFoundError:
        raise CfqaError(
            f"{path}: the working directory no longer exists; give an absolute path"
        ) from None


def absolute_program(program: str | Path) -> str | Path:
    """Return the absolute path of a program; a bare name, to find on PATH, is not changed."""
    return absolute_path(program) if os.path.dirname(program) else program


def real_path(path: str | Path) -> Path:
    """Return an absolute path with links, ``..`` and ``~`` resolved, whether or not it exists.

    Raises:
        CfqaError: If links form a loop, a name is too long, or the path cannot be made absolute.
    """
    try:
        return absolute_path(path).resolve()
    except (RuntimeError, ValueError, OSError) as error:  # the type depends on Python's version
        why = error.strerror if isinstance(error, OSError) else error
        raise CfqaError(f"{path}: cannot be resolved: {why}") from None
