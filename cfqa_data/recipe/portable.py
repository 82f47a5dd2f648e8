"""Replace local paths in a recipe by names that mean the same on every machine.

A manifest names what its recipe was made with by ``package://`` or ``root://``, and its SHA-256.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cfqa_data.codecs import CODECS
from cfqa_data.codecs.options import is_local, named_files
from cfqa_data.errors import CfqaError, FormatError
from cfqa_data.format.manifest import Manifest
from cfqa_data.format.resources import ROOT, is_uri
from cfqa_data.recipe.load import CodecSpec, Recipe
from cfqa_data.recipe.spec import FILES, SOURCE_PATHS, parts_of, table_at
from cfqa_data.registry import Registry, own_name

__all__ = [
    "check_portable",
    "is_local",
    "is_local_path",
    "local_options",
    "portable",
    "portable_names",
    "recipe_of",
    "recorded_recipe",
    "remedy",
    "rename",
]

BARE = re.compile(r"(?!\.+$)[^/\\:~][^/\\:]*")
"""A name that is no path."""

PATH_KEYS = (*FILES.values(), *SOURCE_PATHS)
"""Keys of a recipe whose values are paths."""

TEXTS = ("name", "summary", "origin")
"""Keys of a recipe whose values are for people."""

COMMON = re.compile(r"model\.safetensors(\.index\.json)?")
"""File names that say nothing without their folder's."""


def is_local_path(uri: str) -> bool:
    """Return whether a name in a recipe is a path of one machine, not a URI or a bare name."""
    return not (is_uri(uri) or BARE.fullmatch(uri))


def local_options(codec_spec: CodecSpec) -> list[tuple[str, str]]:
    """Return the options of a codec that name files, except programs, with their values.

    No manifest says what these files hold, and they decide the bytes.
    """
    return named_files(codec_spec.registered.target, codec_spec.options, codec_spec.weights)


def portable(recipe: Recipe) -> Recipe:
    """Return the recipe without paths and programs of one machine."""
    names = portable_names(recipe)
    return recipe.without_programs().with_paths(lambda uri: names.get(uri, uri))


def recorded_recipe(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as a manifest holds it: portable, and without any `module:Class`."""
    data = portable(recipe).to_dict()
    for kind, _, table, key, _ in parts_of(data):
        if key in table:
            table[key] = Registry(kind, {}, FormatError).recorded(table[key])
    return data


def recipe_of(manifest: Manifest, plugins: Sequence[str] = ()) -> Recipe:
    """Return the recipe of a manifest, with the classes of plugins in their places.

    Args:
        manifest: Of anybody: what it names is looked up among built-in classes, installed entry
            points and plugins.
        plugins: `module:Class` of what may take part too.

    Raises:
        FormatError: If it is none, a codec of it is not known here, or an option of one names a
            file that the manifest has no hash of.
    """
    registry = Registry("plugin", {}, FormatError)
    named = {own_name(registry.find(text, classes=True).target): text for text in plugins}
    data = copy.deepcopy(dict(manifest.recipe))
    if not data.keys() >= {"name", "group_size", "backbone", "tasks"}:  # of another kind
        raise FormatError("recipe: the manifest's recipe cannot rebuild this dataset")
    try:
        for part in parts_of(data):
            name = str(part.name)
            if ":" in name:
                raise FormatError(f"{name!r} is not a name of a {part.kind} in a manifest")
            if name in named:
                part.table[part.key] = named[name]
        recipe = Recipe.from_dict(data).check_numbers()
    except CfqaError as error:
        raise FormatError(f"recipe: {error}{remedy(manifest)}") from None
    for part in parts_of(recipe.to_dict()):
        builtin = CODECS.builtin if part.kind == "codec" else {}
        try:
            found = Registry(part.kind, builtin, FormatError).find(part.name, classes=True)
        except CfqaError:  # built in: its paths are weights, which have hashes, and roots of images
            continue
        options = table_at(part.table, "options")
        for key, text in named_files(found.target, options, manifest.weights):
            raise FormatError(
                f"recipe: {part.where}.{key} names a file, {text!r}, without a SHA-256 in the "
                "manifest"
            )
    return recipe


def remedy(manifest: Manifest) -> str:
    """Return what helps where a class is not found, to be put behind an error; "" if nothing."""
    made = ", ".join(f"{name} {p['version']}".strip() for name, p in manifest.packages.items())
    return f"; install {made}, or name its classes by --plugin module:Class" if made else ""


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
        ambiguous = [p for p in parts if taken.count(names[p]) > 1 and counts[p] < len(parts[p])]
        if not ambiguous:
            return names
        for path in ambiguous:
            counts[path] += 1


def rename(uri: str, names: Mapping[str, str]) -> str:
    """Return the other name of a file: one of `names`, or in or beside what one of them stands for.

    Args:
        uri: Of the file.
        names: Old name -> new name.
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
    """Check that a manifest contains no path of one machine.

    Raises:
        FormatError: If it does; names the first.
    """
    found = [*_texts("recipe", manifest.recipe)]
    found += [("weights", uri) for uri in manifest.weights]
    local = [
        (key, text)
        for key, text in found
        if (is_local_path if key.rpartition(".")[2] in PATH_KEYS else is_local)(text)
    ]
    options = [
        (f"recipe.{part.where}.{key}", text)
        for part in parts_of(manifest.recipe)
        if part.kind == "codec"
        for key, text in named_files(None, table_at(part.table, "options"), manifest.weights)
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
            f"{where}: its manifest names {text!r} ({key}){more}, which is specific to one "
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
