"""Weights: the files behind a name, one hash over all of them, and where those of a hash are found.

Weights are a file, an index of safetensors shards as the Hub has them, a folder of either, or an
address `hf://org/name` on the Hub. Their
hash is the file's SHA-256; of several files, that of the lines which ``sha256sum`` prints of them,
sorted by name.
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
from cfqa_data.paths import exists, real_path

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
"""Packages with a folder of weights."""

OWN = "weights"
"""Folder of a package, or of a dataset, where weights may be put; no part of the dataset."""


def hash_weights(path: str | Path) -> str:
    """Return the SHA-256 of the weights at a path as hex: of every byte that is read as weights.

    Raises:
        BuildError: see :func:`weight_files`.
    """
    first, *others = files = weight_files(path)
    if not others:
        return hash_file(first)
    lines = (f"{hash_file(file)}  {file.name}\n" for file in sorted(files))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def resolve_weights(uri: str) -> Path:
    """Return the file of weights, or the index of their shards, that a recipe names.

    Those on the Hub are downloaded, if they are not in the cache.

    Raises:
        RecipeError: the name is malformed, or there is no such file.
        BuildError: it is a folder or an index without weights.
        HubError: they are on the Hub, and it cannot be reached or they may not be read.
    """
    if uri.startswith(HUB):
        return hub_weights(uri).fetch()[0]
    path = locate(uri)
    return weight_files(path if path.is_dir() else resolve(uri))[0]


def find_weights(
    uri: str, sha256: str | None, files: Files | None = None, *, own: bool = True
) -> Path:
    """Return the path of the weights that have a hash, whatever has become of their name.

    They are looked for where the URI says, where this machine built with them, in what
    ``CFQA_WEIGHTS`` names, in the dataset's own folder, in this package, and in the folder that
    ``CFQA_ROOT`` names.

    Args:
        uri: what the manifest calls them.
        sha256: their hash, as of :func:`hash_weights`.
        files: of the dataset.
        own: whether the dataset may bring its own weights, or name a path; an untrusted one may
            not, and only a URI of its manifest is used. Nothing is downloaded either way.

    Raises:
        RecipeError: there are none; says which hash was looked for, and where.
    """
    if not sha256 or not re.fullmatch("[0-9a-f]{64}", sha256):  # the manifest is untrusted
        raise RecipeError(f"{uri}: the manifest has no SHA-256 of it")
    named = named_path(uri) if own or is_uri(uri) else None
    for path in (named, remembered(sha256)):
        if path is not None and (own or not _is_within(path, files)) and _hash(path) == sha256:
            return path
    looked = []
    for place, paths in _places(uri, files if own else None):
        looked.append(place)
        for path in paths:
            if _hash(path) == sha256:
                return path
    other = f"{named} is a different file, and " if named is not None and exists(named) else ""
    install = (
        ", or install the version of cfqa-data that contains it" if uri.startswith(PACKAGE) else ""
    )
    if uri.startswith(HUB):
        repo, revision, file = hub_weights(uri)
        of = f" --revision {revision}" if revision else ""
        install = f", or get it: hf download {repo} {file or HUB_FILE}{of}"
    raise RecipeError(
        f"{uri}: {other}no file of SHA-256 {sha256} is in {', '.join(looked)}; put it into one of "
        f"these, or set {WEIGHTS_VARIABLE}=FILE{install}"
    )


def find_below_root(uri: str, sha256: str | None = None) -> Path | None:
    """Return a file or folder by the end of its path below ``CFQA_ROOT``, or where it was."""
    named, root = named_path(uri), os.environ.get(ROOT_VARIABLE)
    places = [] if named is None else [named]
    if root:
        parts = [part for part in re.split(r"[\\/]+", uri.removeprefix(ROOT)) if part.strip(".~")]
        places += [real_path(root).joinpath(*parts[start:]) for start in range(len(parts))]
    if sha256 and (path := remembered(sha256)):
        places.append(path)
    return next((place for place in places if exists(place)), None)


def named_path(uri: str) -> Path | None:
    """Return the path that a URI names, if it can be one on this machine."""
    try:
        return hub_weights(uri).cached() if uri.startswith(HUB) else locate(uri).absolute()
    except CfqaError:
        return None


def _is_within(path: Path, files: Files | None) -> bool:
    root = files.root if files is not None else None
    return root is not None and real_path(path).is_relative_to(real_path(root))


def _hash(path: Path) -> str | None:
    """Return the hash of the weights at a path, if there are any that can be read."""
    try:
        return hash_weights(path)
    except (BuildError, OSError, ValueError):
        return None


def _places(uri: str, files: Files | None) -> Iterator[tuple[str, Iterator[Path]]]:
    """Yield every place where weights may be, and the files there, those of the same name first."""
    name = re.split(r"[\\/]", uri.rstrip("\\/"))[-1]
    if uri.startswith(HUB) and not hub_weights(uri).file:
        name = HUB_FILE
    given, root = os.environ.get(WEIGHTS_VARIABLE), os.environ.get(ROOT_VARIABLE)
    if given:
        path = real_path(given)
        found = _in(_two_levels(path), name) if path.is_dir() else iter([path])
        yield f"{WEIGHTS_VARIABLE} ({path})", found
    if files is not None and files.root is not None:
        yield files.location, _own(files, name)
    yield "this package", _in([Path(str(resources.files(p))) / OWN for p in SHIPPED], name)
    below = _two_levels(real_path(root)) if root else []
    yield f"{ROOT_VARIABLE} ({root or 'not set'})", _in(below, name)


def own_weights(files: Files, hashes: Collection[str]) -> set[Path]:
    """Return the files and folders of the weights that a dataset brings itself, behind all links.

    Args:
        files: of the dataset.
        hashes: of the weights, as of :func:`hash_weights`.
    """
    return {
        Path(os.path.realpath(file))
        for path in _own(files)
        if _hash(path) in hashes
        for file in (path, *weight_files(path))
    }


def _own(files: Files, name: str | None = None) -> Iterator[Path]:
    """Yield weights in a dataset's folder, beside its files and in `weights`; no link leads out."""
    assert files.root is not None
    for path in _in([files.root, files.root / OWN], name):
        try:
            for file in (path, *weight_files(path)):
                files.path(file.relative_to(files.root).as_posix())
        except (BuildError, FormatError):
            continue
        yield path


def _in(folders: Iterable[Path], name: str | None) -> Iterator[Path]:
    """Yield what folders hold of the same kind as `name`, if any, and first what is called so."""
    for folder in folders:
        for path in sorted(_listed(folder), key=lambda path: path.name != name):
            if name is None or path.suffix == Path(name).suffix:
                yield path


def _two_levels(folder: Path) -> list[Path]:
    """Return a folder and the folders in it."""
    return [folder, *(path for path in _listed(folder) if path.is_dir())]


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _remembered_at(sha256: str) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "cfqa-data" / "files" / sha256


def remember(sha256: str, path: Path) -> None:
    """Remember where a file or folder is; failures are ignored."""
    with suppress(OSError, RuntimeError):
        write_text(_remembered_at(sha256), str(path.absolute()))


def remembered(sha256: str) -> Path | None:
    """Return the remembered path of a file or folder, which may have changed since."""
    if re.fullmatch("[0-9a-f]{64}", sha256):  # an untrusted manifest may contain any text
        with suppress(OSError, RuntimeError, ValueError):
            return Path(_remembered_at(sha256).read_text(encoding="utf-8"))
    return None
