"""Features on which a metric and the label, or two metrics, disagree most in rank."""

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
    """Features that a metric ranks otherwise than the label, or another metric, does.

    Attributes:
        table: One row per feature, the largest difference in rank first, at most one of a source:
            ``task``, ``source_id``, ``codec``, ``level``, ``score``, ``other`` (the label, or the
            other metric's score), and ``worse_than`` and ``other_worse_than``, the percent of the
            task's features that each of the two takes for less damaged, ties counting half.
        metric: The metric.
        other: The label's column, or the other metric.
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
    """Return where two numbers rank points of a task most differently, the largest gap first.

    Args:
        one: (n,) numbers, NaN where there is none.
        other: (n,) numbers.
        sources: (n,) names.
        count: At most so many places, one of a source.

    Returns:
        The place, and the percent of the task's points whose number is smaller, ties counting half,
        by the one and by the other.
    """
    rows = np.flatnonzero(~np.isnan(one) & ~np.isnan(other))
    if not len(rows):
        return []
    mine, theirs = (100 * (average_ranks(of[rows]) - 0.5) / len(rows) for of in (one, other))
    # Ties are broken by place, so that the same input gives the same answer.
    order = np.argsort(-np.abs(mine - theirs), kind="stable")
    _, first = np.unique(sources[rows][order].astype(str), return_index=True)
    places = order[np.sort(first)[:count]]
    return [(int(rows[at]), float(mine[at]), float(theirs[at])) for at in places]


def find_disagreements(
    evaluation: Evaluation, metric: str, count: int, against: str | None
) -> Disagreements:
    """Find the features of all tasks: see `Evaluation.disagreements`."""
    if count < 1:
        raise MetricError(f"count must be at least 1, not {count}")
    labels, known = evaluation.labels, [one.name for one in evaluation.metrics]
    sides = [labels[evaluation.target].to_numpy().astype(np.float64)]
    harms = [sides[0]]
    for name in (metric, *([against] if against is not None else [])):
        if name not in known:
            raise MetricError(unknown_name("metric", name, known))
        column = known.index(name)
        sides.append(evaluation.values[:, column])
        falls = evaluation.metrics[column].lower_better is False
        harms.append(-sides[-1] if falls else sides[-1])
    other, this = (0, 1) if against is None else (2, 1)
    tasks, sources = (np.array(labels[name].to_pylist(), object) for name in ("task", "source_id"))
    found = []
    for task in dict.fromkeys(tasks.tolist()):
        rows = np.flatnonzero(tasks == task)
        ours, others = (harms[side][rows] for side in (this, other))
        for place, *shares in largest_gaps(ours, others, sources[rows], count):
            row = int(rows[place])
            found.append((row, float(sides[this][row]), float(sides[other][row]), *shares))
    found = sorted(found, key=lambda item: -abs(item[3] - item[4]))[:count]
    table = labels.select(list(COLUMNS[:4])).take(pa.array([row for row, *_ in found], pa.int64()))
    for place, name in enumerate(COLUMNS[4:], 1):
        table = table.append_column(name, pa.array([one[place] for one in found], pa.float64()))
    return Disagreements(table, metric, evaluation.target if against is None else against)
