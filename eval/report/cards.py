"""The sections of the metrics: facts, figures per task, scatter plots and disagreements."""

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
"""Number of disagreements listed per task."""


class Disagreement(NamedTuple):
    """A compressed feature that a metric ranks differently from the label.

    Attributes:
        points: The features of its task.
        row: Index of the feature.
        score: Score of the metric.
        by_metric: Percentage of the task's features that the metric ranks as less distorted.
        by_label: Percentage that the label ranks as less distorted.
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
        """The target label."""
        return float(self.points.truth[self.row])

    @property
    def gap(self) -> float:
        """Difference of the percentiles; positive if the metric overestimates the distortion."""
        return self.by_metric - self.by_label


def cards(
    evaluation: Evaluation, ranked: Sequence[Ranked], points: Sequence[TaskPoints]
) -> list[dict[str, Any]]:
    """Return the template variables of each metric's section, in the order of the ranking.

    They are its entry in the ranking, the range and the provenance of its scores, a scatter plot
    and a plot over the levels per task, the number of missing scores per task, and its
    disagreements with the label, the largest first.
    """
    target, sections = evaluation.target, []
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
        sections.append(
            {
                "entry": entry,
                "rows": [row | areas[name, task] for task, row in entry.by_task.items()],
                "provenance": evaluation.provenance.get(name),
                "levels": [(part, drawn) for part, drawn in by_levels if drawn],
                "range": " to ".join(map(number_text, entry.metric.score_range)),
                "scatters": [(part, drawn) for part, drawn in scatters if drawn],
                "missing": {p.task: int(np.isnan(p.scores[:, column]).sum()) for p in points},
                "items": items,
            }
        )
    return sections


def disagreements(points: Sequence[TaskPoints], column: int, metric: Metric) -> list[Disagreement]:
    """Return the largest disagreements of each task, at most one per source, sorted by size.

    Args:
        points: The features of each task.
        column: Column of the metric in the scores.
        metric: The metric. Lower is assumed to be better if its direction is undeclared.
    """
    sign = -1.0 if metric.lower_better is False else 1.0
    result = []
    for part in points:
        scores = part.scores[:, column]
        for row, *percentiles in largest_gaps(sign * scores, part.truth, part.source, PER_TASK):
            result.append(Disagreement(part, row, float(scores[row]), *percentiles))
    return sorted(result, key=lambda item: -abs(item.gap))
