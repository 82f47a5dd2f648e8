"""Opening a dataset folder by its path, or by its address in a repo on the Hub.

Of a repo, small files are read whole, of large ones parts.

The manifest comes first and says what there is: no tree is listed. It also pins the commit, so a
dataset that is open does not change under its reader. Nothing that is read is kept on disk, unless
a cache is asked for: then whole files go to `huggingface_hub`'s own, and are read from there.

What is fetched whole is held against the manifest's SHA-256. A part cannot be: its length and the
file's are checked, and its reader checks what the bytes themselves show.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from cfqa_data.access.files import MANIFEST, Blob, Files, LocalFiles
from cfqa_data.access.hub_client import LARGEST_WHOLE, HubRepo
from cfqa_data.errors import CfqaError, FormatError
from cfqa_data.format.limits import pointer_at
from cfqa_data.format.manifest import Manifest, hash_file, parse_manifest
from cfqa_data.format.resources import HUB
from cfqa_data.paths import absolute_path

__all__ = ["HubFiles", "open_files"]

REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)

GAP = 64 << 10
"""Bytes between two parts that are read along with them: cheaper than another request."""


def open_files(
    path: str | Path,
    revision: str | None = None,
    cache: bool | str | Path = False,
    follow_links: bool = False,
) -> Files:
    """Return the files of a folder or of a dataset repo on the Hub.

    Args:
        path: a folder, "org/name" or "hf://datasets/org/name[@revision]". What is there on this
            machine is always meant as such.
        revision: branch, tag or commit of the repo; its main branch if None.
        cache: keep whole files in `huggingface_hub`'s cache, or in this one.
        follow_links: of a folder: read what its links lead to, wherever that is.

    Raises:
        CfqaError: ``path`` is an address of another kind, or a revision is given for a folder.
        MissingDependencyError: `huggingface_hub` is not installed.
        HubError: there is no such repo or revision, or it cannot be reached.
    """
    named, at, revision_in_url = str(path), "", ""
    if isinstance(path, str) and path.startswith(HUB):
        named, at, revision_in_url = path.removeprefix(HUB).rstrip("/").partition("@")
        if not named.startswith("datasets/") or (at and not revision_in_url):
            raise CfqaError(f"{path}: give hf://datasets/org/name or hf://datasets/org/name@rev")
        named = named.removeprefix("datasets/")
        if not _is_repo(named):
            raise CfqaError(f"{path}: {named!r} is not a dataset repo id such as org/name")
    elif "\0" in named or (isinstance(path, str) and "://" in path and not _exists(path)):
        raise CfqaError(f"{path!r}: give a folder, org/name or hf://datasets/org/name")
    elif not isinstance(path, str) or _exists(path) or not _is_repo(path):
        if revision is not None:
            raise CfqaError(f"{path}: revisions are for repos on the Hub, not for folders")
        return LocalFiles(path, follow_links)
    if revision_in_url and revision is not None and unquote(revision_in_url) != revision:
        raise CfqaError(f"{path}: differs from revision={revision!r}")
    if cache and cache is not True:
        cache = absolute_path(cache)
    return HubFiles(named, unquote(revision_in_url) or revision, cache)


def _exists(path: str | Path) -> bool:
    try:
        return absolute_path(path).exists()
    except OSError as error:  # a name too long, or a folder above that may not be entered
        why = error.strerror or error
        raise CfqaError(f"{path}: cannot be read: {why}") from None


def _is_repo(text: str) -> bool:
    return REPO.fullmatch(text) is not None and ".." not in text


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
        self.repo, self.cache = HubRepo(repo, revision), cache
        self.location = self.repo.location
        self._checked: dict[str, Path] = {}
        with self.errors(MANIFEST, "cannot be read"):
            data = (
                self.repo.fetch(MANIFEST)
                if not cache
                else self.repo.download(MANIFEST, cache).read_bytes()
            )
        self.manifest = parse_manifest(bytes(data), self.where(MANIFEST))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_checked": {}}

    def read_manifest(self) -> Manifest:
        """Return the folder's manifest, which has been read."""
        return self.manifest

    def path(self, name: str) -> Path | None:
        """Return where the cache holds a file, fetched and compared with the manifest, if any."""
        if not self.cache:
            return None
        entry = self._entry(name)
        if name in self._checked and self._checked[name].exists():
            return self._checked[name]
        for again in (False, True):
            path = self.repo.download(name, self.cache, again=again)
            if path.stat().st_size == entry["size"] and hash_file(path) == entry["sha256"]:
                self._checked[name] = path
                return path
        raise self._other(name, pointer_at(path))

    def exists(self, name: str) -> bool:
        """Return whether the manifest has such a file, or one in a folder of that name."""
        known = self.manifest.files
        return name in known or any(other.startswith(f"{name}/") for other in known)

    def remote(self, name: str) -> Blob:
        """Return a file of which parts are read; nothing is asked of the Hub yet."""
        return _HubBlob(self.repo, name, self._entry(name)["size"])

    def fetch(self, name: str) -> bytes:
        """Return a file's whole content, compared with the manifest."""
        entry = self._entry(name)
        if entry["size"] > LARGEST_WHOLE:
            raise ValueError(f"{entry['size']} bytes are too many to read at once")
        for _ in range(2):
            data = super().fetch(name)
            if hashlib.sha256(data).hexdigest() == entry["sha256"]:
                return data
        raise self._other(name)

    def _entry(self, name: str) -> Mapping[str, Any]:
        try:
            return self.manifest.files[name]
        except KeyError:
            raise FileNotFoundError(self.where(name)) from None

    def _other(self, name: str, kind: str = "") -> FormatError:
        other = (
            "its SHA-256 differs from the manifest's: damaged in transfer or in the repo; try again"
        )
        return FormatError(f"{self.where(name)}: {kind or other}")


@dataclass
class _HubBlob:
    """A file in the repo, of which each part is a request, or several near ones together."""

    repo: HubRepo
    name: str
    size: int

    def read(self, ranges: Sequence[tuple[int, int]]) -> list[bytearray]:
        parts = [bytearray()] * len(ranges)
        for start, stop in self._spans(ranges):
            data = memoryview(self.repo.fetch(self.name, start, stop, self.size))
            for number, (offset, length) in enumerate(ranges):
                if length and start <= offset and offset + length <= stop:
                    parts[number] = bytearray(data[offset - start : offset - start + length])
        return parts

    def _spans(self, ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return (start, stop) of what is asked for at once: parts with little between them."""
        spans: list[tuple[int, int]] = []
        for offset, length in sorted(ranges):
            if offset + length > self.size:
                raise ValueError(f"a part ends at byte {offset + length} of {self.size}")
            if length and spans and offset - spans[-1][1] <= GAP:
                spans[-1] = spans[-1][0], max(spans[-1][1], offset + length)
            elif length:
                spans.append((offset, offset + length))
        return spans
