"""A per-user cache of where files of earlier builds are, by SHA-256.

A dataset names them by name and hash, so that it says nothing of its maker's disk; a folder that
stays on the machine that built it finds them here. It is a cache and may be deleted.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from cfqa_data.format.storage import write_text

__all__ = ["remember", "remembered"]


def _place(sha256: str) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "cfqa-data" / "files" / sha256


def remember(sha256: str, path: Path) -> None:
    """Remember where a file or folder is; failures are ignored."""
    with suppress(OSError, RuntimeError):
        write_text(_place(sha256), str(path.absolute()))


def remembered(sha256: str) -> Path | None:
    """Return the remembered path of a file or folder, which may have changed since."""
    if re.fullmatch("[0-9a-f]{64}", sha256):  # an untrusted manifest may contain any text
        with suppress(OSError, RuntimeError, ValueError):
            return Path(_place(sha256).read_text(encoding="utf-8"))
    return None
