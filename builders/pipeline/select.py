"""Choosing a task's sources: the first candidates that fit, in the order the source gives them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from cfqa_data.builders.pipeline.plan import Item
from cfqa_data.builders.pipeline.tools import Models, Tools
from cfqa_data.builders.pipeline.workspace import write_json
from cfqa_data.errors import BuildError
from cfqa_data.format.first import TASKS
from cfqa_data.format.invariants import check_source_ids, check_truth
from cfqa_data.format.storage import write_tensors
from cfqa_data.format.tasks import get_task

__all__ = ["PATIENCE", "fitting", "select"]

PATIENCE = 200
"""Candidates looked at per source wanted, before giving up."""

SHOWN = 5
"""Candidates that the error names when too few fit."""


def select(tools: Tools, item: Item) -> None:
    """Write the truths of a task's sources, then their ids.

    Raises:
        CfqaError: there are too few, two have the same id, or a truth is not of the task's kind.
    """
    task, recipe = item.task, tools.plan.recipe
    samples = fitting(tools.models, task, recipe.sources_per_task)
    found = [(sample.source_id, np.asarray(sample.truth)) for sample in samples]
    check_source_ids({task: [source_id for source_id, _ in found]})
    for source_id, truth in found:
        check_truth(TASKS[task], truth.dtype.name, truth.ndim, f"the truth of {source_id}")
    truths = dict(found)
    write_tensors(tools.layout.truth(task), truths)
    write_json(item.marker(tools.layout), list(truths))


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
        BuildError: too few of the candidates fit, or one is damaged.
    """
    import torch

    views = get_task(task).views
    classes: set[int] = set()
    passed: list[str] = []
    found = seen = 0
    for sample in models.source(task, seed).candidates():
        if seen == PATIENCE * count:
            raise BuildError(
                f"{task}: only {found} of {seen} candidates fit, {count} are wanted: was the "
                "head trained on this source?"
            )
        seen += 1
        if len(sample.views) != views:
            passed.append(f"{sample.source_id} (of {len(sample.views)} views)")
            continue
        if task == "cls":
            label = int(sample.truth)
            if label in classes:
                passed.append(f"{sample.source_id} (of class {label}, which there is already)")
                continue
            feature = torch.from_numpy(models.features(task, sample.views))
            if not _right(models.head(task), feature, sample):
                passed.append(f"{sample.source_id} (not classified right)")
                continue
            classes.add(label)
        found += 1
        yield sample
        if found == count:
            return
    more = [f"and {len(passed) - SHOWN} more"] if len(passed) > SHOWN else []
    told = f"; passed over: {', '.join(passed[:SHOWN] + more)}" if passed else ""
    raise BuildError(f"{task}: the source has only {found} sources that fit, {count} wanted{told}")


def _right(head: Any, feature: Any, sample: Any) -> bool:
    """Whether the head's answer to a sample's feature is the true one."""
    try:
        return bool(head.correct(feature, sample.truth))
    except BuildError as error:
        raise BuildError(f"{sample.source_id}: {error}") from None
