"""Entry points of installed packages, cached until a package may have been installed."""

from __future__ import annotations

import os
import sys
from functools import lru_cache
from importlib import metadata

__all__ = ["entry_points"]


def entry_points(group: str) -> metadata.EntryPoints:
    """Return the entry points of a group.

    The result is cached until `sys.path`, or a folder in it, changes.
    """
    return _read(group, tuple((path, _modified(path)) for path in sys.path))


def _modified(path: str) -> int:
    try:
        return os.stat(path or os.curdir).st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=16)
def _read(group: str, _: tuple[tuple[str, int], ...]) -> metadata.EntryPoints:
    return metadata.entry_points(group=group)
