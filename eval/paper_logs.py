"""The published table's statistic, from score logs alone.

Per source, PLCC and SROCC over its levels between the raw score and a metric; then the mean over
the sources that give a number (NumPy's nanmean), per codec and task. Faults included: a source
whose score, or whose metric as printed, is the same at every level, or NaN at one, gives none and
vanishes, and the score is not a distortion, so the signs of a task where higher is better are
turned round.
`cfqa_data.eval.evaluate` does neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfqa_data.console.text import table_text
from cfqa_data.errors import MetricError
from cfqa_data.eval.log_files import LogLine, find_logs, read_log
from cfqa_data.eval.statistics import pearson, spearman
from cfqa_data.eval.text import figure_text
from cfqa_data.format.tasks import TASKS
from cfqa_data.paths import absolute_path

__all__ = ["PAPER_ORDER", "PaperFigure", "paper_figures", "paper_logs_text", "read_series"]

PAPER_ORDER = ("hm", "vtm", "hyperprior_multi_task", "hyperprior_task_specific")
"""Codecs in the order of the published table."""

METRICS = ("mse", "cosine", "cka")


@dataclass(frozen=True)
class PaperFigure:
    """One metric on one codec and task.

    Attributes:
        codec: the codec.
        task: the task.
        metric: mse, cosine or cka, as the log prints it.
        plcc: mean Pearson correlation over the sources that give one; None if none does.
        srocc: mean Spearman correlation, likewise.
        sources: sources in the log.
        n_valid: sources in the mean.
        constant: sources that vanish because their score is the same at every level, or NaN or
            infinite at one.
        flat: further ones that vanish because the printed metric is.
        fewest: levels of the source that has fewest.
        most: levels of the source that has most.
    """

    codec: str
    task: str
    metric: str
    plcc: float | None
    srocc: float | None
    sources: int
    n_valid: int
    constant: int
    flat: int
    fewest: int
    most: int

    def to_dict(self) -> dict[str, Any]:
        """Return the figure as JSON-safe data."""
        return asdict(self)


def read_series(paths: Sequence[Path]) -> dict[str, list[LogLine]]:
    """Return the lines of each source from the logs of one codec and task, in their order.

    Raises:
        MetricError: a line is bad, or says the same source and level once more.
    """
    series: dict[str, list[LogLine]] = {}
    seen: dict[tuple[str, float], str] = {}
    for path in paths:
        for line in read_log(path):
            if line.level is not None:
                before = seen.setdefault((line.name, line.level), line.where)
                if before != line.where:
                    raise MetricError(
                        f"{line.where}: {line.name} at level {line.level:g} is there twice; "
                        f"first in {before}"
                    )
            series.setdefault(line.name, []).append(line)
    return series


def paper_figures(root: Path | str) -> list[PaperFigure]:
    """Return the published statistic of every codec, task and metric in a folder of logs.

    Raises:
        MetricError: there is no log, a line of one is bad, or a source has a single level.
    """
    figures = []
    logs = find_logs(absolute_path(root))
    for codec, task in sorted(logs, key=_published_order):
        series = read_series(logs[codec, task])
        for name, lines in series.items():
            if len(lines) < 2:
                raise MetricError(
                    f"{lines[0].where}: {name} has a single level, over which nothing correlates"
                )
        figures += _figures(codec, task, list(series.values()))
    return figures


def paper_logs_text(figures: Sequence[PaperFigure]) -> str:
    """Lay figures out as the published table, and say what vanished from it."""
    rows = [["codec", "task"], ["", ""]]
    for name in METRICS:
        rows[0] += [name, ""]
        rows[1] += ["PLCC", "SROCC"]
    each = "/".join(METRICS)
    rows[0] += ["sources", "levels", "constant", "flat", "used"]
    rows[1] += ["", "", "score", each, each]
    cells: dict[tuple[str, str], list[PaperFigure]] = {}
    for figure in figures:
        cells.setdefault((figure.codec, figure.task), []).append(figure)
    for place, metrics in cells.items():
        row = [*place]
        for figure in metrics:
            row += [figure_text(figure.plcc), figure_text(figure.srocc)]
        first = metrics[0]
        levels = f"{first.fewest}" if first.fewest == first.most else f"{first.fewest}-{first.most}"
        flat = "/".join(str(figure.flat) for figure in metrics)
        used = "/".join(str(figure.n_valid) for figure in metrics)
        rows.append([*row, str(first.sources), levels, str(first.constant), flat, used])
    return "\n".join(
        [
            "Correlation with the raw score, per source over its levels, averaged: as published.",
            "",
            table_text(rows, left=2, heads=2),
            "",
            "Faults of the published statistic, kept here: sources whose score is constant, or",
            "whose metric as printed is flat over the levels, or that have NaN at one of them,",
            "vanish from the mean; the score is raw, so for seg, where higher is better, the signs",
            "are turned round.",
        ]
    )


def _figures(codec: str, task: str, series: list[list[LogLine]]) -> list[PaperFigure]:
    """Return the figures of the three metrics; `series` has the lines of a source each."""
    plcc, srocc = np.full((2, len(series), len(METRICS)), np.nan)
    constant = np.zeros(len(series), bool)
    for row, lines in enumerate(series):
        scores = np.array([line.score for line in lines])
        values = np.array([[getattr(line, name) for line in lines] for name in METRICS])
        repeated = np.broadcast_to(scores, values.shape)
        known = np.isfinite(values).all(axis=1) & np.isfinite(scores).all()
        plcc[row, known] = pearson(values[known], repeated[known])
        srocc[row, known] = spearman(values[known], repeated[known])
        constant[row] = (scores == scores[0]).all() or not np.isfinite(scores).all()
    counts = [len(lines) for lines in series]
    return [
        PaperFigure(
            codec=codec,
            task=task,
            metric=name,
            plcc=_nanmean(plcc[:, column]),
            srocc=_nanmean(srocc[:, column]),
            sources=len(series),
            n_valid=int((~np.isnan(plcc[:, column])).sum()),
            constant=int(constant.sum()),
            flat=int((np.isnan(plcc[:, column]) & ~constant).sum()),
            fewest=min(counts),
            most=max(counts),
        )
        for column, name in enumerate(METRICS)
    ]


def _nanmean(values: NDArray[Any]) -> float | None:
    left = values[~np.isnan(values)]
    return float(left.mean()) if left.size else None


def _published_order(place: tuple[str, str]) -> tuple[int, str, int]:
    codec, task = place
    order = PAPER_ORDER.index(codec) if codec in PAPER_ORDER else len(PAPER_ORDER)
    return order, codec, list(TASKS).index(task)
