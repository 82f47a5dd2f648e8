"""Rank the metrics by their correlation with the label, per task and overall."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cfqa_data.eval.comparison import compare_metrics
from cfqa_data.eval.report.axes import MINUS
from cfqa_data.eval.statistics.tables import source_means
from cfqa_data.eval.text import gaps

if TYPE_CHECKING:
    from cfqa_data.eval import Evaluation, Metric

__all__ = [
    "BASELINES",
    "COEFFICIENTS",
    "Difference",
    "Figure",
    "Ranked",
    "Ranking",
    "Scale",
    "differences",
    "floor",
    "heat_maps",
    "left_out",
    "ranking",
    "rankings",
    "signed",
]

COEFFICIENTS = {"srocc": "SROCC", "plcc": "PLCC", "krocc": "KROCC"}

BASELINES = ("cosine", "mse")
"""Default baselines: the others are compared with the first of these that was scored."""

TICK_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)

ALL = "all codecs"

COLOURS = 40
"""Number of colours of a heat map in the style sheet."""

Row = Mapping[str, Any]


class Figure(NamedTuple):
    """A figure with its 95% interval, oriented so that larger is better.

    Attributes:
        value: The figure; None if undefined.
        low: Lower bound; None if there is no interval.
        high: Upper bound; None if there is no interval.
    """

    value: float | None
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, row: Row, name: str) -> Figure:
        """Return the oriented figure of a column in a row of statistics."""
        value, low, high = (row.get(name + end) for end in ("", "_low", "_high"))
        if row["lower_better"] is False:
            value, low, high = (None if v is None else -v for v in (value, high, low))
        return cls(value, low, high)

    @property
    def text(self) -> str:
        """The figure with three decimals."""
        return signed(self.value)

    @property
    def interval(self) -> str:
        """The interval as text; empty if there is none."""
        if self.low is None or self.high is None:
            return ""
        return f"[{signed(self.low, 2)}, {signed(self.high, 2)}]"

    def colour(self, low: float) -> str:
        """Return the CSS class of the figure in a heat map from ``low`` to 1."""
        if self.value is None:
            return "none"
        step = int((self.value - low) / (1 - low) * COLOURS)
        return f"v{min(COLOURS - 1, max(0, step))}"


class Difference(NamedTuple):
    """The difference of a metric to the baseline; positive if the metric is better.

    Attributes:
        figure: The difference and its interval.
        p: The p value after Holm's correction; None if undefined.
    """

    figure: Figure
    p: float | None

    @property
    def interval(self) -> str:
        """The interval with three decimals, since it is narrower than that of a figure."""
        low, high = self.figure[1:]
        return "" if low is None or high is None else f"[{signed(low)}, {signed(high)}]"

    @property
    def text(self) -> str:
        """The difference with its sign and three decimals."""
        text = self.figure.text
        return text if self.figure.value is None or text.startswith(MINUS) else f"+{text}"


class Scale(NamedTuple):
    """The axis of the intervals in a ranking.

    It covers the better three quarters of the metrics, since a bad metric would compress the others
    into a few pixels. Lower values are drawn at the low end.

    Attributes:
        low: Low end.
        high: High end.
        step: Distance between ticks; both ends are ticks.
    """

    low: float
    high: float
    step: float

    @classmethod
    def of(cls, figures: Iterable[Figure]) -> Scale:
        """Return a scale for the figures of a ranking."""
        ends = [
            (f.value if f.low is None else f.low, f.value if f.high is None else f.high)
            for f in figures
            if f.value is not None
        ]
        lows, highs = zip(*ends, strict=True) if ends else ((0.0,), (1.0,))
        low, high = float(np.percentile(lows, 25)), float(np.max(highs))
        step = next((s for s in TICK_STEPS if high - low <= 6 * s), TICK_STEPS[-1])
        first, last = np.floor(low / step + 1e-9), np.ceil(high / step - 1e-9)
        return cls(float(first * step), float(max(last, first + 1) * step), step)

    @property
    def ticks(self) -> list[float]:
        """The values of the ticks, including both ends."""
        count = round((self.high - self.low) / self.step)
        return [self.low + number * self.step for number in range(count + 1)]

    def text(self, value: float) -> str:
        """Return the text of a tick."""
        return signed(value, 2 if self.step < 0.1 else 1)

    def at(self, value: float) -> int:
        """Return the position of a value on a canvas of width 320."""
        share = (value - self.low) / (self.high - self.low)
        return round(8 + 304 * min(1.0, max(0.0, share)))


@dataclass(frozen=True)
class Ranking:
    """A ranking of all metrics, best first.

    Attributes:
        key: ``source`` or ``pooled``.
        prefix: Prefix of its figures in the tables of statistics.
        entries: Rank (None if not ranked) and entry of each metric.
        scale: Axis of the intervals.
        differences: Difference to the baseline, by metric.
    """

    key: str
    prefix: str
    entries: Sequence[tuple[int | None, Ranked]]
    scale: Scale
    differences: Mapping[str, Difference]


@dataclass(frozen=True)
class Ranked:
    """A metric in the ranking.

    Attributes:
        number: Index among the metrics of the evaluation, used in the ids of the page.
        place: Rank from 1; None if the metric is not ranked.
        gap: Where it lacks scores that other metrics have; empty if nowhere. Such a metric is not
            ranked, since its means are over different sources.
        metric: The metric.
        missing: Number of compressed features without a score.
        overall: Its row of the table ``across_tasks``.
        by_task: Its rows of the table ``across_codecs``, by task.
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
        """The direction of the metric, in words."""
        return {True: "lower", False: "higher", None: "not declared"}[self.metric.lower_better]

    @property
    def beaten_by(self) -> int | None:
        """Number of significantly better metrics over all tasks, by SROCC; None if unknown."""
        count: int | None = self.overall["srocc_group"]
        return count


