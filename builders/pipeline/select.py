"""Choosing a task's sources: the first candidates that fit, in the order the source gives them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from cfqa_data.builders.pipeline.plan import Item
from cfqa_data.builders.pipeline.tools import Models, Tools
from cfqa_data.builders.pipeline.workspace import write_json
from cfqa_data.errors import BuildError
from cfqa_data.storage import write_tensors
from cfqa_data.tasks import get_task

__all__ = ["PATIENCE", "fitting", "select"]

PATIENCE = 200
"""Candidates looked at per source wanted, before giving up."""


def select(tools: Tools, item: Item) -> None:
    """Write the truths of a task's sources, then their ids."""
    task, recipe = item.task, tools.plan.recipe
    samples = list(fitting(tools.models, task, recipe.sources_per_task))
    truths = {sample.source_id: np.asarray(sample.truth) for sample in samples}
    write_tensors(tools.layout.truth(task), truths)
    write_json(item.marker(tools.layout), [sample.source_id for sample in samples])


def fitting(models: Models, task: str, count: int, seed: int | None = None) -> Iterator[Any]:
    """Yield the first `count` samples that belong into a dataset.

    A source fits when it has the task's number of views. For classification, as published, also:
    no class comes twice, and the uncompressed feature is classified right.

    Args:
        models: the recipe's networks.
        task: name of the task.
        count: samples wanted.
        seed: seed of the source; the recipe's if None.

    Raises:
        BuildError: too few of the candidates fit.
    """
    import torch

    views = get_task(task).views
    classes: set[int] = set()
    found = seen = 0
    for sample in models.source(task, seed).candidates():
        if found == count:
            return
        if seen == PATIENCE * count:
            raise BuildError(
                f"{task}: only {found} of {seen} candidates fit, {count} are wanted: was the "
                "head trained on this source?"
            )
        seen += 1
        if len(sample.views) != views:
            continue
        if task == "cls":
            label = int(sample.truth)
            if label in classes:
                continue
            feature = torch.from_numpy(models.features(task, sample.views))
            if not models.head(task).correct(feature, sample.truth):
                continue
            classes.add(label)
        found += 1
        yield sample
    if found < count:
        raise BuildError(f"{task}: the source has only {found} sources that fit, {count} wanted")
