"""Where a metric and the label disagree most: the compressed features to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cfqa_data.eval.report.figures import TaskPoints
from cfqa_data.eval.statistics import average_ranks

if TYPE_CHECKING:
    from cfqa_data.eval import Evaluation, Metric

__all__ = ["PER_TASK", "Disagreement", "disagreements", "task_points"]

PER_TASK = 4


@dataclass(frozen=True)
class Disagreement:
    """A compressed feature that a metric ranks otherwise than the label does.

    Attributes:
        row: Its place among the points of the task.
        task: The task.
        source: The source's id.
        codec: The codec.
        level: The level.
        score: What the metric says.
        truth: What the label says.
        by_metric: Percent of the task's features that the metric says are less damaged.
        by_label: Percent that the label says are.
    """

    row: int
    task: str
    source: str
    codec: str
    level: int
    score: float
    truth: float
    by_metric: float
    by_label: float

    @property
    def gap(self) -> float:
        """How much worse the metric takes it for, in percentage points."""
        return self.by_metric - self.by_label


def task_points(evaluation: Evaluation) -> list[TaskPoints]:
    """Take an evaluation apart by task."""
    labels = evaluation.labels
    values = evaluation.scores["value"].to_numpy().reshape(labels.num_rows, -1)
    tasks, codecs, sources = (
        np.array(labels[name].to_pylist(), object) for name in ("task", "codec", "source_id")
    )
    columns = {
        name: labels[name].to_numpy().astype(np.float64)
        for name in ("bpfp", "mse", evaluation.target)
        if name in labels.column_names
    }
    parts = []
    for task in dict.fromkeys(tasks.tolist()):
        rows = np.flatnonzero(tasks == task)
        known = tuple(dict.fromkeys(codecs[rows].tolist()))
        parts.append(
            TaskPoints(
                task=task,
                codecs=known,
                codec=np.array([known.index(codec) for codec in codecs[rows]]),
                source=sources[rows],
                level=labels["level"].to_numpy()[rows].astype(np.intp),
                truth=columns[evaluation.target][rows],
                rate=columns["bpfp"][rows] if "bpfp" in columns else None,
                error=columns["mse"][rows] if "mse" in columns else None,
                scores=values[rows],
            )
        )
    return parts


def disagreements(points: Sequence[TaskPoints], column: int, metric: Metric) -> list[Disagreement]:
    """Return the worst of each task, at most one a source, the worst of all first.

    Args:
        points: Of each task.
        column: The metric's.
        metric: The metric; where its direction is not declared, lower is taken for better.
    """
    found = []
    for part in points:
        sign = -1.0 if metric.lower_better is False else 1.0
        scored = np.flatnonzero(np.isfinite(part.scores[:, column]))
        by_metric, by_label = (
            100 * (average_ranks(values[None, scored])[0] - 0.5) / max(1, len(scored))
            for values in (sign * part.scores[:, column], part.truth)
        )
        seen: set[str] = set()
        # Ties are broken by place, so that the same input gives the same page.
        for place in np.argsort(-np.abs(by_metric - by_label), kind="stable").tolist():
            row = int(scored[place])
            if len(seen) == PER_TASK:
                break
            if part.source[row] not in seen:
                seen.add(part.source[row])
                found.append(
                    Disagreement(
                        row=row,
                        task=part.task,
                        source=part.source[row],
                        codec=part.codecs[part.codec[row]],
                        level=int(part.level[row]),
                        score=float(part.scores[row, column]),
                        truth=float(part.truth[row]),
                        by_metric=float(by_metric[place]),
                        by_label=float(by_label[place]),
                    )
                )
    return sorted(found, key=lambda item: -abs(item.gap))
