"""The section of one metric: its facts, figures per task, scatter plots and outliers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cfqa_data.eval.disagreements import largest_gaps
from cfqa_data.eval.report.axes import number_text
from cfqa_data.eval.report.figures import TaskPoints, by_level, scatter
from cfqa_data.eval.report.ranking import Ranked

if TYPE_CHECKING:
    from cfqa_data.eval import Evaluation, Metric

__all__ = ["PER_TASK", "Disagreement", "cards", "disagreements"]

PER_TASK = 4
"""Disagreements of a task that are listed."""


class Disagreement(NamedTuple):
    """A compressed feature that a metric ranks otherwise than the label does.

    Attributes:
        points: The points of its task.
        row: Its place among them.
        score: What the metric says.
        by_metric: Percent of the task's features that the metric says are less damaged.
        by_label: Percent that the label says are.
    """

    points: TaskPoints
    row: int
    score: float
    by_metric: float
    by_label: float

    @property
    def version(self) -> tuple[str, str, int]:
        """Source, codec and level."""
        part, row = self.points, self.row
        return str(part.source[row]), part.codecs[part.codec[row]], int(part.level[row])

    @property
    def truth(self) -> float:
        """What the label says."""
        return float(self.points.truth[self.row])

    @property
    def gap(self) -> float:
        """How much worse the metric takes it for, in percentage points."""
        return self.by_metric - self.by_label


def cards(
    evaluation: Evaluation, ranked: Sequence[Ranked], points: Sequence[TaskPoints]
) -> list[dict[str, Any]]:
    """Return what the page says of each metric, in the order of the ranking.

    That is its entry there, the range of its scores, where these come from, a scatter and a figure
    of its levels per task, the number of scores that each task lacks, and its disagreements with
    the label, the worst first.
    """
    target, made = evaluation.target, []
    areas = {(row["metric"], row["task"]): row for row in evaluation.discrimination.to_pylist()}
    fits = {task.grid.task: task.whole.mapped for task in evaluation.cells().tasks}
    levels = defaultdict[tuple[str, str], list[dict[str, Any]]](list)
    for row in evaluation.per_level.to_pylist():
        levels[row["metric"], row["task"]].append(row)
    for entry in ranked:
        column = entry.number
        items = disagreements(points, column, entry.metric)
        scatters = []
        for part in points:
            ringed = {i.row: str(n) for n, i in enumerate(items, 1) if i.points is part}
            fit = fits[part.task][column].curve
            scatters.append((part, scatter(part, column, entry.metric.name, target, ringed, fit)))
        name = entry.metric.name
        by_levels = [(p, by_level(p, levels[name, p.task], name, target)) for p in points]
        made.append(
            {
                "entry": entry,
                "rows": [row | areas[name, task] for task, row in entry.by_task.items()],
                "made": evaluation.provenance.get(name),
                "levels": [(part, drawn) for part, drawn in by_levels if drawn],
                "range": " to ".join(map(number_text, entry.metric.score_range)),
                "scatters": [(part, drawn) for part, drawn in scatters if drawn],
                "missing": {p.task: int(np.isnan(p.scores[:, column]).sum()) for p in points},
                "items": items,
            }
        )
    return made


def disagreements(points: Sequence[TaskPoints], column: int, metric: Metric) -> list[Disagreement]:
    """Return the worst of each task, at most one a source, the worst of all first.

    Args:
        points: Of each task.
        column: The metric's.
        metric: The metric; where its direction is not declared, lower is taken for better.
    """
    sign = -1.0 if metric.lower_better is False else 1.0
    found = []
    for part in points:
        scores = part.scores[:, column]
        for row, *shares in largest_gaps(sign * scores, part.truth, part.source, PER_TASK):
            found.append(Disagreement(part, row, float(scores[row]), *shares))
    return sorted(found, key=lambda item: -abs(item.gap))
