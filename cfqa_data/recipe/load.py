"""Load recipes from TOML files: those that ship with the package, and the user's own.

Paths in a recipe file are relative to the file. `extends = "mini"` starts from another recipe, or
from several. A loaded recipe contains only absolute paths and `package://` and `root://` URIs.
"""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import Any

from cfqa_data.errors import RecipeError, check_known, prefixed, unknown_name
from cfqa_data.format.layout import is_tool_file
from cfqa_data.format.limits import LARGEST_TEXT, parse_toml, read_limited
from cfqa_data.format.resources import HUB, ROOT_VARIABLE, is_uri, locate, resolve
from cfqa_data.paths import absolute_path, real_path
from cfqa_data.recipe.spec import (
    WEIGHT_KEYS,
    CodecSpec,
    Recipe,
    parts_of,
    path_locations,
    table_at,
    tables_at,
)

__all__ = [
    "CodecSpec",
    "Recipe",
    "classes_in",
    "list_recipes",
    "load_recipe",
]


def list_recipes() -> list[str]:
    """Return the names of the recipes that ship with the package."""
    names = (file.name for file in resources.files("cfqa_data.recipes").iterdir())
    recipes = (name for name in names if name.endswith(".toml") and not is_tool_file(name))
    return sorted(name.removesuffix(".toml") for name in recipes)


def load_recipe(name_or_path: str | Path | Recipe, *, fitted: bool = True) -> Recipe:
    """Return a recipe of the package, or one from a TOML file, with absolute paths.

    Args:
        name_or_path: A name as in :func:`list_recipes`, a path that ends in ``.toml``, or a recipe
            object, whose relative paths start from the working directory.
        fitted: Whether the k-means tables must exist; if False, ladders without tables are left
            out, as needed for fitting these.

    Raises:
        RecipeError: If there is no such recipe, or it is invalid.
    """
    if isinstance(name_or_path, Recipe):
        data = name_or_path.to_dict()
        _resolve_files(data, absolute_path(""), fitted)
        return Recipe.from_dict(data)
    path = _locate(name_or_path)
    with prefixed(path, RecipeError):
        return Recipe.from_dict(_read(path, seen=(), fitted=fitted))


def classes_in(name_or_path: str | Path) -> list[str]:
    """Return the names of the classes in a recipe's file without looking any of them up."""
    parts = parts_of(_read(_locate(name_or_path), seen=(), fitted=False))
    return [name for part in parts if isinstance(name := part.table.get(part.key), str)]


def _locate(name_or_path: object, base: Path | None = None) -> Path:
    """Return the file of a recipe; a relative path starts from ``base``."""
    text = str(name_or_path)
    if text.endswith(".toml"):
        path = absolute_path(text, base or "")
        if not os.path.isfile(path):
            raise RecipeError(f"{path}: no such recipe file")
        return path
    if text not in list_recipes():
        known = [*list_recipes(), "or a path ending in .toml"]
        raise RecipeError(unknown_name("recipe", text, known))
    return resolve(f"package://cfqa_data.recipes/{text}.toml")


def _read(path: Path, seen: tuple[Path, ...], fitted: bool) -> dict[str, Any]:
    """Return the data of a recipe file, merged with the recipes that it extends.

    Paths are absolute, and k-means tables are loaded.
    """
    with prefixed("not a readable TOML file", RecipeError, OSError, ValueError):
        data = parse_toml(read_limited(path, LARGEST_TEXT))
    _resolve_files(data, path.parent, fitted)
    extends, chain, merged = data.pop("extends", []), (*seen, path), dict[str, Any]()
    for name in extends if isinstance(extends, list) else [extends]:
        base = _locate(name, path.parent)
        if real_path(base) in map(real_path, chain):
            raise RecipeError(f"extends itself: {' -> '.join(p.name for p in (*chain, base))}")
        with prefixed(f"extends {base}", RecipeError):
            merged = _merge(merged, _read(base, chain, fitted))
    return _merge(merged, data)


def _resolve_files(data: dict[str, Any], base: Path, fitted: bool) -> None:
    """Make paths in a recipe file's data absolute and insert k-means tables, in place."""
    if fitted:
        _check_tables(data, base)
    for table, key in path_locations(data):
        if not is_uri(table[key]):
            table[key] = str(absolute_path(table[key], base))
    for name, task in tables_at(data, "tasks"):
        for codec, codec_spec in tables_at(task, "codecs"):
            quantizer = codec_spec.get("quantizer")
            if isinstance(quantizer, dict) and isinstance(quantizer.get("centers"), str):
                if fitted or os.path.isfile(locate(quantizer["centers"], base)):
                    quantizer["centers"] = _read_centers(quantizer["centers"], name, base)
                else:
                    del task["codecs"][codec]


def _check_tables(data: dict[str, Any], base: Path) -> None:
    """Check that the k-means tables exist.

    Raises:
        RecipeError: If both a table and another file are missing; the message lists all missing
            files.
    """
    weights = [table[key] for table, key in path_locations(data) if key in WEIGHT_KEYS.values()]
    quantizers = [table_at(part.table, "quantizer") for part in parts_of(data)]
    centers = _missing([quantizer.get("centers") for quantizer in quantizers], base)
    if centers and (missing := centers | _missing(weights, base)).keys() > centers.keys():
        under_root = (
            f"; set {ROOT_VARIABLE} to the folder that root:// stands for"
            if any(map(is_uri, missing))
            else ""
        )
        message = "; ".join(f"{uri}: no such file ({path})" for uri, path in missing.items())
        raise RecipeError(message + under_root)


def _missing(uris: list[Any], base: Path) -> dict[str, Path]:
    """Return the files that do not exist, with their paths."""
    local = [uri for uri in uris if isinstance(uri, str) and uri and not uri.startswith(HUB)]
    paths = {uri: locate(uri, base) for uri in local}
    return {uri: path for uri, path in paths.items() if not os.path.exists(path)}


def _read_centers(uri: str, task: str, base: Path) -> list[list[float]]:
    """Return the tensor ``task`` (C, 2**bits) of a safetensors file of k-means centres."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = resolve(uri, base)
    # safetensors raises AttributeError for bfloat16 and float8.
    errors = OSError, SafetensorError, TypeError, AttributeError
    with prefixed(f"{uri}: not a readable safetensors file", RecipeError, *errors):
        tables = load_file(path)
    check_known("table of centres", task, tables, RecipeError, uri)
    centers: list[list[float]] = tables[task].tolist()
    return centers


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return ``base`` updated by ``changes``; tables are merged, except quantisers."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and key != "quantizer":
            value = _merge(old, value)
        merged[key] = value
    return merged
