"""What is looked at before anything is written: networks, sources, encoders and space."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from cfqa_data.access.weights import resolve_weights
from cfqa_data.builders.pipeline.inputs import hash_sources, hash_uris, weights_of
from cfqa_data.builders.pipeline.plan import Item, Plan
from cfqa_data.builders.pipeline.tools import Models, Tools, codec_for
from cfqa_data.errors import BuildError, CfqaError, FormatError
from cfqa_data.format.invariants import check_source_ids
from cfqa_data.format.layout import Layout
from cfqa_data.format.manifest import package_versions
from cfqa_data.recipe.load import Ladder, Recipe, TaskSpec
from cfqa_data.recipe.portable import local_options

__all__ = ["check_selection", "check_space", "make_plan"]

_PLANE = (64, 64)

_LEAST_SHARE = {"full": 1 / 10, "light": 1 / 40}
"""Least share of the float32 size of all features that a finished folder is expected to take."""


def make_plan(recipe: Recipe, tier: str) -> Plan:
    """Return the plan of a recipe on this machine's software and weights.

    Raises:
        BuildError: something that the recipe needs is not there, or does not fit the rest; files,
            encoders and images that are missing are all named.
    """
    versions, models = package_versions(), Models(recipe)
    ladders = [(task, x) for task, spec in recipe.tasks.items() for x in spec.ladders.values()]
    uris = weights_of(recipe)
    troubles: dict[str, list[str]] = {}  # where -> what is wrong
    for uri in uris:
        with _noting(troubles, f"recipe {recipe.name!r}"):
            resolve_weights(uri)
    missing = len(troubles)
    for task, ladder in ladders:
        if missing and ladder.models:
            continue
        with _noting(troubles, f"{task}, codec {ladder.codec}"):
            for key, text in local_options(ladder):
                raise BuildError(
                    f"{key} names a file, {text!r}, whose bytes no manifest can tell; leave it out"
                )
            found = _rehearsed(ladder).version()
            found.pop("models", None)  # per task, and in the recipe
            versions |= {f"{ladder.codec} {what}": version for what, version in found.items()}
    sources = {}
    for task in recipe.tasks:
        with _noting(troubles, f"recipe {recipe.name!r}"):
            sources[task] = models.source(task)
    if troubles:
        raise BuildError(
            "; ".join(f"{where}: {'; '.join(told)}" for where, told in troubles.items())
        )
    try:
        weights = hash_uris(uris) | hash_sources(recipe, sources)
        for task, spec in recipe.tasks.items():
            _check_networks(models, task, spec)
    except CfqaError as error:
        raise BuildError(f"recipe {recipe.name!r}: {error}") from None
    return Plan(recipe, tier, versions, weights)


@contextmanager
def _noting(troubles: dict[str, list[str]], where: str) -> Iterator[None]:
    """Note what is wrong instead of ending, so that all of it can be told at once."""
    try:
        yield
    except CfqaError as error:
        if not any(str(error) in told for told in troubles.values()):
            troubles.setdefault(where, []).append(str(error))


def _rehearsed(ladder: Ladder) -> Any:
    """Return a ladder's codec after it coded a small plane at its first and last level."""
    codec = codec_for(ladder)
    if ladder.quantizer.dtype != codec.dtype or (1 << ladder.quantizer.bits) - 1 > codec.peak:
        raise BuildError(
            f"codes of {ladder.quantizer.bits} bits do not fit: it takes 0..{codec.peak}"
        )
    known = getattr(codec, "lambdas", ladder.levels)
    if unknown := [level for level in ladder.levels if level not in known]:
        raise BuildError(f"{ladder.models} has no model for lambda {unknown[0]:g}")
    plane = np.full(_PLANE, codec.peak // 2, codec.dtype)
    for level in (ladder.levels[0], ladder.levels[-1]):
        codec.decode(codec.encode(plane, level), plane.shape)
    return codec


def _check_networks(models: Models, task: str, spec: TaskSpec) -> None:
    """See that a task's blocks and head are there and fit each other."""
    layers = models.backbone.layers
    if layers is not None and spec.blocks[-1] >= layers:
        raise BuildError(f"tasks.{task}: no block {spec.blocks[-1]}, the last is {layers - 1}")
    models.task(task)


def check_selection(plan: Plan, layout: Layout) -> None:
    """See that no two selected sources have the same id, of whichever tasks they are.

    Where they have, and nothing was extracted yet, the selection is removed: it is to be made anew
    once images are renamed.

    Raises:
        BuildError: they have; the id and its tasks are named.
    """
    items, tools = plan.items("select"), Tools(plan, layout)
    try:
        check_source_ids({item.task: tools.source_ids(item.task) for item in items})
    except FormatError as error:
        if not any(item.marker(layout).exists() for item in plan.items("extract")):
            for folder in (items[0].marker(layout).parent, layout.truth("").parent):
                shutil.rmtree(folder)
        raise BuildError(f"{layout.root}: {error}") from None


def check_space(plan: Plan, layout: Layout, todo: list[Item]) -> None:
    """See that what remains to compress can fit, judged by the size of the originals.

    Raises:
        BuildError: there is surely not enough room.
    """
    needed = 0.0
    for item in todo:
        originals = layout.originals(item.task, item.group, plan.groups).stat().st_size
        levels = len(plan.recipe.tasks[item.task].ladders[item.codec].levels)
        needed += originals * levels * _LEAST_SHARE[plan.tier]
    free = shutil.disk_usage(layout.root).free
    if free < needed:
        raise BuildError(
            f"{layout.root}: no space: {free / 1e6:.0f} MB are free and the {plan.tier} tier needs "
            f"about {needed / 1e6:.0f} MB more; make room and run the same command again"
        )