def ranking(evaluation: Evaluation) -> list[Ranked]:
    """Rank the metrics by their mean SROCC over all tasks, best first.

    Metrics whose means are over fewer sources than those of others are last, in the same order.
    """
    by_task: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in evaluation.across_codecs.to_pylist():
        by_task[row["metric"]][row["task"]] = row
    incomplete = gaps(evaluation)
    rows = {row["metric"]: row for row in evaluation.across_tasks.to_pylist()}

    def merit(numbered: tuple[int, Metric]) -> tuple[bool, float]:
        name = numbered[1].name
        value = Figure.of(rows[name], "srocc").value
        return name not in incomplete, -np.inf if value is None else value

    ordered = sorted(enumerate(evaluation.metrics), key=merit, reverse=True)
    return [
        Ranked(
            number=number,
            place=None if metric.name in incomplete else place,
            gap=incomplete.get(metric.name, ""),
            metric=metric,
            missing=evaluation.labels.num_rows - rows[metric.name]["n_pooled"],
            overall=rows[metric.name],
            by_task=by_task[metric.name],
        )
        for place, (number, metric) in enumerate(ordered, 1)
    ]


def rankings(
    ranked: Sequence[Ranked], compared: Mapping[str, Mapping[str, Difference]]
) -> list[Ranking]:
    """Return the ranking per source, and the ranking by the pooled SROCC.

    Args:
        ranked: Result of `ranking`.
        compared: Result of `differences`: by figure and metric.
    """

    def merit(entry: Ranked) -> tuple[bool, float]:
        value = Figure.of(entry.overall, "pooled_srocc").value
        return entry.place is not None, -np.inf if value is None else value

    result = []
    orders = {"source": ranked, "pooled": sorted(ranked, key=merit, reverse=True)}
    for key, entries in orders.items():
        prefix = "" if key == "source" else "pooled_"
        figures = [Figure.of(entry.overall, f"{prefix}srocc") for entry in entries]
        places = [(n if entry.place else None, entry) for n, entry in enumerate(entries, 1)]
        known = compared.get(f"{prefix}srocc", {})
        result.append(Ranking(key, prefix, places, Scale.of(figures), known))
    return result


