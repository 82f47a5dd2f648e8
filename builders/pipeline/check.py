"""Checks before a build writes anything, and hashes of what decides its bytes, except the images.

Hashed are the weights, the lists that choose sources or give their truth, and, of a folder of
images, the names in it and their labels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from cfqa_data.access.hub_weights import hub_weights
from cfqa_data.access.weights import hash_weights, resolve_weights
from cfqa_data.builders.pipeline.coding import check_decoded
from cfqa_data.builders.pipeline.context import Models, codec_for
from cfqa_data.builders.pipeline.fit import check_fit, choices
from cfqa_data.builders.pipeline.plan import Plan
from cfqa_data.builders.pipeline.preview import drawing_versions
from cfqa_data.builders.sources.base import Source
from cfqa_data.errors import BuildError, CfqaError, prefixed
from cfqa_data.format.manifest import hash_file, package_versions
from cfqa_data.format.resources import HUB, locate
from cfqa_data.recipe.fitted import AutoLevels
from cfqa_data.recipe.load import CodecSpec, Recipe
from cfqa_data.recipe.portable import local_options, rename
from cfqa_data.registry import naming_user_code

__all__ = ["hash_sources", "hash_uris", "make_plan", "packages_of", "pinned", "weights_of"]

PLANE = (64, 64)


def make_plan(recipe: Recipe, tier: str) -> Plan:
    """Return the plan of a recipe on this machine's software and weights.

    Raises:
        BuildError: Something that the recipe needs is not there, or does not fit the rest; files,
            encoders and images that are missing are all named.
    """
    models, where = Models(recipe), f"recipe {recipe.name!r}"
    troubles: dict[str, list[str]] = {}  # where -> what is wrong
    uris = weights_of(recipe)
    for uri in uris:
        with _noting(troubles, where):
            resolve_weights(uri)
    missing = len(troubles)
    versions, packages = package_versions() | drawing_versions(), {}
    with _noting(troubles, where):
        packages = packages_of(models)
    for task, spec in recipe.tasks.items():
        for codec, codec_spec in spec.codecs.items():
            if missing and codec_spec.models:
                continue
            with _noting(troubles, f"{task}, codec {codec}"):
                versions |= versions_of(codec_spec)
    sources = {}
    for task in recipe.tasks:
        with _noting(troubles, where):
            sources[task] = models.source(task)
    if troubles:
        raise BuildError(
            "; ".join(f"{where}: {'; '.join(problems)}" for where, problems in troubles.items())
        )
    with prefixed(where, BuildError), naming_user_code(BuildError):
        weights = hash_uris(uris) | hash_sources(recipe, sources)
        for task in recipe.tasks:
            _check_networks(models, task)
            check_fit(models, task)
    return Plan(recipe, tier, versions, weights, packages)  # checked


def packages_of(models: Models) -> dict[str, dict[str, str]]:
    """Return version and SHA-256 of each package beside this one that has a class of a recipe.

    Raises:
        CfqaError: A class is not there, or would be taken for a built-in one in the manifest.
    """
    hashes: dict[tuple[str, str], set[str]] = {}  # of the top-level modules of each package
    for registry, found in models.classes():
        if found.builtin:
            continue
        if (name := registry.recorded(found.name)) in registry.builtin:
            raise BuildError(f"{found.name} has the name {name!r} of a built-in {registry.kind}")
        hashes.setdefault((found.package, found.version), set()).add(found.sha256)
    return {
        package: {"version": version, "sha256": _joined(modules)}
        for (package, version), modules in hashes.items()
    }


def _joined(hashes: set[str]) -> str:
    """Return the hash of a package by those of its modules; of one module, it is that one's."""
    if len(hashes) == 1:
        return next(iter(hashes))
    return hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest()


@contextmanager
def _noting(troubles: dict[str, list[str]], where: str) -> Iterator[None]:
    """Collect an error instead of raising it, so that all errors are reported at once."""
    try:
        with naming_user_code(BuildError):
            yield
    except CfqaError as error:
        if not any(str(error) in problems for problems in troubles.values()):
            troubles.setdefault(where, []).append(str(error))


