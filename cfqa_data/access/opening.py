"""Opening a dataset folder by its path, or by its address on the Hub."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

from cfqa_data.access.files import Files, LocalFiles
from cfqa_data.access.hub import HubFiles
from cfqa_data.errors import CfqaError
from cfqa_data.paths import absolute_path

__all__ = ["open_files"]

HUB = "hf://"
REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


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
            raise CfqaError(f"{path}: {named!r} is not the id of a dataset repo, as org/name is")
    elif "\0" in named or (isinstance(path, str) and "://" in path and not _exists(path)):
        raise CfqaError(f"{path!r}: give a folder, org/name or hf://datasets/org/name")
    elif not isinstance(path, str) or _exists(path) or not _is_repo(path):
        if revision is not None:
            raise CfqaError(f"{path}: a folder has no revisions; only a repo on the Hub has")
        return LocalFiles(path, follow_links)
    if revision_in_url and revision is not None and unquote(revision_in_url) != revision:
        raise CfqaError(f"{path}: names another revision than revision={revision!r}")
    if cache and cache is not True:
        cache = absolute_path(cache)
    return HubFiles(named, unquote(revision_in_url) or revision, cache)


def _exists(path: str | Path) -> bool:
    try:
        return absolute_path(path).exists()
    except OSError as error:  # a name too long, or a folder above that may not be entered
        why = error.strerror or error
        raise CfqaError(f"{path}: no dataset can be read there: {why}") from None


def _is_repo(text: str) -> bool:
    return REPO.fullmatch(text) is not None and ".." not in text
