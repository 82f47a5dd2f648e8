"""Features that a metric ranks most differently from the label or from another metric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cfqa_data.arrow import pa
from cfqa_data.console.summary import Described, Summary
from cfqa_data.console.text import WIDTH, table_text
from cfqa_data.errors import MetricError, unknown_name
from cfqa_data.eval.statistics import average_ranks

if TYPE_CHECKING:
    from cfqa_data.eval.results import Evaluation

__all__ = ["Disagreements", "find_disagreements", "largest_gaps"]

COLUMNS = (
    "task",
    "source_id",
    "codec",
    "level",
    "score",
    "other",
    "worse_than",
    "other_worse_than",
)

Floats = NDArray[np.float64]


@dataclass(frozen=True, repr=False)
class Disagreements(Described):
    """Features that a metric ranks differently from the label or from another metric.

    Attributes:
        table: One row per feature, the largest difference in rank first, at most one per source:
            ``task``, ``source_id``, ``codec``, ``level``, ``score``, ``other`` (the label or the
            score of the other metric), and ``worse_than`` and ``other_worse_than``, the percentage
            of the task's features that each of the two ranks as less distorted, ties counting
            half.
        metric: Name of the metric.
        other: Label column or name of the other metric.
    """

    table: pa.Table
    metric: str
    other: str

    def __str__(self) -> str:
        heads, *rows = self._rows()
        return table_text([heads, *rows], left=3, width=WIDTH)

    def _summary(self, rows: bool) -> Summary:
        title = f"Disagreements of {self.metric} and {self.other}"
        return Summary(title, {"features": self.table.num_rows}, self._rows() if rows else ())

    def _rows(self) -> list[list[str]]:
        worse = [f"percentile, by {self.metric}", f"by {self.other}"]
        rows = [["task", "source", "codec", "level", self.metric, self.other, *worse]]
        for row in self.table.to_pylist():
            shares = (f"{row[name]:.0f}%" for name in COLUMNS[-2:])
            figures = (f"{row[name]:.4g}" for name in ("score", "other"))
            rows.append([*(str(row[name]) for name in COLUMNS[:4]), *figures, *shares])
        return rows


def largest_gaps(
    one: Floats, other: Floats, sources: NDArray[Any], count: int
) -> list[tuple[int, float, float]]:
    """Return the points whose ranks in two series differ most, the largest difference first.

    Args:
        one: (n,) numbers; NaN where missing.
        other: (n,) numbers; NaN where missing.
        sources: (n,) source ids.
        count: Maximum number of points, at most one per source.

    Returns:
        For each point, its index and its percentile rank in either series: the percentage of points
        with a smaller number, ties counting half.
    """
    rows = np.flatnonzero(~np.isnan(one) & ~np.isnan(other))
    if not len(rows):
        return []
    x, y = (100 * (average_ranks(values[rows]) - 0.5) / len(rows) for values in (one, other))
    # A stable sort breaks ties by index, so that the result is deterministic.
    order = np.argsort(-np.abs(x - y), kind="stable")
    _, first = np.unique(sources[rows][order].astype(str), return_index=True)
    return [(int(rows[n]), float(x[n]), float(y[n])) for n in order[np.sort(first)[:count]]]


def find_disagreements(
    evaluation: Evaluation, metric: str, count: int, against: str | None
) -> Disagreements:
    """Find the features of all tasks: see `Evaluation.disagreements`."""
    if count < 1:
        raise MetricError(f"count must be at least 1, not {count}")
    labels, known = evaluation.labels, [one.name for one in evaluation.metrics]

    def series(name: str | None) -> tuple[Floats, float]:
        """Return the scores of a metric, or the label, and their sign if larger is worse."""
        if name is None:
            return labels[evaluation.target].to_numpy().astype(np.float64), 1.0
        if name not in known:
            raise MetricError(unknown_name("metric", name, known))
        column = known.index(name)
        sign = -1.0 if evaluation.metrics[column].lower_better is False else 1.0
        return evaluation.values[:, column], sign

    (scores, sign), (others, other_sign) = series(metric), series(against)
    tasks, sources = (np.array(labels[name].to_pylist(), object) for name in ("task", "source_id"))
    items = []
    for task in dict.fromkeys(tasks.tolist()):
        rows = np.flatnonzero(tasks == task)
        oriented = sign * scores[rows], other_sign * others[rows]
        for index, *percentiles in largest_gaps(*oriented, sources[rows], count):
            row = int(rows[index])
            items.append((row, float(scores[row]), float(others[row]), *percentiles))
    items = sorted(items, key=lambda item: -abs(item[3] - item[4]))[:count]
    table = labels.select(list(COLUMNS[:4])).take(pa.array([row for row, *_ in items], pa.int64()))
    for field, name in enumerate(COLUMNS[4:], 1):
        table = table.append_column(name, pa.array([item[field] for item in items], pa.float64()))
    return Disagreements(table, metric, evaluation.target if against is None else against)
