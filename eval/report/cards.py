"""The section of one metric: its facts, figures per task, scatter plots and outliers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cfqa_data.eval.report.axes import number_text
from cfqa_data.eval.report.figures import TaskPoints, scatter
from cfqa_data.eval.report.ranking import COEFFICIENTS, Figure, Ranked
from cfqa_data.eval.statistics import average_ranks

if TYPE_CHECKING:
    from cfqa_data.eval import Evaluation, Metric

__all__ = ["PER_TASK", "Disagreement", "cards", "disagreements"]

PER_TASK = 4
"""Disagreements of a task that are listed."""


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


def cards(
    evaluation: Evaluation, ranked: Sequence[Ranked], points: Sequence[TaskPoints]
) -> list[dict[str, Any]]:
    """Return what the page says of each metric, in the order of the ranking.

    That is its entry there, the range of its scores, figures and a scatter per task, and its
    disagreements with the label, the worst first.
    """
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in evaluation.across_codecs.to_pylist():
        rows.setdefault(row["metric"], []).append(row)
    made = []
    for entry in ranked:
        column, name = entry.number, entry.metric.name
        items = disagreements(points, column, entry.metric)
        scored = {part.task: ~np.isnan(part.scores[:, column]) for part in points}
        scatters = []
        for part in points:
            if scored[part.task].any():
                numbered = enumerate(items, 1)
                ringed = {i.row: str(place) for place, i in numbered if i.task == part.task}
                drawn = scatter(part, column, name, evaluation.target, ringed)
                scatters.append((part.task, drawn))
        figures = [
            {
                "task": row["task"],
                "within": {c: Figure.of(row, c) for c in COEFFICIENTS},
                "pooled": {c: Figure.of(row, f"pooled_{c}") for c in COEFFICIENTS},
                "mapped_plcc": Figure.of(row, "mapped_plcc"),
                "mapped_rmse": row["mapped_rmse"],
                "areas": entry.discrimination.get(row["task"], (None, None)),
                "flat": row["n_flat"],
                "missing": int((~scored[row["task"]]).sum()),
                "left_out": row["n_missing"],
            }
            for row in rows[name]
        ]
        span = " to ".join(map(number_text, entry.metric.score_range))
        card = {"entry": entry, "range": span, "figures": figures, "scatters": scatters}
        made.append(card | {"items": items})
    return made


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
        rows = np.flatnonzero(~np.isnan(part.scores[:, column]))
        if not len(rows):
            continue
        by_metric, by_label = (
            100 * (average_ranks(values[None])[0] - 0.5) / len(values)
            for values in (sign * part.scores[rows, column], part.truth[rows])
        )
        seen: set[str] = set()
        # Ties are broken by place, so that the same input gives the same page.
        for place in np.argsort(-np.abs(by_metric - by_label), kind="stable").tolist():
            row = int(rows[place])
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
