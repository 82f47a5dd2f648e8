"""Rank the metrics by how well they follow the label, with intervals, per task and overall."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cfqa_data.eval.report.axes import MINUS
from cfqa_data.eval.report.colours import STEPS
from cfqa_data.eval.text import gaps

if TYPE_CHECKING:
    from cfqa_data.eval import Evaluation, Metric

__all__ = ["COEFFICIENTS", "Figure", "Ranked", "heat_maps", "ranking", "span_of"]

COEFFICIENTS = {"srocc": "SROCC", "plcc": "PLCC", "krocc": "KROCC"}

ALL = "all codecs"

BETTER = {True: "lower", False: "higher", None: "not declared"}


@dataclass(frozen=True)
class Figure:
    """A number with its interval; None where there is none.

    Attributes:
        value: The number, its sign turned so that larger is better.
        low: Lower bound of the 95% interval.
        high: Upper bound.
    """

    value: float | None
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, row: Mapping[str, Any], name: str) -> Figure:
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


@dataclass(frozen=True)
class Ranked:
    """A metric in the ranking.

    Attributes:
        number: Place in the evaluation's order of metrics; it names the metric's part of the page.
        place: 1 for the first; None for a metric that is not ranked.
        gap: Where it lacks a figure that others have, in words, empty if nowhere; it is not ranked
            then, since its mean is over other sources than theirs.
        metric: The metric.
        better: Which scores are better, in words.
        overall: Over all tasks, by coefficient.
        by_task: By task, then coefficient, all codecs together.
        beaten_by: Metrics that are significantly better over all tasks, by SROCC; None if unknown.
        discrimination: By task: Krasula's two areas.
        missing: Compressed features without a score.
    """

    number: int
    place: int | None
    gap: str
    metric: Metric
    better: str
    overall: Mapping[str, Figure]
    by_task: Mapping[str, Mapping[str, Figure]]
    beaten_by: int | None
    discrimination: Mapping[str, tuple[float | None, float | None]]
    missing: int


def ranking(evaluation: Evaluation) -> list[Ranked]:
    """Return the metrics, the best mean SROCC over all tasks first, those without one last.

    Those whose mean is over fewer sources than that of others follow, in their own order.
    """
    overall = {row["metric"]: row for row in evaluation.across_tasks.to_pylist()}
    by_task, areas = defaultdict[str, dict[str, Any]](dict), defaultdict[str, dict[str, Any]](dict)
    for row in evaluation.across_codecs.to_pylist():
        by_task[row["metric"]][row["task"]] = _figures(row)
    for row in evaluation.discrimination.to_pylist():
        areas[row["metric"]][row["task"]] = row["auc_different"], row["auc_better"]

    lacking = gaps(evaluation)

    def merit(numbered: tuple[int, Metric]) -> tuple[bool, float]:
        name = numbered[1].name
        value = Figure.of(overall[name], "srocc").value
        return name not in lacking, -np.inf if value is None else value

    ordered = sorted(enumerate(evaluation.metrics), key=merit, reverse=True)
    return [
        Ranked(
            number=number,
            place=None if metric.name in lacking else place,
            gap=lacking.get(metric.name, ""),
            metric=metric,
            better=BETTER[metric.lower_better],
            overall=_figures(overall[metric.name]),
            by_task=by_task[metric.name],
            beaten_by=overall[metric.name]["srocc_group"],
            discrimination=areas[metric.name],
            missing=evaluation.labels.num_rows - overall[metric.name]["n_pooled"],
        )
        for place, (number, metric) in enumerate(ordered, 1)
    ]


def heat_maps(
    evaluation: Evaluation, ranked: Sequence[Ranked]
) -> tuple[list[tuple[str, list[str]]], list[dict[str, Any]]]:
    """Return the columns, (task, its codecs), and a map per coefficient.

    A task of several codecs has a last column for all of them together. A map has the ``name`` and
    ``title`` of its coefficient, the number of the darkest colour (``low``), and ``rows``: per
    metric, in the ranking's order, (text, class of the colour, sort key) of each cell.
    """
    cells = {
        (row["task"], row["codec"], row["metric"]): row
        for row in evaluation.correlations.to_pylist()
    }
    codecs: dict[str, list[str]] = {}
    for task, codec in dict.fromkeys(key[:2] for key in cells):
        codecs.setdefault(task, []).append(codec)
    for row in evaluation.across_codecs.to_pylist():
        if row["codecs"] > 1:
            cells[row["task"], ALL, row["metric"]] = row
            if ALL not in codecs[row["task"]]:
                codecs[row["task"]].append(ALL)
    maps = []
    for name, title in COEFFICIENTS.items():
        found = [
            [
                Figure.of(cells[task, codec, entry.metric.name], name).value
                for task, of_task in codecs.items()
                for codec in of_task
            ]
            for entry in ranked
        ]
        low = _floor([value for row in found for value in row if value is not None])
        rows = [
            (entry, [_cell(value, low) for value in row])
            for entry, row in zip(ranked, found, strict=True)
        ]
        maps.append({"name": name, "title": title, "low": low, "rows": rows})
    return list(codecs.items()), maps


def signed(value: float | None, digits: int = 3) -> str:
    """Return a number with a true minus sign, or a dash for none."""
    if value is None:
        return "\u2013"
    text = f"{abs(value):.{digits}f}"
    return f"{MINUS}{text}" if value < 0 and float(text) else text


def span_of(figures: Sequence[Figure]) -> float:
    """Return the low end of an axis to 1 that shows figures with their intervals."""
    return _floor([v for figure in figures for v in (figure.value, figure.low) if v is not None])


def _figures(row: Mapping[str, Any]) -> dict[str, Figure]:
    return {name: Figure.of(row, name) for name in COEFFICIENTS}


def _floor(values: Sequence[float]) -> float:
    """Return the tenth below all but the lowest twentieth of the values, at most 0.9.

    A scale down to a single bad metric would show no difference between the others.
    """
    low = float(np.percentile(values, 5)) if values else 0.0
    return min(0.9, float(np.floor(low * 10) / 10))


def _cell(value: float | None, low: float) -> tuple[str, str, float]:
    if value is None:
        return signed(None), "none", -2.0
    step = min(STEPS - 1, max(0, int((value - low) / (1 - low) * STEPS)))
    return signed(value, 2), f"v{step}", round(value, 6)