def versions_of(codec_spec: CodecSpec) -> dict[str, str]:
    """Try a codec and return the versions of its software."""
    for key, text in local_options(codec_spec):
        raise BuildError(
            f"{key} names a file, {text!r}, that a manifest cannot identify; remove the option"
        )
    codec = _rehearsed(codec_spec)
    found: Any = codec.version()
    if not isinstance(found, Mapping) or not all(
        isinstance(text, str) for text in (*found.keys(), *found.values())
    ):
        raise BuildError(
            f"{type(codec).__name__}.version must return texts by name, got {found!r:.200}"
        )
    package = {} if codec_spec.registered.builtin else {"package": codec_spec.registered.package}
    return {
        f"{codec_spec.codec} {what}": version
        for what, version in {**found, **package}.items()
        if what != "models"  # which are per task, and in the recipe
    }


def _rehearsed(codec_spec: CodecSpec) -> Any:
    """Return a codec; one on planes first codes a small plane at its first and last level."""
    codec, quantizer = codec_for(codec_spec), codec_spec.quantizer
    if quantizer is None:
        if hasattr(codec, "check_parameter") and not isinstance(codec_spec.levels, AutoLevels):
            for level in codec_spec.levels:
                codec.check_parameter(level)
        return codec
    for attribute, kind in (("dtype", np.dtype | type), ("peak", int)):
        if not isinstance(value := getattr(codec, attribute, None), kind):
            raise BuildError(
                f"{type(codec).__name__}.{attribute} must match its planes, got {value!r}"
            )
    if quantizer.dtype != codec.dtype or (1 << quantizer.bits) - 1 > codec.peak:
        raise BuildError(f"codes of {quantizer.bits} bits are too large: it takes 0..{codec.peak}")
    levels = choices(codec_spec)
    known = getattr(codec, "lambdas", levels)
    if unknown := [level for level in levels if level not in known]:
        raise BuildError(f"{codec_spec.models} has no model for lambda {unknown[0]:g}")
    plane = np.full(PLANE, codec.peak // 2, codec.dtype)
    for level in (levels[0], levels[-1]):
        decoded = codec.decode(codec.encode(plane, level), plane.shape)
        check_decoded(codec, decoded, plane.shape, f"what {codec.name} decodes to at {level:g}")
    return codec


def _check_networks(models: Models, task: str) -> None:
    """Check that a task's blocks and head exist and fit each other."""
    layers, last = models.backbone.layers, models.recipe.tasks[task].blocks[-1]
    if layers is not None and last >= layers:
        raise BuildError(f"tasks.{task}: no block {last}, the last is {layers - 1}")
    models.task(task)


def pinned(recipe: Recipe) -> Recipe:
    """Return the recipe with the commit of all weights on the Hub, which are fetched for that.

    Raises:
        CfqaError: Some are not there, or cannot be reached.
    """
    if not any(uri.startswith(HUB) for uri in recipe.paths):
        return recipe
    return recipe.with_paths(lambda uri: hub_weights(uri).pinned() if uri.startswith(HUB) else uri)


def weights_of(recipe: Recipe) -> list[str]:
    """Return the URIs of all weights of a recipe, sorted: backbone, heads, models of codecs."""
    uris = {recipe.backbone.weights, *(spec.head for spec in recipe.tasks.values())}
    for spec in recipe.tasks.values():
        uris.update(*(codec_spec.weights for codec_spec in spec.codecs.values()))
    return sorted(uri for uri in uris if uri)


def hash_uris(uris: Iterable[str]) -> dict[str, str]:
    """Return the hash of weights by their URI.

    Raises:
        CfqaError: Some are not there.
    """
    return {uri: hash_weights(resolve_weights(uri)) for uri in sorted(uris)}


def hash_sources(recipe: Recipe, sources: Mapping[str, Source]) -> dict[str, str]:
    """Return the hashes of what decides which images the sources give, and with which truth.

    Args:
        recipe: That the sources are of.
        sources: By task.

    Returns:
        Name -> SHA-256: of each list by its URI, or by that of the option that it lies in or
        beside; of the images' names and labels, by the URI of their root.
    """
    hashes: dict[str, str] = {}
    values_by_root: dict[str, list[Any]] = {}  # of all tasks with images below a root
    paths = recipe.paths
    for task, source in sources.items():
        options = recipe.tasks[task].source.options
        uris = [str(value) for value in options.values() if value in paths]
        names = {locate(uri).as_posix(): uri for uri in uris}
        files, values = source.decides()
        for path in files:
            hashes[rename(path.as_posix(), names)] = hash_file(path)
        if values is not None:
            root = str(options.get("root", f"tasks.{task}.source"))
            values_by_root.setdefault(root, []).append(values)
    for root, lists in values_by_root.items():
        text = json.dumps(lists if len(lists) > 1 else lists[0])
        hashes.setdefault(root, hashlib.sha256(text.encode()).hexdigest())
    return hashes
