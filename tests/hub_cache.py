"""Move a dataset folder into a cache of `huggingface_hub`, with the library's own functions."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import pytest

__all__ = ["COMMIT", "move_into_cache"]

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def move_into_cache(
    folder: Path, cache: Path, repo: str = "org/cfqa", *, local: Iterable[str] = ()
) -> Path:
    """Move a folder's files into a cache, and return the snapshot with links to them.

    Args:
        folder: A dataset folder, which is emptied.
        cache: Folder of the cache.
        repo: Repo id of the files, "org/name".
        local: Files that stay in the blobs of the repo, like files that are not in Xet. All others
            are moved to the store that all repos share.
    """
    shared = pytest.importorskip(
        "huggingface_hub.utils._shared_blobs", reason="huggingface_hub had no shared store before 2"
    )
    home = cache / f"datasets--{repo.replace('/', '--')}"
    snapshot, blobs = home / "snapshots" / COMMIT, home / "blobs"
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name, digest = path.relative_to(folder), hashlib.sha256(path.read_bytes()).hexdigest()
        blob, pointer = blobs / digest, snapshot / name
        for target in (blob, pointer):
            target.parent.mkdir(parents=True, exist_ok=True)
        size = path.stat().st_size
        path.rename(blob)
        if name.as_posix() not in local:
            assert shared.publish_blob_to_shared_store(
                blob_path=str(blob), xet_hash=digest, cache_dir=cache, expected_size=size
            )
            assert blob.is_symlink()
        pointer.symlink_to(os.path.relpath(blob, pointer.parent))
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(COMMIT)
    return snapshot
