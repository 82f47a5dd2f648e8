"""A dataset folder against its manifest: whether every file is there, byte for byte."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfqa_data.errors import FormatError
from cfqa_data.layout import Layout
from cfqa_data.manifest import Manifest, hash_file, read_manifest
from cfqa_data.progress import Progress, Silent

__all__ = ["Fault", "Verified", "verify"]


@dataclass(frozen=True)
class Fault:
    """A file that is not what the manifest says.

    Attributes:
        path: relative to the folder.
        what: what is wrong with it, as in "missing".
    """

    path: str
    what: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


@dataclass(frozen=True)
class Verified:
    """What a comparison of a folder with its manifest found.

    Attributes:
        root: the folder.
        manifest: its manifest.
        size: bytes of the files that the manifest lists.
        faults: what is wrong, in the order of the manifest's paths.
        unlisted: files in the folder that the manifest does not know; no part of the dataset.
    """

    root: Path
    manifest: Manifest
    size: int
    faults: tuple[Fault, ...]
    unlisted: tuple[str, ...]

    def require(self) -> None:
        """See that nothing is wrong.

        Raises:
            FormatError: something is; names the first file and says how many there are.
        """
        if self.faults:
            more = f" (and {len(self.faults) - 1} more)" if len(self.faults) > 1 else ""
            raise FormatError(
                f"{self.root / self.faults[0].path}: {self.faults[0].what}{more}; "
                "build or fetch the dataset again"
            )


def verify(
    root: str | Path, *, workers: int | None = None, progress: Progress | None = None
) -> Verified:
    """Compare size and SHA-256 of every file in a dataset folder with the manifest's.

    Args:
        root: the folder.
        workers: threads that hash, which runs in parallel; by default one per core, up to 8.
        progress: told of every file.

    Raises:
        FormatError: it is not a dataset folder, or its manifest is not valid.
    """
    layout, progress = Layout(Path(root)), progress or Silent()
    manifest = read_manifest(layout.root)
    names = sorted(manifest.files)
    faults = []
    progress.start("verify", len(names), "files")
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        found = pool.map(lambda name: _fault(layout.root / name, manifest.files[name]), names)
        for name, what in zip(names, found, strict=True):
            if what:
                faults.append(Fault(name, what))
            progress.advance()
    progress.finish()
    return Verified(
        root=layout.root,
        manifest=manifest,
        size=sum(entry["size"] for entry in manifest.files.values()),
        faults=tuple(faults),
        unlisted=tuple(_unlisted(layout, manifest)),
    )


def _fault(path: Path, expected: Mapping[str, Any]) -> str:
    """Return what is wrong with a file; nothing if it is as expected."""
    try:
        if not path.is_file():
            return "is not a file" if path.exists() else "missing"
        size = path.stat().st_size
        if size != expected["size"]:
            return f"has {size} bytes, the manifest says {expected['size']}"
        if hash_file(path) != expected["sha256"]:
            return "has other bytes than the manifest's SHA-256 says"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    return ""


def _unlisted(layout: Layout, manifest: Manifest) -> list[str]:
    names = []
    for folder, _, files in os.walk(layout.root):
        for file in files:
            name = layout.relative(Path(folder) / file)
            if name not in manifest.files and name != layout.manifest.name:
                names.append(name)
    return sorted(names)
