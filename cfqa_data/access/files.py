"""Files of a dataset folder, local or in a repo on the Hub, behind one interface.

A file is named as the manifest names it: relative to the folder, with ``/``. Every name comes from
the format's own layout, so none leads out of the folder, whatever a manifest says; nor does a link
that is followed, unless the caller says so, but for those that a cache of the Hub is made of.
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
"""Names of files in the store that the repos in a cache of `huggingface_hub` share."""

STORE_MARKER = ".huggingface-shared-blobs"


class Blob(Protocol):
    """A file of which parts are read.

    Attributes:
        size: its bytes.
    """

    size: int

    def read(self, ranges: Sequence[tuple[int, int]]) -> list[bytearray]:
        """Return the bytes of each (offset, length).

        Raises:
            ValueError: one is not within the file, or could not be read whole.
            OSError: the file cannot be read.
        """


class Files(ABC):
    """The files of one folder: where a file has a path, it is read there, and else in ranges.

    Attributes:
        location: the folder, as it is named in messages: a path, or an ``hf://`` address.
        root: the folder's path, if it is one on this machine.
        follow_links: whether links that lead out of it are followed.
    """

    location: str
    root: Path | None = None
    follow_links: bool = False

    def where(self, name: str) -> str:
        """Return a file's name for messages."""
        return f"{self.location}/{name}"

    @abstractmethod
    def read_manifest(self) -> Manifest:
        """Return the folder's manifest.

        Raises:
            FormatError: this is not a dataset folder, or its manifest is not valid.
        """

    @abstractmethod
    def path(self, name: str) -> Path | None:
        """Return the local path of a file, whether or not it exists; None if it is read remotely.

        Raises:
            FileNotFoundError: it is to be fetched and is not there.
        """

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Return whether there is such a file or folder."""

    def remote(self, name: str) -> Blob:
        """Return a file that has no local path; nothing is asked for yet.

        Raises:
            FileNotFoundError: it is not there.
        """
        raise FileNotFoundError(self.where(name))

    def fetch(self, name: str) -> bytes:
        """Return the whole content of a small file that has no local path."""
        blob = self.remote(name)
        return bytes(blob.read([(0, blob.size)])[0])

    def read(self, name: str) -> bytes:
        """Return a small file's whole content.

        Raises:
            FormatError: it is missing, cannot be read, or is not the one of the manifest.
        """
        with self.errors(name, "cannot be read"):
            path = self.path(name)
            return read_limited(path, LARGEST_WHOLE) if path else self.fetch(name)

    @contextmanager
    def errors(
        self, name: str, damaged: str, missing: str = "missing; is this a complete dataset folder?"
    ) -> Iterator[None]:
        """Raise what goes wrong with a file as an error that names it.

        Raises:
            FormatError: it is missing, cannot be read, or does not hold what it should.
        """
        try:
            yield
        except (FileNotFoundError, IsADirectoryError):
            raise FormatError(f"{self.where(name)}: {missing}") from None
        except (OSError, ValueError) as error:
            raise FormatError(f"{self.where(name)}: {damaged}: {error}") from None

    @contextmanager
    def open(self, name: str) -> Iterator[Blob]:
        """Open a file to read parts of it; nothing stays open behind it.

        Raises:
            FileNotFoundError: it is not there.
        """
        if path := self.path(name):
            with open_regular(path) as file:
                yield _LocalBlob(file)
        else:
            yield self.remote(name)


class LocalFiles(Files):
    """A folder on this machine.

    Args:
        root: the folder.
        follow_links: read what links lead to, wherever that is.
    """

    root: Path

    def __init__(self, root: str | Path, follow_links: bool = False) -> None:
        self.root = absolute_path(root)
        self.location = str(self.root)
        self.follow_links = follow_links
        self._places = _places(self.root)
        self._known: set[str] = set()

    def read_manifest(self) -> Manifest:
        """Return the folder's manifest."""
        self.path(MANIFEST)
        return read_manifest(self.root)

    def path(self, name: str) -> Path:
        """Return a file's path.

        Raises:
            FormatError: it is a link that leads out of the folder, is neither file nor folder, or
                Git keeps it elsewhere.
        """
        path = self.root / name
        if name not in self._known:
            real = Path(os.path.realpath(path))
            if kind := pointer_at(path):
                raise FormatError(f"{path}: {kind}")
            if not (self.follow_links or _is_within(real, self._places)):
                raise FormatError(f"{path}: {OUTSIDE}")
            if os.path.exists(real) and not (real.is_file() or real.is_dir()):
                raise FormatError(
                    f"{path}: is not a regular file; build or fetch the dataset again"
                )
            self._known.add(name)
        return path

    def exists(self, name: str) -> bool:
        """Return whether there is such a file or folder."""
        return self.path(name).exists()


def _places(root: Path) -> list[tuple[Path, re.Pattern[str]]]:
    """Return where files of a folder may lie: folders, with the names that files have in them.

    That is the folder itself, and where `huggingface_hub` links to from a folder in its cache: from
    ``REPO/snapshots/COMMIT`` to ``REPO/blobs``, and from there to ``blobs`` beside all repos, which
    has a marker in it.
    """
    real = Path(os.path.realpath(root))
    places = [(real, ANY)]
    for place in (real, *real.parents):  # the dataset may be a folder in the repo
        repo = place.parent.parent
        if place.parent.name == "snapshots" and (repo / "blobs").is_dir():
            places.append((repo / "blobs", ANY))
            if "--" in repo.name and (repo.parent / "blobs" / STORE_MARKER).is_file():
                places.append((repo.parent / "blobs", STORED))
            break
    return places


def _is_within(real: Path, places: list[tuple[Path, re.Pattern[str]]]) -> bool:
    return any(
        real.is_relative_to(place) and names.fullmatch(real.relative_to(place).as_posix())
        for place, names in places
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
        if (found := self.file.readinto(data)) != size:  # type: ignore[attr-defined]
            raise ValueError(f"{found} of {size} bytes could be read")
        return data
