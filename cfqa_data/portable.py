"""Names of files that mean the same on every machine, in place of paths of one.

A manifest names what its recipe was made with by ``package://`` or ``root://``, and its SHA-256.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from cfqa_data.errors import FormatError
from cfqa_data.manifest import Manifest
from cfqa_data.recipe import Recipe
from cfqa_data.resources import ROOT

__all__ = ["check_portable", "is_local", "portable", "portable_names", "rename"]

LOCAL = re.compile(r"[/\\~]|[A-Za-z]:[/\\]|file:", re.I)
"""How a path of one machine begins: absolute, in a home, on a drive, or as an address of one."""

TEXTS = ("name", "summary", "origin")
"""Keys of a recipe whose values are for people."""

COMMON = re.compile(r"model\.safetensors(\.index\.json)?")
"""File names that say nothing without their folder's."""


def is_local(text: str) -> bool:
    """Return whether a text names a place that only one machine has."""
    return LOCAL.match(text) is not None


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
        if is_local(path)
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
    found = [*_texts("recipe", manifest.recipe.to_dict())]
    found += [("weights", uri) for uri in manifest.weights]
    local = [(key, text) for key, text in found if is_local(text)]
    if local:
        key, text = local[0]
        more = f" and {len(local) - 1} more" if len(local) > 1 else ""
        raise FormatError(
            f"{where}: its manifest names {text!r} ({key}){more}, which means nothing on another "
            "machine; build or import it again with this version, which writes name and SHA-256"
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
