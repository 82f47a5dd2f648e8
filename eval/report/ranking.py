"""Rank the metrics by how well they follow the label, with intervals, per task and overall."""

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
"""Metrics that the others are compared with: the first that was scored, unless one is named."""

STEPS_OF_A_SCALE = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)

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


class Difference(NamedTuple):
    """By how much a metric is better than the one that all are compared with.

    Attributes:
        figure: The difference and its interval.
        p: After Holm's correction; None where it is unknown.
    """

    figure: Figure
    p: float | None

    @property
    def interval(self) -> str:
        """The interval with three decimals: it is narrower than that of the metrics' figures."""
        low, high = self.figure[1:]
        return "" if low is None or high is None else f"[{signed(low)}, {signed(high)}]"

    @property
    def text(self) -> str:
        """The difference with its sign and three decimals."""
        text = self.figure.text
        return text if self.figure.value is None or text.startswith(MINUS) else f"+{text}"


class Scale(NamedTuple):
    """The axis of the whiskers of a ranking; what lies below its low end is drawn there.

    It shows the better three quarters of the metrics: one down to the worst would squeeze the
    others into a few pixels.

    Attributes:
        low: Low end.
        high: High end.
        step: Between two ticks; its ends are ticks.
    """

    low: float
    high: float
    step: float

    @classmethod
    def of(cls, figures: Iterable[Figure]) -> Scale:
        """Return a scale for some figures."""
        ends = [
            (f.value if f.low is None else f.low, f.value if f.high is None else f.high)
            for f in figures
            if f.value is not None
        ]
        lows, highs = zip(*ends, strict=True) if ends else ((0.0,), (1.0,))
        low, high = float(np.percentile(lows, 25)), float(np.max(highs))
        step = next((s for s in STEPS_OF_A_SCALE if high - low <= 6 * s), STEPS_OF_A_SCALE[-1])
        first, last = np.floor(low / step + 1e-9), np.ceil(high / step - 1e-9)
        return cls(float(first * step), float(max(last, first + 1) * step), step)

    @property
    def ticks(self) -> list[float]:
        """The places of its ticks, both ends with them."""
        count = round((self.high - self.low) / self.step)
        return [self.low + number * self.step for number in range(count + 1)]

    def text(self, value: float) -> str:
        """Return a tick's text."""
        return signed(value, 2 if self.step < 0.1 else 1)

    def at(self, value: float) -> int:
        """Return where a value lies on a canvas of 320."""
        share = (value - self.low) / (self.high - self.low)
        return round(8 + 304 * min(1.0, max(0.0, share)))


@dataclass(frozen=True)
class Ranking:
    """A table of all metrics, the best first.

    Attributes:
        key: Names it on the page: ``source`` or ``pooled``.
        prefix: Of its figures in the tables of statistics.
        entries: The metrics, each with its place here, if it has one.
        scale: Of the whiskers.
        differences: By metric, its difference to the baseline.
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
        number: Place in the evaluation's order of metrics; it names the metric's part of the page.
        place: 1 for the first; None for a metric that is not ranked.
        gap: Where it lacks a figure that others have, in words, empty if nowhere; it is not ranked
            then, since its mean is over other sources than theirs.
        metric: The metric.
        missing: Compressed features without a score.
        overall: Its row over all tasks.
        by_task: By task, its row over all codecs.
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


def rankings(
    ranked: Sequence[Ranked], compared: Mapping[str, Mapping[str, Difference]]
) -> list[Ranking]:
    """Return the ranking per source, and that of all points together, without gaps in both.

    Args:
        ranked: What `ranking` returned.
        compared: What `differences` returned.
    """

    def merit(entry: Ranked) -> tuple[bool, float]:
        value = Figure.of(entry.overall, "pooled_srocc").value
        return entry.place is not None, -np.inf if value is None else value

    made = []
    orders = {"source": ranked, "pooled": sorted(ranked, key=merit, reverse=True)}
    for key, entries in orders.items():
        prefix = "" if key == "source" else "pooled_"
        figures = [Figure.of(entry.overall, f"{prefix}srocc") for entry in entries]
        places = [(n if entry.place else None, entry) for n, entry in enumerate(entries, 1)]
        known = compared.get(f"{prefix}srocc", {})
        made.append(Ranking(key, prefix, places, Scale.of(figures), known))
    return made


def differences(
    evaluation: Evaluation, against: str | None
) -> tuple[str | None, dict[str, dict[str, Difference]]]:
    """Compare all metrics with a baseline, over all tasks: SROCC per source, and pooled.

    Args:
        evaluation: Has the scores.
        against: The baseline; by default, the first of `BASELINES` that was scored.

    Returns:
        Its name, None where there is nothing to compare, and by figure and metric the differences.

    Raises:
        MetricError: If the baseline that is named was not scored, or has no direction.
    """
    directed = [metric.name for metric in evaluation.metrics if metric.lower_better is not None]
    found = defaultdict[str, dict[str, Difference]](dict)
    if against is None:
        against = next((name for name in BASELINES if name in directed), None)
        if against is None or len(directed) < 2:
            return None, found
    how: dict[str, Any] = {"views": ("all",), "coefficients": ("srocc",)}
    for row in compare_metrics(evaluation, None, against, **how).table.to_pylist():
        figure = Figure(row["difference"], row["low"], row["high"])
        found[row["figure"]][row["metric"]] = Difference(figure, row["p_holm"])
    return against, found


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
    means = source_means(evaluation.cells(), evaluation.metrics)
    for row in means + [row for row in together if row["codecs"] > 1]:
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
