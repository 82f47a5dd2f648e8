"""Open the files of a dataset folder, local or in a repo on the Hub.

The manifest of a repo is read first. It lists the files, so the repo's tree is not listed, and its
commit is used for all later requests, so an open dataset does not change. Small files are read
whole and large ones in byte ranges. Nothing is stored on disk unless a cache is requested; then
whole files are downloaded into the cache of `huggingface_hub`.

Whole files are checked against the SHA-256 in the manifest. For ranges, the lengths of the range
and the file are checked, and the readers check the content.
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
"""Largest gap in bytes between two ranges that are requested together."""


def open_files(
    path: str | Path,
    revision: str | None = None,
    cache: bool | str | Path = False,
    follow_links: bool = False,
) -> Files:
    """Return the files of a folder or of a dataset repo on the Hub.

    Args:
        path: Path of a folder, "org/name" or "hf://datasets/org/name[@revision]". A path that
            exists locally is always the folder.
        revision: Branch, tag or commit of the repo; its main branch if None.
        cache: Download whole files into `huggingface_hub`'s cache (True) or a folder.
        follow_links: Follow symbolic links that lead out of a local folder.

    Raises:
        CfqaError: If ``path`` is another kind of URL, or a revision is given for a folder.
        FormatError: If the repo is not a dataset.
        HubError: If the repo or revision does not exist, or the Hub cannot be reached.
        MissingDependencyError: If `huggingface_hub` is not installed.
    """
    repo, at, revision_in_url = str(path), "", ""
    if isinstance(path, str) and path.startswith(HUB):
        repo, at, revision_in_url = path.removeprefix(HUB).rstrip("/").partition("@")
        if not repo.startswith("datasets/") or (at and not revision_in_url):
            raise CfqaError(f"{path}: give hf://datasets/org/name or hf://datasets/org/name@rev")
        repo = repo.removeprefix("datasets/")
        if not _is_repo(repo):
            raise CfqaError(f"{path}: {repo!r} is not a dataset repo id such as org/name")
    elif "\0" in repo or (isinstance(path, str) and "://" in path and not _exists(path)):
        raise CfqaError(f"{path!r}: give a folder, org/name or hf://datasets/org/name")
    elif not isinstance(path, str) or _exists(path) or not _is_repo(path):
        if revision is not None:
            raise CfqaError(f"{path}: revisions are for repos on the Hub, not for folders")
        return LocalFiles(path, follow_links)
    if revision_in_url and revision is not None and unquote(revision_in_url) != revision:
        raise CfqaError(f"{path}: differs from revision={revision!r}")
    if cache and cache is not True:
        cache = absolute_path(cache)
    return HubFiles(repo, unquote(revision_in_url) or revision, cache)


def _exists(path: str | Path) -> bool:
    try:
        return absolute_path(path).exists()
    except OSError as error:  # such as a name that is too long, or a parent without permission
        why = error.strerror or error
        raise CfqaError(f"{path}: cannot be read: {why}") from None


def _is_repo(text: str) -> bool:
    return REPO.fullmatch(text) is not None and ".." not in text


class HubFiles(Files):
    """The files of a dataset repo at one commit, as listed in its manifest.

    Args:
        repo: Repo id, "org/name".
        revision: Branch, tag or commit; the main branch if None.
        cache: False for no cache, True for `huggingface_hub`'s cache, or the folder of a cache.

    Attributes:
        manifest: Manifest of the dataset.

    Raises:
        FormatError: If the repo is not a dataset.
        HubError: If the repo does not exist, may not be read, or cannot be reached.
        MissingDependencyError: If `huggingface_hub` is not installed.
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
        """Return the manifest, which the constructor has read."""
        return self.manifest

    def path(self, name: str) -> Path | None:
        """Return the path of a file in the cache, downloaded and verified; None without a cache."""
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
        raise self._differs(name, pointer_at(path))

    def exists(self, name: str) -> bool:
        """Return whether the manifest lists a file, or files in a folder, of that name."""
        listed = self.manifest.files
        return name in listed or any(other.startswith(f"{name}/") for other in listed)

    def remote(self, name: str) -> Blob:
        """Return a file that is read in ranges, before any request is made."""
        return _HubBlob(self.repo, name, self._entry(name)["size"])

    def fetch(self, name: str) -> bytes:
        """Return the content of a file, verified against the manifest."""
        entry = self._entry(name)
        if entry["size"] > LARGEST_WHOLE:
            raise ValueError(f"{entry['size']} bytes are too many to read at once")
        for _ in range(2):
            data = super().fetch(name)
            if hashlib.sha256(data).hexdigest() == entry["sha256"]:
                return data
        raise self._differs(name)

    def _entry(self, name: str) -> Mapping[str, Any]:
        try:
            return self.manifest.files[name]
        except KeyError:
            raise FileNotFoundError(self.where(name)) from None

    def _differs(self, name: str, kind: str = "") -> FormatError:
        differs = (
            "its SHA-256 differs from the manifest's: damaged in transfer or in the repo; try again"
        )
        return FormatError(f"{self.where(name)}: {kind or differs}")


@dataclass
class _HubBlob:
    """A file in a repo. Each range is one request; ranges close to each other share one."""

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
        """Return the (start, stop) of each request, with neighbouring ranges merged."""
        spans: list[tuple[int, int]] = []
        for offset, length in sorted(ranges):
            if offset + length > self.size:
                raise ValueError(f"a part ends at byte {offset + length} of {self.size}")
            if length and spans and offset - spans[-1][1] <= GAP:
                spans[-1] = spans[-1][0], max(spans[-1][1], offset + length)
            elif length:
                spans.append((offset, offset + length))
        return spans
