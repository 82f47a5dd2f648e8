"""What is looked at before anything is written: encoders, weights and space."""

from __future__ import annotations

import shutil

from cfqa_data.builders.pipeline.plan import Item, Plan
from cfqa_data.builders.pipeline.tools import codec_for
from cfqa_data.errors import BuildError, CfqaError
from cfqa_data.layout import Layout
from cfqa_data.manifest import hash_file, package_versions
from cfqa_data.recipe import Recipe
from cfqa_data.resources import resolve

__all__ = ["check_space", "make_plan"]

_LEAST_SHARE = {"full": 1 / 10, "light": 1 / 40}
"""Least share of the float32 size of all features that a finished folder is expected to take."""


def make_plan(recipe: Recipe, tier: str) -> Plan:
    """Return the plan of a recipe on this machine's software and weights.

    Raises:
        BuildError: an encoder or a weights file that the recipe needs is not there.
    """
    versions = package_versions()
    uris = {recipe.backbone.weights, *(spec.head for spec in recipe.tasks.values())}
    for task, spec in recipe.tasks.items():
        for ladder in spec.ladders.values():
            try:
                found = codec_for(ladder).version()
            except CfqaError as error:
                raise BuildError(f"{task}, codec {ladder.codec}: {error}") from None
            found.pop("models", None)  # per task, and in the recipe
            versions |= {f"{ladder.codec} {what}": version for what, version in found.items()}
            uris |= {ladder.models} if ladder.models else set()
    try:
        weights = {uri: hash_file(resolve(uri)) for uri in sorted(uris)}
    except CfqaError as error:
        raise BuildError(f"recipe {recipe.name!r}: {error}") from None
    return Plan(recipe, tier, versions, weights)


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
