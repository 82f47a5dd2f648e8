"""A dataset folder in a repo on the Hub: small files are read whole, of large ones parts.

The manifest comes first and says what there is: no tree is listed. It also pins the commit, so a
dataset that is open does not change under its reader. Nothing that is read is kept on disk, unless
a cache is asked for: then whole files go to `huggingface_hub`'s own, and are read from there.

What is fetched whole is held against the manifest's SHA-256. A part cannot be: its length and the
file's are checked, and its reader checks what the bytes themselves show.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from cfqa_data.access.files import MISSING, Blob, Files, open_blob
from cfqa_data.access.hub_client import LARGEST_WHOLE, HubRepo
from cfqa_data.errors import FormatError
from cfqa_data.format.layout import Layout
from cfqa_data.format.manifest import Manifest, hash_file, parse_manifest
from cfqa_data.format.pointers import pointer_at

__all__ = ["HubFiles"]

GAP = 64 << 10
"""Bytes between two parts that are read along with them: cheaper than another request."""


class HubFiles(Files):
    """The files of one repo at one commit, as its manifest lists them.

    Args:
        repo: "org/name".
        revision: branch, tag or commit; the main branch if None.
        cache: False, True for `huggingface_hub`'s own cache, or another's folder.

    Attributes:
        manifest: the folder's.

    Raises:
        FormatError: it is not a dataset folder.
        HubError: it is not there, may not be read, or cannot be reached.
        MissingDependencyError: `huggingface_hub` is not installed.
    """

    def __init__(self, repo: str, revision: str | None, cache: bool | str | Path) -> None:
        self.repo = HubRepo(repo, revision)
        self.location = self.repo.location
        self.cache = cache
        self.prefix = ""
        self._checked: set[str] = set()
        name = Layout(Path()).manifest.as_posix()
        if cache:
            data = self.repo.download(name, cache).read_bytes()
        else:
            try:
                data = self.repo.fetch_first(name)
            except ValueError as error:
                raise FormatError(f"{self.where(name)}: {error}") from None
        self.manifest = parse_manifest(data, self.where(name))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_checked": set()}

    def read_manifest(self) -> Manifest:
        """Return the folder's manifest, which has been read."""
        return self.manifest

    def below(self, name: str) -> HubFiles:
        """Return the files of a folder in this one."""
        files = object.__new__(HubFiles)
        files.__dict__.update(self.__dict__)
        files.prefix, files.location = f"{self.prefix}{name}/", self.where(name)
        return files

    def path(self, name: str) -> Path | None:
        """Return where the cache holds a file, fetched and compared with the manifest, if any."""
        if not self.cache:
            return None
        entry, full = self._entry(name), self.prefix + name
        path = self.repo.download(full, self.cache)
        if full not in self._checked:
            if not _is(path, entry):
                path = self.repo.download(full, self.cache, again=True)
                if not _is(path, entry):
                    raise self._other(name, pointer_at(path))
            self._checked.add(full)
        return path

    def exists(self, name: str) -> bool:
        """Return whether the manifest has such a file, or one in a folder of that name."""
        full = self.prefix + name
        known = self.manifest.files
        return full in known or any(other.startswith(f"{full}/") for other in known)

    def read(self, name: str) -> bytes:
        """Return a file's whole content, compared with the manifest."""
        try:
            if path := self.path(name):
                return path.read_bytes()
            entry = self._entry(name)
            size = entry["size"]
            if size > LARGEST_WHOLE:
                raise ValueError(f"{size} bytes are too many to read at once")
            for _ in range(2):
                data = self.repo.fetch(self.prefix + name, 0, size, size)
                if hashlib.sha256(data).hexdigest() == entry["sha256"]:
                    return data
        except FileNotFoundError:
            raise FormatError(f"{self.where(name)}: {MISSING}") from None
        except ValueError as error:
            raise FormatError(f"{self.where(name)}: {error}") from None
        raise self._other(name)

    def open(self, name: str) -> AbstractContextManager[Blob]:
        """Return a file of which parts are read; nothing is asked of the Hub yet."""
        if path := self.path(name):
            return open_blob(path)
        return nullcontext(_HubBlob(self.repo, self.prefix + name, self._entry(name)["size"]))

    def _entry(self, name: str) -> Mapping[str, Any]:
        try:
            return self.manifest.files[self.prefix + name]
        except KeyError:
            raise FileNotFoundError(self.where(name)) from None

    def _other(self, name: str, kind: str = "") -> FormatError:
        other = (
            "by its SHA-256 not the file of the manifest: damaged on its way or in the repo; try "
            "again"
        )
        return FormatError(f"{self.where(name)}: {kind or other}")


class _HubBlob:
    """A file in the repo, of which each part is a request, or several near ones together."""

    def __init__(self, repo: HubRepo, name: str, size: int) -> None:
        self.repo = repo
        self.name = name
        self.size = size

    def read(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        for offset, length in ranges:
            if offset + length > self.size:
                raise ValueError(f"a part ends at byte {offset + length} of {self.size}")
        parts = [b""] * len(ranges)
        for start, stop in _spans(ranges):
            data = memoryview(self.repo.fetch(self.name, start, stop, self.size))
            for number, (offset, length) in enumerate(ranges):
                if length and start <= offset and offset + length <= stop:
                    parts[number] = bytes(data[offset - start : offset - start + length])
        return parts


def _spans(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return (start, stop) of what is asked for at once: parts with less than a gap between."""
    spans: list[tuple[int, int]] = []
    for offset, length in sorted(ranges):
        if length and spans and offset - spans[-1][1] <= GAP:
            spans[-1] = spans[-1][0], max(spans[-1][1], offset + length)
        elif length:
            spans.append((offset, offset + length))
    return spans


def _is(path: Path, entry: Mapping[str, Any]) -> bool:
    return path.stat().st_size == entry["size"] and hash_file(path) == entry["sha256"]
