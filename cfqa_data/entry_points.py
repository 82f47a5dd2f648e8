"""The entry points of installed packages, read once while nothing is installed."""

from __future__ import annotations

import os
import sys
from functools import lru_cache
from importlib import metadata

__all__ = ["entry_points"]


def entry_points(group: str) -> metadata.EntryPoints:
    """Return the entry points of a group.

    The installed packages are read again only after a change of `sys.path` or of a folder in it.
    """
    return _read(group, tuple((path, _changed(path)) for path in sys.path))


def _changed(path: str) -> int:
    try:
        return os.stat(path or os.curdir).st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=16)
def _read(group: str, _: tuple[tuple[str, int], ...]) -> metadata.EntryPoints:
    return metadata.entry_points(group=group)
