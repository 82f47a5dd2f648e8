"""Verify a dataset folder against its manifest: missing, changed and unlisted files.

Files that tools leave in a folder (such as `.DS_Store`, the Hub's `.gitattributes` and `.cache`, or
the working files of a build or repair) are reported but are not damage, since no reader uses them.
Any other unlisted file is damage, since it could be mistaken for a part of the dataset.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from cfqa_data.access.files import MANIFEST, LocalFiles
from cfqa_data.access.weights import OWN, own_weights
from cfqa_data.console.progress import Progress, Silent
from cfqa_data.errors import FormatError
from cfqa_data.format.layout import is_tool_path
from cfqa_data.format.limits import open_regular, pointer_at
from cfqa_data.format.manifest import Manifest

__all__ = ["EXTRA", "Fault", "Verified", "verify"]

EXTRA = "is not in the manifest"


@dataclass(frozen=True)
class Fault:
    """A fault of a file.

    Attributes:
        path: Path relative to the folder.
        what: Description of the fault, such as "missing".
    """

    path: str
    what: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


@dataclass(frozen=True)
class Verified:
    """Result of comparing a folder with its manifest.

    Attributes:
        files: Files of the folder.
        manifest: Manifest of the folder.
        size: Total size in bytes of the files in the manifest.
        faults: Faults of the files in the manifest, sorted by path.
        unlisted: Files in the folder that are not in the manifest.
    """

    files: LocalFiles
    manifest: Manifest
    size: int
    faults: tuple[Fault, ...]
    unlisted: tuple[str, ...]

    @cached_property
    def foreign(self) -> tuple[str, ...]:
        """Unlisted files that are not damage: files of tools, and weights for the decoders."""
        return tuple(name for name in self.unlisted if is_tool_path(name) or self._is_weights(name))

    def _is_weights(self, name: str) -> bool:
        """Return whether a file is in the folder for weights, or has weights of the manifest."""
        real = Path(os.path.realpath(self.files.root / name))
        return name.startswith(f"{OWN}/") or real in self._weights

    @cached_property
    def _weights(self) -> set[Path]:
        return own_weights(self.files, set(self.manifest.weights.values()))

    @cached_property
    def damage(self) -> tuple[Fault, ...]:
        """All faults: those of the files in the manifest, and unlisted files."""
        foreign = set(self.foreign)
        return (
            *self.faults,
            *(Fault(name, EXTRA) for name in self.unlisted if name not in foreign),
        )

    def require(self) -> None:
        """Check that no file in the manifest is damaged.

        Raises:
            FormatError: If a file is damaged. The message names the first one and their number.
        """
        if self.faults:
            more = f" (and {len(self.faults) - 1} more)" if len(self.faults) > 1 else ""
            raise FormatError(
                f"{self.files.where(self.faults[0].path)}: {self.faults[0].what}{more}; "
                "build or fetch the dataset again"
            )


def verify(
    root: str | Path,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    follow_links: bool = False,
) -> Verified:
    """Compare the size and SHA-256 of every file in a dataset folder with the manifest.

    Args:
        root: Path of the folder.
        workers: Number of hashing threads; by default one per core, up to 8.
        progress: Listener that is notified of every file.
        follow_links: Follow symbolic links that lead out of the folder.

    Returns:
        The faults and the unlisted files. Damage is returned and does not raise an error.

    Raises:
        FormatError: If the path is not a dataset folder, or its manifest is not valid.
    """
    files, progress = LocalFiles(root, follow_links), progress or Silent()
    manifest = files.read_manifest()
    names = sorted(manifest.files)
    faults = []
    unlisted, folders = _scan(files, manifest)
    progress.start("verify", len(names), "files")
    pool = ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1))
    try:
        results = pool.map(lambda name: _fault(files, folders, name, manifest.files[name]), names)
        for name, fault in zip(names, results, strict=True):
            if fault:
                faults.append(Fault(name, fault))
            progress.advance()
    finally:
        pool.shutdown(cancel_futures=True)
    progress.finish()
    return Verified(
        files=files,
        manifest=manifest,
        size=sum(entry["size"] for entry in manifest.files.values()),
        faults=tuple(faults),
        unlisted=tuple(unlisted),
    )


def _fault(files: LocalFiles, folders: Set[str], name: str, expected: Mapping[str, Any]) -> str:
    """Return the fault of a file; empty if it is as expected.

    Args:
        files: Files of the folder.
        folders: Subfolders that are not links; "" is the root itself.
        name: Name of the file.
        expected: Its entry in the manifest, with size and SHA-256.
    """
    path = files.root / name
    try:
        mode = os.lstat(path).st_mode
        # A regular file in a known folder cannot lead out of the dataset: no need to resolve it.
        if stat.S_ISLNK(mode) or name.rpartition("/")[0] not in folders:
            files.path(name)
            mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            return f"is {'a folder' if stat.S_ISDIR(mode) else 'no plain file'}, not a file"
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size != expected["size"]:
                message = f"has {size} bytes, the manifest says {expected['size']}"
                return pointer_at(path) or message
            if hashlib.file_digest(file, "sha256").hexdigest() != expected["sha256"]:
                return "its SHA-256 differs from the manifest's"
    except (FileNotFoundError, NotADirectoryError):
        return "is a broken link" if path.is_symlink() else "missing"
    except FormatError as error:
        return str(error).removeprefix(f"{path}: ")
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    return ""


def _scan(files: LocalFiles, manifest: Manifest) -> tuple[list[str], set[str]]:
    """Return the names of all unlisted files, and the folders.

    A link to a folder is not entered, except for the folder of weights and, if links are followed,
    folders that have files in the manifest.
    """
    listed = {MANIFEST, *manifest.files}
    linked = {
        parent.as_posix()
        for name in (manifest.files if files.follow_links else ())
        for parent in PurePosixPath(name).parents
    }
    with suppress(FormatError):
        files.path(OWN)
        linked.add(OWN)
    names, folders, pending = [], set(), [""]
    while pending:
        folder = pending.pop()
        folders.add(folder)
        try:
            with os.scandir(files.root / folder) as entries:
                for entry in entries:
                    name = f"{folder}/{entry.name}" if folder else entry.name
                    if entry.is_dir(follow_symlinks=name in linked):
                        pending.append(name)
                    elif name not in listed:
                        names.append(name)
        except OSError:  # an unreadable folder may contain unlisted files
            names.append(folder)
    return sorted(names), folders
