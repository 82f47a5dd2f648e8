"""Locate and hash weights.

Weights are a file, an index of safetensors shards, a folder with either, or a URI
`hf://org/name[@revision][/file]` on the Hub. Their hash is the SHA-256 of the file; for several
files it is the SHA-256 of the output of ``sha256sum``, sorted by file name.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from importlib import resources
from pathlib import Path

from cfqa_data.access.files import Files
from cfqa_data.access.hub_weights import hub_weights
from cfqa_data.errors import BuildError, CfqaError, FormatError, RecipeError
from cfqa_data.format.checkpoints import HUB_FILE, weight_files
from cfqa_data.format.manifest import hash_file
from cfqa_data.format.resources import (
    HUB,
    PACKAGE,
    ROOT,
    ROOT_VARIABLE,
    WEIGHTS_VARIABLE,
    is_uri,
    locate,
    resolve,
)
from cfqa_data.format.storage import write_text
from cfqa_data.paths import real_path

__all__ = [
    "find_below_root",
    "find_weights",
    "hash_weights",
    "named_path",
    "own_weights",
    "remember",
    "remembered",
    "resolve_weights",
]

SHIPPED = ("cfqa_data.codecs", "cfqa_data.builders")
"""Packages that have a folder of weights."""

OWN = "weights"
"""Folder of a package or dataset where weights may be placed. It is not part of the dataset."""


def hash_weights(path: str | Path) -> str:
    """Return the SHA-256 of the weights at a path as hex, over all their files.

    Raises:
        BuildError: If there are no weights at the path; see :func:`weight_files`.
    """
    first, *others = files = weight_files(path)
    if not others:
        return hash_file(first)
    lines = (f"{hash_file(file)}  {file.name}\n" for file in sorted(files))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def resolve_weights(uri: str) -> Path:
    """Return the path of the weights (or of the index of their shards) that a recipe names.

    Weights on the Hub are downloaded unless they are in the cache.

    Raises:
        RecipeError: If the URI is malformed, or the file does not exist.
        BuildError: If the URI names a folder or an index without weights.
        HubError: If the Hub cannot be reached, or the weights may not be read.
    """
    if uri.startswith(HUB):
        return hub_weights(uri).fetch()[0]
    path = locate(uri)
    return weight_files(path if path.is_dir() else resolve(uri))[0]


def find_weights(
    uri: str, sha256: str | None, files: Files | None = None, *, own: bool = True
) -> Path:
    """Find weights by their hash, even if they were moved or renamed. Nothing is downloaded.

    The places to search are, in this order: the path of the URI, the path that a build on this
    machine used, ``CFQA_WEIGHTS``, the dataset folder, this package, and ``CFQA_ROOT``.

    Args:
        uri: URI or path of the weights in the manifest.
        sha256: Their hash, from :func:`hash_weights`.
        files: Files of the dataset.
        own: Whether weights in the dataset folder, and paths in its manifest, may be used. Pass
            False for an untrusted dataset.

    Returns:
        The path of the weights.

    Raises:
        RecipeError: If no weights of that hash were found; the message lists the places searched.
    """
    if not sha256 or not re.fullmatch("[0-9a-f]{64}", sha256):  # the manifest is untrusted
        raise RecipeError(f"{uri}: the manifest has no SHA-256 of it")
    named = named_path(uri) if own or is_uri(uri) else None
    for path in (named, remembered(sha256)):
        if path is not None and (own or not _is_within(path, files)) and _hash(path) == sha256:
            return path
    searched = []
    for place, paths in _candidates(uri, files if own else None):
        searched.append(place)
        for path in paths:
            if _hash(path) == sha256:
                return path
    other = (
        f"{named} is a different file, and " if named is not None and os.path.exists(named) else ""
    )
    install = (
        ", or install the version of cfqa-data that contains it" if uri.startswith(PACKAGE) else ""
    )
    if uri.startswith(HUB):
        repo, revision, file = hub_weights(uri)
        of = f" --revision {revision}" if revision else ""
        install = f", or get it: hf download {repo} {file or HUB_FILE}{of}"
    raise RecipeError(
        f"{uri}: {other}no file of SHA-256 {sha256} is in {', '.join(searched)}; put it into one "
        f"of these, or set {WEIGHTS_VARIABLE}=FILE{install}"
    )


def find_below_root(uri: str, sha256: str | None = None) -> Path | None:
    """Find a file or folder that a manifest names.

    The first existing path is returned, of: the path itself; the path, or the longest possible end
    of it, below ``CFQA_ROOT``; and the path remembered for the hash. None if none of them exists.
    """
    named, root = named_path(uri), os.environ.get(ROOT_VARIABLE)
    candidates = [] if named is None else [named]
    if root:
        parts = [part for part in re.split(r"[\\/]+", uri.removeprefix(ROOT)) if part.strip(".~")]
        candidates += [real_path(root).joinpath(*parts[start:]) for start in range(len(parts))]
    if sha256 and (path := remembered(sha256)):
        candidates.append(path)
    return next((path for path in candidates if os.path.exists(path)), None)


def named_path(uri: str) -> Path | None:
    """Return the local path that a URI names; None if it is malformed or not in the Hub's cache."""
    try:
        return hub_weights(uri).cached() if uri.startswith(HUB) else locate(uri).absolute()
    except CfqaError:
        return None


