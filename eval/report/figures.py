"""The report's figures: scatter plots of scores against labels, and rate-distortion curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from cfqa_data.eval.features.datasets import facts_of
from cfqa_data.eval.report.axes import Axis
from cfqa_data.eval.report.drawing import Panel
from cfqa_data.eval.report.ranking import Figure
from cfqa_data.format.facts import TaskFacts

if TYPE_CHECKING:
    from cfqa_data.eval import Evaluation

__all__ = [
    "POINTS",
    "TaskPoints",
    "by_level",
    "curve",
    "scatter",
    "target_text",
    "task_points",
]

POINTS = 500
"""Points of a task that a scatter shows, of all that there are."""

ROOM = 40
"""Characters of a metric's name that go under a scatter."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class TaskPoints:
    """The compressed features of one task; where a number is unknown, it is NaN.

    Attributes:
        facts: What is known of the task.
        codecs: Codecs of all tasks, in the labels' order.
        codec: (n,) number of each feature's codec.
        source: (n,) source ids.
        level: (n,) levels.
        truth: (n,) label that was followed.
        rate: (n,) bits per feature point.
        error: (n,) MSE.
        scores: (n, M) scores.
    """

    facts: TaskFacts
    codecs: tuple[str, ...]
    codec: NDArray[np.intp]
    source: NDArray[np.object_]
    level: NDArray[np.intp]
    truth: Floats
    rate: Floats
    error: Floats
    scores: Floats

    @property
    def task(self) -> str:
        """Its name."""
        return self.facts.name

    def shown(self) -> NDArray[np.intp]:
        """Return which points a scatter shows: the same for every metric and every run."""
        return np.sort(np.random.default_rng(0).permutation(len(self.truth))[:POINTS])


def task_points(evaluation: Evaluation) -> list[TaskPoints]:
    """Take an evaluation apart by task."""
    labels = evaluation.labels
    known = tuple(labels["codec"].unique().to_pylist())
    columns: dict[str, NDArray[Any]] = {
        "codec": np.array([known.index(codec) for codec in labels["codec"].to_pylist()]),
        "source": np.array(labels["source_id"].to_pylist(), object),
        "level": labels["level"].to_numpy().astype(np.intp),
        "scores": evaluation.scores["value"].to_numpy().reshape(labels.num_rows, -1),
    }
    for name, column in (("truth", evaluation.target), ("rate", "bpfp"), ("error", "mse")):
        there = column in labels.column_names
        numbers = labels[column].to_numpy() if there else np.full(labels.num_rows, np.nan)
        columns[name] = numbers.astype(np.float64)
    tasks = np.array(labels["task"].to_pylist(), object)
    return [
        TaskPoints(
            facts_of(task, evaluation.tasks),
            known,
            **{name: column[tasks == task] for name, column in columns.items()},
        )
        for task in dict.fromkeys(tasks.tolist())
    ]


def scatter(
    points: TaskPoints,
    column: int,
    name: str,
    target: str,
    ringed: Mapping[int, str],
    fit: Callable[[Floats], Floats],
) -> Markup:
    """Draw a metric's scores against the label, with the logistic that fits all points.

    Args:
        points: Of the task.
        column: The metric's, which has a score somewhere.
        name: The metric's.
        target: Label that was followed.
        ringed: Points to ring -> what to write at them.
        fit: Takes scores to the label, as the mapping whose figures are in the tables does.
    """
    scores = points.scores[:, column]
    finite = np.isfinite(scores)
    if not finite.any():
        return Markup("")
    x, y = Axis.around(scores[finite]), Axis.around(points.truth[finite])
    title = f"{points.task}: {name} against {target}"
    short = name if len(name) <= ROOM else f"{name[: ROOM - 1]}…"
    panel = Panel(x, y, title, short, target_text(points.facts, target))
    shown = points.shown()
    shown = shown[finite[shown]]
    for codec in np.unique(points.codec[shown]).tolist():
        of = shown[points.codec[shown] == codec]
        panel.points(scores[of], points.truth[of], codec)
    across = np.clip(x.between(80), scores[finite].min(), scores[finite].max())
    fitted = fit(across)
    low, high = y.between(2)
    inside = (fitted >= low) & (fitted <= high)  # of a curve that rises or falls throughout
    if inside.any():
        panel.line(across[inside], fitted[inside], "fit")
    for place, text in ringed.items():
        panel.points(scores[[place]], points.truth[[place]], int(points.codec[place]), "mark")
        panel.ring(float(scores[place]), float(points.truth[place]), text)
    return panel.svg()


