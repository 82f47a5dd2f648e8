"""Verify a dataset folder against its manifest: missing, changed and unlisted files.

What tools leave in a folder (a desktop's `.DS_Store`, the Hub's `.gitattributes` and `.cache`, what
a build or a repair works with) is reported but is no damage: no reader uses it. Any other file
that the manifest does not list is damage, since it may be taken for a part of the dataset.
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
from cfqa_data.format.layout import of_tools
from cfqa_data.format.limits import open_plain, pointer_at
from cfqa_data.format.manifest import Manifest

__all__ = ["EXTRA", "Fault", "Verified", "verify"]

EXTRA = "is not in the manifest"


@dataclass(frozen=True)
class Fault:
    """A file that is not what the manifest says.

    Attributes:
        path: Relative to the folder.
        what: What is wrong with it, as in "missing".
    """

    path: str
    what: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


@dataclass(frozen=True)
class Verified:
    """Result of comparing a folder with its manifest.

    Attributes:
        files: The folder's.
        manifest: Its manifest.
        size: Bytes of the files that the manifest lists.
        faults: What is wrong, in the order of the manifest's paths.
        unlisted: Files in the folder that the manifest does not know; no part of the dataset.
    """

    files: LocalFiles
    manifest: Manifest
    size: int
    faults: tuple[Fault, ...]
    unlisted: tuple[str, ...]

    @cached_property
    def foreign(self) -> tuple[str, ...]:
        """Those of the unlisted files that do no harm: of tools, and weights for the decoders."""
        return tuple(name for name in self.unlisted if of_tools(name) or self._is_weights(name))

    def _is_weights(self, name: str) -> bool:
        """Whether a file is in the folder for weights, or is of those that would be found here."""
        real = Path(os.path.realpath(self.files.root / name))
        return name.startswith(f"{OWN}/") or real in self._weights

    @cached_property
    def _weights(self) -> set[Path]:
        return own_weights(self.files, set(self.manifest.weights.values()))

    @cached_property
    def damage(self) -> tuple[Fault, ...]:
        """All faults: those of the files that the manifest lists, and the files that are extra."""
        known = set(self.foreign)
        return (
            *self.faults,
            *(Fault(name, EXTRA) for name in self.unlisted if name not in known),
        )

    def require(self) -> None:
        """Check that no file of the manifest is damaged.

        Raises:
            FormatError: One is; names the first file and says how many there are.
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
    """Compare size and SHA-256 of every file in a dataset folder with the manifest's.

    Args:
        root: The folder.
        workers: Threads that hash, which runs in parallel; by default one per core, up to 8.
        progress: Notified of every file.
        follow_links: Look at what links lead to, wherever that is, for a folder of one's own.

    Raises:
        FormatError: It is not a dataset folder, or its manifest is not valid.
    """
    files, progress = LocalFiles(root, follow_links), progress or Silent()
    manifest = files.read_manifest()
    names = sorted(manifest.files)
    faults = []
    unlisted, folders = _look_around(files, manifest)
    progress.start("verify", len(names), "files")
    pool = ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1))
    try:
        found = pool.map(lambda name: _fault(files, folders, name, manifest.files[name]), names)
        for name, what in zip(names, found, strict=True):
            if what:
                faults.append(Fault(name, what))
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


def _fault(files: LocalFiles, inside: Set[str], name: str, expected: Mapping[str, Any]) -> str:
    """Return the fault of a file; None if it is as expected.

    Args:
        files: The folder's.
        inside: Folders that are known to be in it, no links; "" is the root itself.
        name: Of the file.
        expected: Its size and SHA-256.
    """
    path = files.root / name
    try:
        mode = os.lstat(path).st_mode
        # A file that is no link is where its folder is.
        if stat.S_ISLNK(mode) or name.rpartition("/")[0] not in inside:
            files.path(name)
            mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            return f"is {'a folder' if stat.S_ISDIR(mode) else 'no plain file'}, not a file"
        with open_plain(path) as file:
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


def _look_around(files: LocalFiles, manifest: Manifest) -> tuple[list[str], set[str]]:
    """Return the names that the manifest does not list, and the folders.

    Links are no folders; but where they are followed, those are that the manifest has files in. The
    folder of weights is one wherever weights are found in it.
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
    names, folders, left = [], set(), [""]
    while left:
        folder = left.pop()
        folders.add(folder)
        try:
            with os.scandir(files.root / folder) as entries:
                for entry in entries:
                    name = f"{folder}/{entry.name}" if folder else entry.name
                    if entry.is_dir(follow_symlinks=name in linked):
                        left.append(name)
                    elif name not in listed:
                        names.append(name)
        except OSError:  # what cannot be looked into could hold anything
            names.append(folder)
    return sorted(names), folders
