"""Choosing a task's sources: the first candidates that fit, in the order the source gives them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from cfqa_data.builders.pipeline.plan import Item
from cfqa_data.builders.pipeline.tools import Models, Tools
from cfqa_data.builders.pipeline.workspace import write_json
from cfqa_data.builders.sources.base import Sample
from cfqa_data.errors import BuildError
from cfqa_data.format.invariants import check_source_ids, check_truth
from cfqa_data.format.storage import write_tensors

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
        check_truth(
            tools.models.task(task).facts, truth.dtype.name, truth.ndim, f"the truth of {source_id}"
        )
    truths = dict(found)
    write_tensors(tools.layout.truth(task), truths)
    write_json(item.marker(tools.layout), list(truths))


def fitting(models: Models, task: str, count: int, seed: int | None = None) -> Iterator[Sample]:
    """Yield the first `count` samples that the task accepts.

    Args:
        models: the recipe's networks.
        task: name of the task.
        count: samples wanted.
        seed: seed of the source; the recipe's if None.

    Raises:
        BuildError: too few of the samples are accepted, or one is damaged.
    """
    accepted: list[Sample] = []
    passed: list[str] = []
    for seen, sample in enumerate(models.source(task, seed).samples()):
        if seen == PATIENCE * count:
            raise BuildError(
                f"{task}: only {len(accepted)} of {seen} candidates fit, {count} are wanted: was "
                "the head trained on this source?"
            )
        feature = partial(models.features, task, sample.inputs)
        try:
            why = models.task(task).accepts(feature, sample, accepted)
        except BuildError as error:
            raise BuildError(f"{sample.source_id}: {error}") from None
        if why:
            passed.append(f"{sample.source_id} ({why})")
            continue
        accepted.append(replace(sample, inputs=None))  # which may be large
        yield sample
        if len(accepted) == count:
            return
    more = [f"and {len(passed) - SHOWN} more"] if len(passed) > SHOWN else []
    told = f"; passed over: {', '.join(passed[:SHOWN] + more)}" if passed else ""
    raise BuildError(
        f"{task}: the source has only {len(accepted)} sources that fit, {count} wanted{told}"
    )
