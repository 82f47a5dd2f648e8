"""Detect Git LFS and git-annex pointer files, which stand for content that was not fetched."""

from __future__ import annotations

import os
import stat
from pathlib import Path

__all__ = ["pointer", "pointer_at"]

LFS = "a Git LFS pointer; 'git lfs pull' gets the file itself"
ANNEX = "a git-annex pointer; 'git annex get' gets the file itself"

STARTS = ((b"version https://git-lfs", LFS), (b"/annex/objects/", ANNEX))
"""How a pointer begins."""

LARGEST = 1024
"""Bytes of a pointer: of Git LFS at most; those of git-annex are a path."""


def pointer(data: bytes) -> str:
    """If a file's content is a pointer, return its kind and how to fetch the file; else ""."""
    return next((text for start, text in STARTS if data.startswith(start)), "")


def pointer_at(path: str | os.PathLike[str]) -> str:
    """Return what :func:`pointer` does of a file, of which only a small one is read.

    A link into git-annex's store whose content is not there is a pointer, too.
    """
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode) or found.st_size > LARGEST:
            return ""
        with open(path, "rb") as file:
            return pointer(file.read(LARGEST))
    except FileNotFoundError:
        try:
            return ANNEX if "/annex/objects/" in Path(os.readlink(path)).as_posix() else ""
        except OSError:
            return ""
    except (OSError, ValueError):
        return ""
