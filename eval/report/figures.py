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
"""Maximum number of points of a task in a scatter plot."""

MAX_NAME = 40
"""Maximum length of a metric's name below a scatter plot; longer names are truncated."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class TaskPoints:
    """The n compressed features of one task; unknown numbers are NaN.

    Attributes:
        facts: Facts of the task.
        codecs: Names of the codecs of all tasks, in the order of the labels.
        codec: (n,) index of each feature's codec.
        source: (n,) source ids.
        level: (n,) levels.
        truth: (n,) target labels.
        rate: (n,) bits per feature point.
        error: (n,) mean squared errors.
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
        """Name of the task."""
        return self.facts.name

    def shown(self) -> NDArray[np.intp]:
        """Return the indices of the points to plot: the same for every metric and every run."""
        return np.sort(np.random.default_rng(0).permutation(len(self.truth))[:POINTS])


def task_points(evaluation: Evaluation) -> list[TaskPoints]:
    """Return the features of an evaluation by task."""
    labels = evaluation.labels
    codecs = tuple(labels["codec"].unique().to_pylist())
    columns: dict[str, NDArray[Any]] = {
        "codec": np.array([codecs.index(codec) for codec in labels["codec"].to_pylist()]),
        "source": np.array(labels["source_id"].to_pylist(), object),
        "level": labels["level"].to_numpy().astype(np.intp),
        "scores": evaluation.scores["value"].to_numpy().reshape(labels.num_rows, -1),
    }
    for name, column in (("truth", evaluation.target), ("rate", "bpfp"), ("error", "mse")):
        known = column in labels.column_names
        numbers = labels[column].to_numpy() if known else np.full(labels.num_rows, np.nan)
        columns[name] = numbers.astype(np.float64)
    tasks = np.array(labels["task"].to_pylist(), object)
    return [
        TaskPoints(
            facts_of(task, evaluation.tasks),
            codecs,
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
    """Plot the scores of a metric against the label, with the logistic fitted to all points.

    Args:
        points: The features of a task.
        column: Column of the metric in the scores.
        name: Name of the metric.
        target: Label column that the scores are correlated with.
        ringed: Index of each point to circle -> text next to it.
        fit: The fitted mapping from scores to labels.

    Returns:
        An SVG element; empty if the metric has no score.
    """
    scores = points.scores[:, column]
    finite = np.isfinite(scores)
    if not finite.any():
        return Markup("")
    x, y = Axis.around(scores[finite]), Axis.around(points.truth[finite])
    title = f"{points.task}: {name} against {target}"
    short = name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…"
    panel = Panel(x, y, title, short, target_text(points.facts, target))
    shown = points.shown()
    shown = shown[finite[shown]]
    for codec in np.unique(points.codec[shown]).tolist():
        of = shown[points.codec[shown] == codec]
        panel.points(scores[of], points.truth[of], codec)
    across = np.clip(x.between(80), scores[finite].min(), scores[finite].max())
    fitted = fit(across)
    low, high = y.between(2)
    inside = (fitted >= low) & (fitted <= high)  # contiguous, since the curve is monotonic
    if inside.any():
        panel.line(across[inside], fitted[inside], "fit")
    for place, text in ringed.items():
        panel.points(scores[[place]], points.truth[[place]], int(points.codec[place]), "mark")
        panel.ring(float(scores[place]), float(points.truth[place]), text)
    return panel.svg()


def curve(points: TaskPoints, what: str, target: str) -> Markup | None:
    """Plot error or distortion against rate, a line per codec.

    Each level is a point: the median over the sources, with a band of the interquartile range.

    Args:
        points: The features of a task.
        what: ``error``, the mean squared error, or ``distortion``, the target label.
        target: Label column that the scores are correlated with.

    Returns:
        An SVG element; None if rates or values are unknown.
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
    """Plot the SROCC over the sources at each level with a 95% band, a line per codec.

    Args:
        points: The features of a task.
        rows: Rows of the table ``per_level`` for this metric and task.
        name: Name of the metric.
        target: Label column that the scores are correlated with.

    Returns:
        An SVG element; None if no level has an SROCC.
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
    """Return percentiles of values whose sums and differences may overflow."""
    return np.asarray(4 * np.percentile(values / 4, percents))


def target_text(facts: TaskFacts, target: str) -> str:
    """Return the name and unit of the target label."""
    label = facts.loss if target == "loss" else facts.score
    if label is None:
        return target
    unit = f" ({label.unit})" if label.unit else ""
    return f"{target}: {label.name}{unit}"