def _is_within(path: Path, files: Files | None) -> bool:
    root = files.root if files is not None else None
    return root is not None and real_path(path).is_relative_to(real_path(root))


def _hash(path: Path) -> str | None:
    """Return the hash of the weights at a path; None if there are none, or they cannot be read."""
    try:
        return hash_weights(path)
    except (BuildError, OSError, ValueError):
        return None


def _candidates(uri: str, files: Files | None) -> Iterator[tuple[str, Iterator[Path]]]:
    """Yield each place to search, in words, with its candidate files, the same name first."""
    name = re.split(r"[\\/]", uri.rstrip("\\/"))[-1]
    if uri.startswith(HUB) and not hub_weights(uri).file:
        name = HUB_FILE
    variable, root = os.environ.get(WEIGHTS_VARIABLE), os.environ.get(ROOT_VARIABLE)
    if variable:
        path = real_path(variable)
        candidates = _in(_with_subfolders(path), name) if path.is_dir() else iter([path])
        yield f"{WEIGHTS_VARIABLE} ({path})", candidates
    if files is not None and files.root is not None:
        yield files.location, _own(files, name)
    yield "this package", _in([Path(str(resources.files(p))) / OWN for p in SHIPPED], name)
    folders = _with_subfolders(real_path(root)) if root else []
    yield f"{ROOT_VARIABLE} ({root or 'not set'})", _in(folders, name)


def own_weights(files: Files, hashes: Collection[str]) -> set[Path]:
    """Return the real paths of the weights in a dataset folder: their files and folders.

    Args:
        files: Files of the dataset.
        hashes: Hashes of the weights, from :func:`hash_weights`.
    """
    return {
        Path(os.path.realpath(file))
        for path in _own(files)
        if _hash(path) in hashes
        for file in (path, *weight_files(path))
    }


def _own(files: Files, name: str | None = None) -> Iterator[Path]:
    """Yield candidate weights in a dataset folder and its subfolder `weights`.

    Candidates with links that lead out of the folder are skipped.
    """
    assert files.root is not None
    for path in _in([files.root, files.root / OWN], name):
        try:
            for file in (path, *weight_files(path)):
                files.path(file.relative_to(files.root).as_posix())
        except (BuildError, FormatError):
            continue
        yield path


def _in(folders: Iterable[Path], name: str | None) -> Iterator[Path]:
    """Yield the entries of folders with the suffix of `name` (or all), the same name first."""
    for folder in folders:
        for path in sorted(_entries(folder), key=lambda path: path.name != name):
            if name is None or path.suffix == Path(name).suffix:
                yield path


def _with_subfolders(folder: Path) -> list[Path]:
    return [folder, *(path for path in _entries(folder) if path.is_dir())]


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _record_path(sha256: str) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "cfqa-data" / "files" / sha256


def remember(sha256: str, path: Path) -> None:
    """Record the path of a file or folder by its hash in the user's cache; ignore failures."""
    with suppress(OSError, RuntimeError):
        write_text(_record_path(sha256), str(path.absolute()))


def remembered(sha256: str) -> Path | None:
    """Return the path recorded for a hash, if any; the file there may have changed since."""
    if re.fullmatch("[0-9a-f]{64}", sha256):  # an untrusted manifest may contain any text
        with suppress(OSError, RuntimeError, ValueError):
            return Path(_record_path(sha256).read_text(encoding="utf-8"))
    return None
