"""Rank the metrics by how well they follow the label, with intervals, per task and overall."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cfqa_data.eval.report.axes import MINUS
from cfqa_data.eval.text import gaps

if TYPE_CHECKING:
    from cfqa_data.eval import Evaluation, Metric

__all__ = [
    "COEFFICIENTS",
    "Figure",
    "Ranked",
    "floor",
    "heat_maps",
    "left_out",
    "ranking",
    "signed",
]

COEFFICIENTS = {"srocc": "SROCC", "plcc": "PLCC", "krocc": "KROCC"}

ALL = "all codecs"

STEPS = 40
"""Colours of a heat map, in the style sheet."""

Row = Mapping[str, Any]


class Figure(NamedTuple):
    """A number with its 95% interval, their signs turned so that larger is better.

    Attributes:
        value: The number, or None.
        low: Lower bound, or None.
        high: Upper bound, or None.
    """

    value: float | None
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, row: Row, name: str) -> Figure:
        """Return a correlation of a row of statistics, oriented."""
        value, low, high = (row.get(name + end) for end in ("", "_low", "_high"))
        if row["lower_better"] is False:
            value, low, high = (None if v is None else -v for v in (value, high, low))
        return cls(value, low, high)

    @property
    def text(self) -> str:
        """The number with three decimals."""
        return signed(self.value)

    @property
    def interval(self) -> str:
        """The interval as text, empty without one."""
        if self.low is None or self.high is None:
            return ""
        return f"[{signed(self.low, 2)}, {signed(self.high, 2)}]"

    def colour(self, low: float) -> str:
        """Return its class in a heat map whose darkest colour is of ``low``."""
        if self.value is None:
            return "none"
        return f"v{min(STEPS - 1, max(0, int((self.value - low) / (1 - low) * STEPS)))}"


@dataclass(frozen=True)
class Ranked:
    """A metric in the ranking.

    Attributes:
        number: Place in the evaluation's order of metrics; it names the metric's part of the page.
        place: 1 for the first; None for a metric that is not ranked.
        gap: Where it lacks a figure that others have, in words, empty if nowhere; it is not ranked
            then, since its mean is over other sources than theirs.
        metric: The metric.
        missing: Compressed features without a score.
        overall: Its row over all tasks.
        by_task: By task, its row over all codecs, with its areas of discrimination.
    """

    number: int
    place: int | None
    gap: str
    metric: Metric
    missing: int
    overall: Row
    by_task: Mapping[str, Row]

    @property
    def better(self) -> str:
        """Which scores are better, in words."""
        return {True: "lower", False: "higher", None: "not declared"}[self.metric.lower_better]

    @property
    def beaten_by(self) -> int | None:
        """Metrics that are significantly better over all tasks, by SROCC; None if unknown."""
        found: int | None = self.overall["srocc_group"]
        return found


def ranking(evaluation: Evaluation) -> list[Ranked]:
    """Return the metrics, the best mean SROCC over all tasks first, those without one last.

    Those whose mean is over fewer sources than that of others follow, in their own order.
    """
    by_task: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in evaluation.across_codecs.to_pylist():
        by_task[row["metric"]][row["task"]] = row
    for row in evaluation.discrimination.to_pylist():
        by_task[row["metric"]][row["task"]] |= row
    lacking = gaps(evaluation)
    rows = {row["metric"]: row for row in evaluation.across_tasks.to_pylist()}

    def merit(numbered: tuple[int, Metric]) -> tuple[bool, float]:
        name = numbered[1].name
        value = Figure.of(rows[name], "srocc").value
        return name not in lacking, -np.inf if value is None else value

    ordered = sorted(enumerate(evaluation.metrics), key=merit, reverse=True)
    return [
        Ranked(
            number=number,
            place=None if metric.name in lacking else place,
            gap=lacking.get(metric.name, ""),
            metric=metric,
            missing=evaluation.labels.num_rows - rows[metric.name]["n_pooled"],
            overall=rows[metric.name],
            by_task=by_task[metric.name],
        )
        for place, (number, metric) in enumerate(ordered, 1)
    ]


def heat_maps(
    evaluation: Evaluation, ranked: Sequence[Ranked]
) -> tuple[list[tuple[str, list[str]]], list[dict[str, Any]]]:
    """Return the columns, (task, its codecs), and a map per coefficient.

    A task of several codecs has a last column for all of them together. A map has the ``name`` and
    ``title`` of its coefficient, the number of the darkest colour (``low``), whether a figure is
    missing (``blank``), and ``rows``: per metric, in the ranking's order, the entry of the ranking
    and its figures.
    """
    together = [row | {"codec": ALL} for row in evaluation.across_codecs.to_pylist()]
    codecs, cells = defaultdict[str, dict[str, None]](dict), {}
    for row in evaluation.correlations.to_pylist() + [r for r in together if r["codecs"] > 1]:
        codecs[row["task"]][row["codec"]] = None
        cells[row["task"], row["codec"], row["metric"]] = row
    columns = [(task, list(of_task)) for task, of_task in codecs.items()]
    places = [(task, codec) for task, of_task in columns for codec in of_task]
    maps = []
    for name, title in COEFFICIENTS.items():
        rows = [
            (entry, [Figure.of(cells[*place, entry.metric.name], name) for place in places])
            for entry in ranked
        ]
        low = floor(figure.value for _, figures in rows for figure in figures)
        blank = any(figure.value is None for _, figures in rows for figure in figures)
        maps.append({"name": name, "title": title, "low": low, "blank": blank, "rows": rows})
    return columns, maps


def left_out(evaluation: Evaluation) -> dict[tuple[str, str], dict[str, Figure]]:
    """Return the share of ordered pairs by task and codec, and there by metric."""
    found = defaultdict[tuple[str, str], dict[str, Figure]](dict)
    for row in evaluation.left_out.to_pylist():
        figure = Figure(row["pairs"], row["pairs_low"], row["pairs_high"])
        found[row["task"], row["codec"]][row["metric"]] = figure
    return found


def signed(value: float | None, digits: int = 3) -> str:
    """Return a number with a true minus sign, or a dash for none."""
    if value is None:
        return "\u2013"
    text = f"{abs(value):.{digits}f}"
    return f"{MINUS}{text}" if value < 0 and float(text) else text


def floor(values: Iterable[float | None]) -> float:
    """Return the low end of a scale to 1 that shows values, at most 0.9.

    It is the tenth below all but the lowest twentieth of them: a scale down to a single bad metric
    would show no difference between the others.
    """
    known = [value for value in values if value is not None]
    low = float(np.percentile(known, 5)) if known else 0.0
    return min(0.9, float(np.floor(low * 10) / 10))
