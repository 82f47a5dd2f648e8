"""Entry points of installed packages."""

from __future__ import annotations

import os
import sys
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

__all__ = ["entry_points_of"]


def entry_points_of(group: str) -> dict[str, EntryPoint]:
    """Return the entry points of a group by name.

    Reading them opens a file of every installed package. They are read again once a folder of the
    import path has changed, as it does when a package is installed.
    """
    return dict(_read(group, tuple(map(_state, sys.path))))


@lru_cache(maxsize=32)
def _read(group: str, _: tuple[Any, ...]) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=group)}


def _state(path: str) -> tuple[Any, ...]:
    """Return what tells a folder of the import path from others and from itself earlier."""
    try:
        found = os.stat(path or os.curdir)
    except (OSError, ValueError, TypeError):
        return (str(path),)
    return str(path), found.st_dev, found.st_ino, found.st_mtime_ns
