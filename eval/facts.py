"""What is known of the tasks that are scored: what their labels mean, what difference counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cfqa_data.format.facts import Loss, Score, TaskFacts
from cfqa_data.format.tasks import TASKS

__all__ = ["facts_of", "task_facts"]


def task_facts(dataset: Any) -> dict[str, TaskFacts]:
    """Return the facts that a dataset gives of its tasks, by name.

    Args:
        dataset: An open dataset. One in memory may have an attribute ``tasks``, a mapping of names
            to `TaskFacts`.
    """
    manifest = getattr(dataset, "manifest", None)
    if manifest is None:
        return dict(getattr(dataset, "tasks", {}))
    return {n: entry.facts for n, entry in manifest.tasks.items() if hasattr(entry, "facts")}


def facts_of(task: str, given: Mapping[str, TaskFacts]) -> TaskFacts:
    """Return the facts of a task; where none are given, what there is to assume.

    That is what format 1 says of a task of this name, or else a score and a loss without a unit, of
    which any difference counts.
    """
    if task in given:
        return given[task]
    if task in TASKS:
        first = TASKS[task]
        score = Score(
            first.score_name, first.score_lower_better, first.score_unit, first.noticeable
        )
        return TaskFacts(task, first.title, score, Loss(first.loss_name, "", first.noticeable_loss))
    return TaskFacts(task, task, Score("score", lower_better=True), Loss("loss"))