def differences(
    evaluation: Evaluation, against: str | None
) -> tuple[str | None, dict[str, dict[str, Difference]]]:
    """Compare all metrics with a baseline over all tasks, by SROCC per source and pooled.

    Args:
        evaluation: The evaluation.
        against: Name of the baseline; by default the first of `BASELINES` that was scored.

    Returns:
        The name of the baseline, None if there is nothing to compare, and the differences by figure
        and metric.

    Raises:
        MetricError: If the baseline was not scored, or its direction is undeclared.
    """
    directed = [metric.name for metric in evaluation.metrics if metric.lower_better is not None]
    by_figure = defaultdict[str, dict[str, Difference]](dict)
    if against is None:
        against = next((name for name in BASELINES if name in directed), None)
        if against is None or len(directed) < 2:
            return None, by_figure
    how: dict[str, Any] = {"views": ("all",), "coefficients": ("srocc",)}
    for row in compare_metrics(evaluation, None, against, **how).table.to_pylist():
        figure = Figure(row["difference"], row["low"], row["high"])
        by_figure[row["figure"]][row["metric"]] = Difference(figure, row["p_holm"])
    return against, by_figure


def heat_maps(
    evaluation: Evaluation, ranked: Sequence[Ranked]
) -> tuple[list[tuple[str, list[str]]], list[dict[str, Any]]]:
    """Return the columns, (task, codecs) each, and a heat map per coefficient.

    A task with several codecs has a last column for all codecs pooled. A heat map has the ``name``
    and ``title`` of its coefficient, the value of the darkest colour (``low``), whether a figure is
    undefined (``blank``), and ``rows``: for each metric in the order of the ranking, its entry and
    its figures.
    """
    pooled = [row | {"codec": ALL} for row in evaluation.across_codecs.to_pylist()]
    codecs, cells = defaultdict[str, dict[str, None]](dict), {}
    means = source_means(evaluation.cells(), evaluation.metrics)
    for row in means + [row for row in pooled if row["codecs"] > 1]:
        codecs[row["task"]][row["codec"]] = None
        cells[row["task"], row["codec"], row["metric"]] = row
    columns = [(task, list(names)) for task, names in codecs.items()]
    keys = [(task, codec) for task, names in columns for codec in names]
    maps = []
    for name, title in COEFFICIENTS.items():
        rows = [
            (entry, [Figure.of(cells[*key, entry.metric.name], name) for key in keys])
            for entry in ranked
        ]
        low = floor(figure.value for _, figures in rows for figure in figures)
        blank = any(figure.value is None for _, figures in rows for figure in figures)
        maps.append({"name": name, "title": title, "low": low, "blank": blank, "rows": rows})
    return columns, maps


def left_out(evaluation: Evaluation) -> dict[tuple[str, str], dict[str, Figure]]:
    """Return the share of correctly ordered pairs by (task, codec), and by metric."""
    by_cell = defaultdict[tuple[str, str], dict[str, Figure]](dict)
    for row in evaluation.left_out.to_pylist():
        figure = Figure(row["pairs"], row["pairs_low"], row["pairs_high"])
        by_cell[row["task"], row["codec"]][row["metric"]] = figure
    return by_cell


def signed(value: float | None, digits: int = 3) -> str:
    """Return a number with a typographic minus sign; a dash for None."""
    if value is None:
        return "\u2013"
    text = f"{abs(value):.{digits}f}"
    return f"{MINUS}{text}" if value < 0 and float(text) else text


def floor(values: Iterable[float | None]) -> float:
    """Return the low end of a colour scale up to 1: the 5th percentile rounded down to a tenth.

    With the minimum, a single bad metric would hide the differences between the others. The result
    is at most 0.9.
    """
    known = [value for value in values if value is not None]
    low = float(np.percentile(known, 5)) if known else 0.0
    return min(0.9, float(np.floor(low * 10) / 10))
