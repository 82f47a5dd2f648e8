"""Names of files that mean the same on every machine, in place of paths of one.

A manifest names what its recipe was made with by ``package://`` or ``root://``, and its SHA-256.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from cfqa_data.errors import FormatError
from cfqa_data.format.manifest import Manifest
from cfqa_data.format.resources import ROOT, is_uri
from cfqa_data.recipe.load import Ladder, Recipe

__all__ = [
    "check_portable",
    "is_local",
    "is_local_path",
    "local_options",
    "portable",
    "portable_names",
    "rename",
]

LOCAL = re.compile(r"[/\\~]|\.\.?[/\\]|[A-Za-z]:[/\\]|file:", re.I)
"""How a path of one machine begins: absolute, in a home or the working directory, on a drive, or as
an address of one."""

BARE = re.compile(r"(?!\.+$)[^/\\:~][^/\\:]*")
"""A name that is no path."""

FILE_KEYS = re.compile(r"[\w-]*file|scaling-?list|analysis-(save|load)|csv|stats", re.I)
"""Parameters of encoders whose value is a file's name, unless it is one of :data:`NO_FILE`."""

NO_FILE = ("", "0", "off", "none", "default")

TEXTS = ("name", "summary", "origin")
"""Keys of a recipe whose values are for people."""

COMMON = re.compile(r"model\.safetensors(\.index\.json)?")
"""File names that say nothing without their folder's."""


def is_local(text: str) -> bool:
    """Return whether a text, of whatever kind, begins as a path of one machine does."""
    return LOCAL.match(text) is not None


def is_local_path(uri: str) -> bool:
    """Return whether what a recipe names is a path of one machine, not a URI or a bare name."""
    return not (is_uri(uri) or BARE.fullmatch(uri))


def local_options(ladder: Ladder) -> list[tuple[str, str]]:
    """Return the options of a ladder's codec that name files, but for programs, and their values.

    No manifest says what these files hold, and they decide the bytes.
    """
    found = _texts("options", ladder.without_programs().options)
    return [(key, text) for key, text in found if _names_file(key.rpartition(".")[2], text)]


def _names_file(key: str, text: str) -> bool:
    """Whether an encoder that is given `key=text`, in a line of such with colons, opens a file."""
    for part in f"{key}={text}".split(":"):
        name, _, value = part.partition("=")
        if is_local(value or name) or (
            FILE_KEYS.fullmatch(name.replace("_", "-")) and value.lower() not in NO_FILE
        ):
            return True
    return False


def portable(recipe: Recipe) -> Recipe:
    """Return the recipe as a manifest holds it: without paths and programs of one machine."""
    names = portable_names(recipe)
    return recipe.without_programs().with_paths(lambda uri: names.get(uri, uri))


def portable_names(recipe: Recipe) -> dict[str, str]:
    """Return a name below ``root://`` for each path of one machine in a recipe.

    It is the last part of the path, or as many of its last parts as tell the paths apart.
    """
    parts = {
        path: [part for part in re.split(r"[\\/]", path) if part.strip(".~")] or ["root"]
        for path in recipe.paths
        if is_local_path(path)
    }
    counts = {path: 2 if COMMON.fullmatch(steps[-1]) else 1 for path, steps in parts.items()}
    while True:
        names = {path: ROOT + "/".join(parts[path][-counts[path] :]) for path in parts}
        taken = list(names.values())
        alike = [p for p in parts if taken.count(names[p]) > 1 and counts[p] < len(parts[p])]
        if not alike:
            return names
        for path in alike:
            counts[path] += 1


def rename(uri: str, names: Mapping[str, str]) -> str:
    """Return the other name of a file: one of `names`, or in or beside what one of them stands for.

    Args:
        uri: of the file.
        names: old name -> new name.
    """
    for old, new in names.items():
        if uri == old or uri.startswith(f"{old}/"):
            return new + uri[len(old) :]
    for old, new in names.items():
        folder = old.rpartition("/")[0]
        if uri.startswith(f"{folder}/") and new.startswith(ROOT):
            return ROOT + (new[len(ROOT) :].rpartition("/")[0] + uri[len(folder) :]).lstrip("/")
    return uri


def check_portable(where: object, manifest: Manifest) -> None:
    """See that a manifest names no place that only one machine has.

    Raises:
        FormatError: it does; names the first.
    """
    recipe = Recipe.from_dict(manifest.recipe)
    paths = {*recipe.paths, *manifest.weights}
    found = [*_texts("recipe", manifest.recipe)]
    found += [("weights", uri) for uri in manifest.weights]
    local = [
        (key, text)
        for key, text in found
        if (is_local_path(text) if text in paths else is_local(text))
    ]
    options = [
        (f"recipe.tasks.{task}.codecs.{codec}.{key}", text)
        for task, spec in recipe.tasks.items()
        for codec, ladder in spec.ladders.items()
        for key, text in local_options(ladder)
    ]
    if every := dict([*local, *options]):
        key, text = next(iter(every.items()))
        more = f" and {len(every) - 1} more" if len(every) > 1 else ""
        remedy = (
            "build it from a recipe without that option"
            if key in dict(options)
            else "build or import it again with this version, which writes name and SHA-256"
        )
        raise FormatError(
            f"{where}: its manifest names {text!r} ({key}){more}, which means nothing on another "
            f"machine; {remedy}"
        )


def _texts(where: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield every text in nested tables, with the keys that lead to it."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in TEXTS:
                yield from _texts(f"{where}.{key}", inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(where, inner)