def curve(points: TaskPoints, what: str, target: str) -> Markup | None:
    """Draw error or harm against rate, a line per codec where both are known; None without one.

    At each level: the median over the sources, in a band that holds the middle half of them.

    Args:
        points: Of the task.
        what: ``error`` or ``harm``.
        target: Label that was followed.
    """
    values = points.error if what == "error" else points.truth
    known = np.isfinite(points.rate) & np.isfinite(values)
    if not known.any():
        return None
    label = "MSE" if what == "error" else target_text(points.facts, target)
    lines = []
    for codec in np.unique(points.codec[known]).tolist():
        of = (points.codec == codec) & known
        levels = [of & (points.level == level) for level in np.unique(points.level[of])]
        rates = np.array([_percentiles(points.rate[rows], [50])[0] for rows in levels])
        quarters = np.array([_percentiles(values[rows], [25, 50, 75]) for rows in levels])
        lines.append((codec, rates, quarters))
    x = Axis.around(np.concatenate([rates for _, rates, _ in lines]), "log")
    y = Axis.around(np.concatenate([quarters.ravel() for _, _, quarters in lines]))
    title = f"{points.task}: {label} against rate, per codec"
    panel = Panel(x, y, title, "bits per feature point", label)
    for codec, rates, quarters in lines:
        panel.band(rates, quarters[:, 0], quarters[:, 2], codec)
    for codec, rates, quarters in lines:
        panel.line(rates, quarters[:, 1], f"line k{codec % 6}")
        panel.points(rates, quarters[:, 1], codec, "mark")
    return panel.svg()


def by_level(
    points: TaskPoints, rows: Sequence[Mapping[str, Any]], name: str, target: str
) -> Markup | None:
    """Draw the SROCC over the sources at each level, in a band of 95%, a line per codec.

    Args:
        points: Of the task.
        rows: The metric's rows of the table ``per_level`` of this task.
        name: The metric's.
        target: Label that was followed.
    """
    lines = []
    for codec in dict.fromkeys(row["codec"] for row in rows):
        known = [row for row in rows if row["codec"] == codec and row["srocc"] is not None]
        figures = [Figure.of(row, "srocc") for row in known]
        if known:
            lines.append((points.codecs.index(codec), [row["level"] for row in known], figures))
    if not lines:
        return None
    ends = [e for _, _, figures in lines for f in figures for e in f if e is not None]
    x = Axis.around(np.array([float(level) for _, levels, _ in lines for level in levels]))
    title = f"{points.task}: SROCC of {name} with the {target} at each level, per codec"
    panel = Panel(x, Axis.around(np.array([*ends, 1.0])), title, "level", "SROCC over the sources")
    for codec, levels, figures in lines:
        drawn = [(n, f) for n, f in zip(levels, figures, strict=True) if f.low is not None]
        if len(drawn) > 1:
            lows, highs = [f.low for _, f in drawn], [f.high for _, f in drawn]
            panel.band([n for n, _ in drawn], lows, highs, codec)
    for codec, levels, figures in lines:
        values = [figure.value for figure in figures]
        panel.line(levels, values, f"line k{codec % 6}")
        panel.points(levels, values, codec, "mark")
    return panel.svg()


def _percentiles(values: Floats, percents: Sequence[float]) -> Floats:
    """Return percentiles of values of any size, whose sums and differences may overflow."""
    return np.asarray(4 * np.percentile(values / 4, percents))


def target_text(facts: TaskFacts, target: str) -> str:
    """Return the label in words, with its unit."""
    followed = facts.loss if target == "loss" else facts.score
    if followed is None:
        return target
    unit = f" ({followed.unit})" if followed.unit else ""
    return f"{target}: {followed.name}{unit}"
