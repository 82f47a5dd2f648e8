"""Replace local paths in a recipe by names that mean the same on every machine.

A manifest names the files of its recipe by ``package://`` or ``root://`` and their SHA-256.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

from cfqa_data.codecs import CODECS
from cfqa_data.codecs.options import is_local, named_files, scalars
from cfqa_data.errors import CfqaError, FormatError
from cfqa_data.format.manifest import Manifest
from cfqa_data.format.resources import ROOT, is_uri
from cfqa_data.recipe.load import CodecSpec, Recipe
from cfqa_data.recipe.spec import SOURCE_PATHS, WEIGHT_KEYS, parts_of, table_at
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
    "replace_path",
]

BARE_NAME = re.compile(r"(?!\.+$)[^/\\:~][^/\\:]*")
"""Matches a name that is not a path."""

PATH_KEYS = (*WEIGHT_KEYS.values(), *SOURCE_PATHS)
"""Keys of a recipe whose values are paths."""

TEXT_KEYS = ("name", "summary", "origin")
"""Keys of a recipe whose values are descriptions."""

COMMON_NAMES = re.compile(r"model\.safetensors(\.index\.json)?")
"""Matches file names that are only unique together with their folder's name."""


def is_local_path(uri: str) -> bool:
    """Return whether a name in a recipe is a local path, not a URI or a bare name."""
    return not (is_uri(uri) or BARE_NAME.fullmatch(uri))


def local_options(codec_spec: CodecSpec) -> list[tuple[str, str]]:
    """Return the options of a codec that name files, except programs, with their values.

    These files affect the bitstreams, but no manifest has their hashes.
    """
    return named_files(codec_spec.registered.target, codec_spec.options, codec_spec.weights)


def portable(recipe: Recipe) -> Recipe:
    """Return the recipe without local paths and programs."""
    names = portable_names(recipe)
    return recipe.without_programs().with_paths(lambda uri: names.get(uri, uri))


def recorded_recipe(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as stored in a manifest: portable, and without `module:Class`."""
    data = portable(recipe).to_dict()
    for kind, _, table, key, _ in parts_of(data):
        if key in table:
            table[key] = Registry(kind, {}, FormatError).recorded(table[key])
    return data


def recipe_of(manifest: Manifest, plugins: Sequence[str] = ()) -> Recipe:
    """Return the recipe of a manifest, with the classes of plugins inserted.

    Args:
        manifest: A manifest, possibly untrusted: its names are looked up among built-in classes,
            installed entry points and plugins only.
        plugins: `module:Class` of further classes.

    Raises:
        FormatError: If there is no valid recipe, a class is unknown, or an option names a file
            without a hash in the manifest.
    """
    registry = Registry("plugin", {}, FormatError)
    plugin_classes = {own_name(registry.find(text, classes=True).target): text for text in plugins}
    data = copy.deepcopy(dict(manifest.recipe))
    if not data.keys() >= {"name", "group_size", "backbone", "tasks"}:  # of an imported dataset
        raise FormatError("recipe: the manifest's recipe cannot rebuild this dataset")
    try:
        for part in parts_of(data):
            name = str(part.name)
            if ":" in name:
                raise FormatError(f"{name!r} is not a name of a {part.kind} in a manifest")
            if name in plugin_classes:
                part.table[part.key] = plugin_classes[name]
        recipe = Recipe.from_dict(data).check_numbers()
    except CfqaError as error:
        raise FormatError(f"recipe: {error}{remedy(manifest)}") from None
    for part in parts_of(recipe.to_dict()):
        builtin = CODECS.builtin if part.kind == "codec" else {}
        try:
            entry = Registry(part.kind, builtin, FormatError).find(part.name, classes=True)
        except CfqaError:  # built-in classes only take weights, which have hashes, and image roots
            continue
        options = table_at(part.table, "options")
        for key, text in named_files(entry.target, options, manifest.weights):
            raise FormatError(
                f"recipe: {part.where}.{key} names a file, {text!r}, without a SHA-256 in the "
                "manifest"
            )
    return recipe


def remedy(manifest: Manifest) -> str:
    """Return advice, to be appended to a message, if a class is not found; "" if there is none."""
    names = ", ".join(f"{name} {p['version']}".strip() for name, p in manifest.packages.items())
    return f"; install {names}, or name its classes by --plugin module:Class" if names else ""


def portable_names(recipe: Recipe) -> dict[str, str]:
    """Return a name below ``root://`` for each local path in a recipe.

    It consists of the last component of the path, or of as many as are needed to distinguish paths.
    """
    parts = {
        path: [part for part in re.split(r"[\\/]", path) if part.strip(".~")] or ["root"]
        for path in recipe.paths
        if is_local_path(path)
    }
    counts = {path: 2 if COMMON_NAMES.fullmatch(steps[-1]) else 1 for path, steps in parts.items()}
    while True:
        names = {path: ROOT + "/".join(parts[path][-counts[path] :]) for path in parts}
        values = list(names.values())
        ambiguous = [p for p in parts if values.count(names[p]) > 1 and counts[p] < len(parts[p])]
        if not ambiguous:
            return names
        for path in ambiguous:
            counts[path] += 1


def replace_path(uri: str, names: Mapping[str, str]) -> str:
    """Return a path with the new name of the file, of its folder, or of a file in that folder.

    Args:
        uri: The path.
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
    """Check that a manifest contains no local paths.

    Raises:
        FormatError: If it does; the message names the first.
    """
    values = [*scalars("recipe", manifest.recipe, TEXT_KEYS)]
    local = [
        (key, text)
        for key, text in [*values, *(("weights", uri) for uri in manifest.weights)]
        if isinstance(text, str)
        and (is_local_path if key.rpartition(".")[2] in PATH_KEYS else is_local)(text)
    ]
    options = [
        (f"recipe.{part.where}.{key}", text)
        for part in parts_of(manifest.recipe)
        if part.kind == "codec"
        for key, text in named_files(None, table_at(part.table, "options"), manifest.weights)
    ]
    if problems := dict([*local, *options]):
        key, text = next(iter(problems.items()))
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        remedy = (
            "build it from a recipe without that option"
            if key in dict(options)
            else "build or import it again with this version, which writes name and SHA-256"
        )
        raise FormatError(
            f"{where}: its manifest names {text!r} ({key}){more}, which is specific to one "
            f"machine; {remedy}"
        )
