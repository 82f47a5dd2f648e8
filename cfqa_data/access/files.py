"""Access the files of a dataset folder, local or in a repo on the Hub, through one interface.

A file name is relative to the folder, with ``/``, as in the manifest. Names are derived from the
layout of the format, so an untrusted manifest cannot name a file outside the folder. Symbolic links
that lead out of the folder are refused unless the caller allows them; the links inside a cache of
`huggingface_hub` are always followed.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from cfqa_data.errors import FormatError
from cfqa_data.format.layout import NAMES
from cfqa_data.format.limits import LARGEST_WHOLE, open_regular, pointer_at, read_limited
from cfqa_data.format.manifest import Manifest, read_manifest
from cfqa_data.paths import absolute_path

__all__ = ["MANIFEST", "Blob", "Files", "LocalFiles"]

MANIFEST = NAMES.manifest.name

OUTSIDE = "leads out of the folder; if you trust the folder: follow_links=True, --follow-links"

ANY = re.compile(r".*", re.DOTALL)
STORED = re.compile(r"([0-9a-f]{2})/\1[0-9a-f]{62}")
"""File names in the blob store that all repos in a cache of `huggingface_hub` share."""

STORE_MARKER = ".huggingface-shared-blobs"


class Blob(Protocol):
    """A file that is read in byte ranges.

    Attributes:
        size: Size in bytes.
    """

    size: int

    def read(self, ranges: Sequence[tuple[int, int]]) -> list[bytearray]:
        """Return the bytes of each range (offset, length).

        Raises:
            ValueError: If a range is not within the file, or could not be read completely.
            OSError: If the file cannot be read.
        """


class Files(ABC):
    """The files of one folder. A file without a local path is read in byte ranges.

    Attributes:
        location: Name of the folder in messages: a path, or an ``hf://`` URL.
        root: Path of the folder; None if it is not on this machine.
        follow_links: Whether symbolic links that lead out of the folder are followed.
    """

    location: str
    root: Path | None = None
    follow_links: bool = False

    def where(self, name: str) -> str:
        """Return the full name of a file, for messages."""
        return f"{self.location}/{name}"

    @abstractmethod
    def read_manifest(self) -> Manifest:
        """Return the manifest of the folder.

        Raises:
            FormatError: If this is not a dataset folder, or its manifest is not valid.
        """

    @abstractmethod
    def path(self, name: str) -> Path | None:
        """Return the local path of a file, whether or not it exists; None if it is read remotely.

        Raises:
            FileNotFoundError: If the file has to be downloaded and does not exist.
        """

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Return whether a file or folder exists."""

    def remote(self, name: str) -> Blob:
        """Return a file without a local path, before any request is made.

        Raises:
            FileNotFoundError: If the file does not exist.
        """
        raise FileNotFoundError(self.where(name))

    def fetch(self, name: str) -> bytes:
        """Return the content of a small file without a local path."""
        blob = self.remote(name)
        return bytes(blob.read([(0, blob.size)])[0])

    def read(self, name: str) -> bytes:
        """Return the content of a small file.

        Raises:
            FormatError: If the file is missing, cannot be read, or differs from the manifest.
        """
        with self.errors(name, "cannot be read"):
            path = self.path(name)
            return read_limited(path, LARGEST_WHOLE) if path else self.fetch(name)

    @contextmanager
    def errors(
        self, name: str, damaged: str, missing: str = "missing; is this a complete dataset folder?"
    ) -> Iterator[None]:
        """Convert `OSError` and `ValueError` from reading a file to an error that names it.

        Args:
            name: Name of the file.
            damaged: Message if the file cannot be read or has unexpected content.
            missing: Message if the file does not exist.

        Raises:
            FormatError: Replaces the exception.
        """
        try:
            yield
        except (FileNotFoundError, IsADirectoryError):
            raise FormatError(f"{self.where(name)}: {missing}") from None
        except (OSError, ValueError) as error:
            raise FormatError(f"{self.where(name)}: {damaged}: {error}") from None

    @contextmanager
    def open(self, name: str) -> Iterator[Blob]:
        """Open a file to read ranges of it, and close it at the end of the block.

        Raises:
            FileNotFoundError: If the file does not exist.
        """
        if path := self.path(name):
            with open_regular(path) as file:
                yield _LocalBlob(file)
        else:
            yield self.remote(name)


class LocalFiles(Files):
    """The files of a local folder.

    Args:
        root: Path of the folder.
        follow_links: Follow symbolic links that lead out of the folder.
    """

    root: Path

    def __init__(self, root: str | Path, follow_links: bool = False) -> None:
        self.root = absolute_path(root)
        self.location = str(self.root)
        self.follow_links = follow_links
        self._allowed = _allowed_targets(self.root)
        self._checked: set[str] = set()

    def read_manifest(self) -> Manifest:
        """Return the manifest of the folder."""
        self.path(MANIFEST)
        return read_manifest(self.root)

    def path(self, name: str) -> Path:
        """Return the path of a file.

        Raises:
            FormatError: If the path is a link that leads out of the folder, is neither a regular
                file nor a folder, or is a pointer of Git LFS or git-annex.
        """
        path = self.root / name
        if name not in self._checked:
            real = Path(os.path.realpath(path))
            if kind := pointer_at(path):
                raise FormatError(f"{path}: {kind}")
            if not (self.follow_links or _is_allowed(real, self._allowed)):
                raise FormatError(f"{path}: {OUTSIDE}")
            if os.path.exists(real) and not (real.is_file() or real.is_dir()):
                raise FormatError(
                    f"{path}: is not a regular file; build or fetch the dataset again"
                )
            self._checked.add(name)
        return path

    def exists(self, name: str) -> bool:
        """Return whether a file or folder exists."""
        return self.path(name).exists()


def _allowed_targets(root: Path) -> list[tuple[Path, re.Pattern[str]]]:
    """Return the folders that links may lead to, each with a pattern of the names in it.

    These are the dataset folder itself and, for a snapshot in a cache of `huggingface_hub`, the
    folders that its links lead to: from ``REPO/snapshots/COMMIT`` to ``REPO/blobs``, and from there
    to the ``blobs`` folder that all repos share, which contains a marker file.
    """
    real = Path(os.path.realpath(root))
    allowed = [(real, ANY)]
    for folder in (real, *real.parents):  # the dataset may be a subfolder of the repo
        repo = folder.parent.parent
        if folder.parent.name == "snapshots" and (repo / "blobs").is_dir():
            allowed.append((repo / "blobs", ANY))
            if "--" in repo.name and (repo.parent / "blobs" / STORE_MARKER).is_file():
                allowed.append((repo.parent / "blobs", STORED))
            break
    return allowed


def _is_allowed(real: Path, allowed: list[tuple[Path, re.Pattern[str]]]) -> bool:
    return any(
        real.is_relative_to(folder) and names.fullmatch(real.relative_to(folder).as_posix())
        for folder, names in allowed
    )


class _LocalBlob:
    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.size = file.seek(0, 2)

    def read(self, ranges: Sequence[tuple[int, int]]) -> list[bytearray]:
        return [self._read(offset, size) for offset, size in ranges]

    def _read(self, offset: int, size: int) -> bytearray:
        if offset + size > self.size:
            raise ValueError(f"a part ends at byte {offset + size} of {self.size}")
        self.file.seek(offset)
        data = bytearray(size)
        if (count := self.file.readinto(data)) != size:  # type: ignore[attr-defined]
            raise ValueError(f"{count} of {size} bytes could be read")
        return data
