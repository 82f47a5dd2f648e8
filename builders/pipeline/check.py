"""Check a recipe before a build writes anything, and hash the inputs that decide its bytes.

The weights, the lists that choose sources or state their truth, and the names and labels of a
folder of images are hashed. The images themselves are not.
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
from cfqa_data.builders.pipeline.fit import candidate_levels, check_fit
from cfqa_data.builders.pipeline.plan import Plan
from cfqa_data.builders.pipeline.preview import drawing_versions
from cfqa_data.builders.sources.base import Source
from cfqa_data.errors import BuildError, CfqaError, prefixed
from cfqa_data.format.manifest import hash_file, package_versions
from cfqa_data.format.resources import HUB, locate
from cfqa_data.recipe.fitted import AutoLevels
from cfqa_data.recipe.load import CodecSpec, Recipe
from cfqa_data.recipe.portable import local_options, replace_path
from cfqa_data.registry import naming_user_code

__all__ = ["hash_sources", "hash_uris", "make_plan", "packages_of", "pinned", "weights_of"]

PLANE = (64, 64)
"""Shape of the plane with which a codec is tried."""


def make_plan(recipe: Recipe, tier: str) -> Plan:
    """Return the plan of a recipe on this machine's software and weights.

    Raises:
        BuildError: If something that the recipe needs is missing or does not fit the rest. The
            message names all missing files, encoders and images.
    """
    models, where = Models(recipe), f"recipe {recipe.name!r}"
    problems: dict[str, list[str]] = {}  # place -> messages
    uris = weights_of(recipe)
    for uri in uris:
        with _collecting(problems, where):
            resolve_weights(uri)
    missing = len(problems)
    versions, packages = package_versions() | drawing_versions(), {}
    with _collecting(problems, where):
        packages = packages_of(models)
    for task, spec in recipe.tasks.items():
        for codec, codec_spec in spec.codecs.items():
            if missing and codec_spec.models:
                continue
            with _collecting(problems, f"{task}, codec {codec}"):
                versions |= versions_of(codec_spec)
    sources = {}
    for task in recipe.tasks:
        with _collecting(problems, where):
            sources[task] = models.source(task)
    if problems:
        raise BuildError("; ".join(f"{at}: {'; '.join(texts)}" for at, texts in problems.items()))
    with prefixed(where, BuildError), naming_user_code(BuildError):
        weights = hash_uris(uris) | hash_sources(recipe, sources)
        for task in recipe.tasks:
            _check_networks(models, task)
            check_fit(models, task)
    return Plan(recipe, tier, versions, weights, packages)


def packages_of(models: Models) -> dict[str, dict[str, str]]:
    """Return version and SHA-256 of each third-party package with a class that a recipe uses.

    Raises:
        CfqaError: If a class is missing, or the manifest would name it like a built-in one.
    """
    hashes: dict[tuple[str, str], set[str]] = {}  # (package, version) -> of top-level modules
    for registry, entry in models.classes():
        if entry.builtin:
            continue
        if (name := registry.recorded(entry.name)) in registry.builtin:
            raise BuildError(f"{entry.name} has the name {name!r} of a built-in {registry.kind}")
        hashes.setdefault((entry.package, entry.version), set()).add(entry.sha256)
    return {
        package: {"version": version, "sha256": _joined(modules)}
        for (package, version), modules in hashes.items()
    }


def _joined(hashes: set[str]) -> str:
    """Combine the hashes of a package's modules; the hash of a single module stays as it is."""
    if len(hashes) == 1:
        return next(iter(hashes))
    return hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest()


@contextmanager
def _collecting(problems: dict[str, list[str]], where: str) -> Iterator[None]:
    """Collect an error instead of raising it, so that all errors are reported at once."""
    try:
        with naming_user_code(BuildError):
            yield
    except CfqaError as error:
        if not any(str(error) in texts for texts in problems.values()):
            problems.setdefault(where, []).append(str(error))


def versions_of(codec_spec: CodecSpec) -> dict[str, str]:
    """Try a codec and return the versions of its software, by "CODEC NAME"."""
    for key, text in local_options(codec_spec):
        raise BuildError(
            f"{key} names a file, {text!r}, that a manifest cannot identify; remove the option"
        )
    codec = _tried(codec_spec)
    versions: Any = codec.version()
    if not isinstance(versions, Mapping) or not all(
        isinstance(text, str) for text in (*versions.keys(), *versions.values())
    ):
        raise BuildError(
            f"{type(codec).__name__}.version must return texts by name, got {versions!r:.200}"
        )
    package = {} if codec_spec.registered.builtin else {"package": codec_spec.registered.package}
    return {
        f"{codec_spec.codec} {name}": version
        for name, version in {**versions, **package}.items()
        if name != "models"  # models are specific to a task and recorded in the recipe
    }


def _tried(codec_spec: CodecSpec) -> Any:
    """Return a codec; if it works on planes, code a small plane at the first and last level."""
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
    levels = candidate_levels(codec_spec)
    known = getattr(codec, "lambdas", levels)
    if unknown := [level for level in levels if level not in known]:
        raise BuildError(f"{codec_spec.models} has no model for lambda {unknown[0]:g}")
    plane = np.full(PLANE, codec.peak // 2, codec.dtype)
    for level in (levels[0], levels[-1]):
        decoded = codec.decode(codec.encode(plane, level), plane.shape)
        check_decoded(codec, decoded, plane.shape, f"what {codec.name} decodes to at {level:g}")
    return codec


def _check_networks(models: Models, task: str) -> None:
    """Check that a task's blocks and head exist and match."""
    layers, last = models.backbone.layers, models.recipe.tasks[task].blocks[-1]
    if layers is not None and last >= layers:
        raise BuildError(f"tasks.{task}: no block {last}, the last is {layers - 1}")
    models.task(task)


def pinned(recipe: Recipe) -> Recipe:
    """Fetch all weights on the Hub and return the recipe with their commits in the URIs.

    Raises:
        CfqaError: If some weights do not exist, or cannot be reached.
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
    """Return the SHA-256 of weights by their URI.

    Raises:
        CfqaError: If some weights do not exist.
    """
    return {uri: hash_weights(resolve_weights(uri)) for uri in sorted(uris)}


def hash_sources(recipe: Recipe, sources: Mapping[str, Source]) -> dict[str, str]:
    """Hash what decides which images the sources return, and with which truth.

    Args:
        recipe: Recipe of the sources.
        sources: Task -> source.

    Returns:
        Name -> SHA-256. The name of a list is its URI, or one derived from the option whose file
        or folder contains it; the name of the images' names and labels is the URI of their root.
    """
    hashes: dict[str, str] = {}
    values_by_root: dict[str, list[Any]] = {}  # root -> values of all tasks with images below it
    paths = recipe.paths
    for task, source in sources.items():
        options = recipe.tasks[task].source.options
        uris = [str(value) for value in options.values() if value in paths]
        names = {locate(uri).as_posix(): uri for uri in uris}
        files, values = source.decides()
        for path in files:
            hashes[replace_path(path.as_posix(), names)] = hash_file(path)
        if values is not None:
            root = str(options.get("root", f"tasks.{task}.source"))
            values_by_root.setdefault(root, []).append(values)
    for root, lists in values_by_root.items():
        text = json.dumps(lists if len(lists) > 1 else lists[0])
        hashes.setdefault(root, hashlib.sha256(text.encode()).hexdigest())
    return hashes
