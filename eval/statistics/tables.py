"""From scores and labels to the tables of statistics.

Each table is described, column by column, in docs/statistics.md:

* correlations: per task, codec and metric.
* across_codecs: per task and metric, a source's points from all codecs together. Within one codec's
  ladder every sane metric falls with the level, and their SROCCs hardly differ; across codecs they
  must agree on which of two different kinds of damage is worse.
* across_tasks: per metric, all tasks together.
* per_level: per task, codec, level and metric, over the sources.
* comparisons: per cell of the first three tables, coefficient, and pair of metrics.
* discrimination: per task and metric, Krasula's two areas.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cfqa_data.errors import MetricError, unknown_name
from cfqa_data.eval.statistics.bootstrap import source_counts
from cfqa_data.eval.statistics.cells import Cell, cell_of, cell_rows, join_cells
from cfqa_data.eval.statistics.columns import COLUMNS, make_table
from cfqa_data.eval.statistics.comparison import orientation
from cfqa_data.eval.statistics.correlations import (
    COEFFICIENTS,
    average_ranks,
    coefficients,
)
from cfqa_data.eval.statistics.discrimination import discriminate
from cfqa_data.eval.statistics.grids import Grid, read_grids
from cfqa_data.extras import extras
from cfqa_data.format.tasks import get_task

if TYPE_CHECKING:
    import pyarrow as pa

    from cfqa_data.eval.metrics import Metric

__all__ = ["DRAWS", "Statistics", "check_labels", "statistics"]

DRAWS = 1000

Floats = NDArray[np.float64]
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Statistics:
    """The tables, each described in docs/statistics.md.

    Attributes:
        correlations: One row per task, codec and metric.
        across_codecs: One row per task and metric, all codecs together.
        across_tasks: One row per metric, all tasks together.
        per_level: One row per task, codec, level and metric.
        comparisons: One row per cell, coefficient and pair of metrics.
        discrimination: One row per task and metric.
    """

    correlations: pa.Table
    across_codecs: pa.Table
    across_tasks: pa.Table
    per_level: pa.Table
    comparisons: pa.Table
    discrimination: pa.Table


@extras()
def statistics(
    labels: pa.Table,
    metrics: Sequence[Metric],
    values: NDArray[Any],
    target: str = "distortion",
    *,
    draws: int = DRAWS,
    seed: int = 0,
    tables: Iterable[str] = tuple(COLUMNS),
) -> Statistics:
    """Correlate each metric with the label in every way, with intervals and comparisons.

    The result does not depend on the order of the rows of one task, nor a task's figures on the
    other tasks, but for ``across_tasks``.

    Args:
        labels: One row per compressed feature.
        metrics: M metrics.
        values: (rows, M) float64 scores; NaN where a metric has none.
        target: Label column to follow, larger is worse: distortion or loss.
        draws: Resamples of the sources for the intervals; 0 for none, and no comparisons.
        seed: Of the resamples.
        tables: Names of the tables to compute; the others come without rows.

    Raises:
        MetricError: A source lacks levels that others have; a label is NaN or Inf, or a score Inf;
            draws or seed is negative; there is no such table.
    """
    wanted = _checked(draws, seed, tables)
    rows: dict[str, Rows] = {field.name: [] for field in fields(Statistics)}
    together: list[Cell] = []
    for grid in read_grids(labels):
        scores = np.moveaxis(np.asarray(values, dtype=np.float64)[grid.rows], -1, 0)
        truth = _truth(grid, labels, target)
        _check_scores(grid, metrics, scores)
        counts = source_counts(len(grid.sources), draws, seed, grid.task)
        if wanted & {"correlations", "comparisons"}:
            for k, codec in enumerate(grid.codecs):
                place: dict[str, Any] = {"task": grid.task, "codec": codec}
                cell = cell_of(scores[:, :, k], truth[:, k], counts)
                _append(rows, "correlations", cell, metrics, place)
        flat = scores.reshape(len(metrics), len(grid.sources), -1), truth.reshape(len(truth), -1)
        if wanted & {"across_codecs", "across_tasks", "comparisons"}:
            together.append(cell_of(*flat, counts))
        if wanted & {"across_codecs", "comparisons"}:
            place = {"task": grid.task, "codec": "all", "codecs": len(grid.codecs)}
            _append(rows, "across_codecs", together[-1], metrics, place)
        if "per_level" in wanted:
            rows["per_level"] += _per_level(grid, metrics, scores, truth)
        if "discrimination" in wanted:
            rows["discrimination"] += _discrimination(grid.task, target, metrics, *flat)
    if wanted & {"across_tasks", "comparisons"} and together:
        percentiles = [_percentiles(cell.truth) for cell in together]
        place = {"task": "all", "codec": "all", "tasks": len(together)}
        _append(rows, "across_tasks", join_cells(together, percentiles), metrics, place)
    return Statistics(
        **{name: make_table(name, rows[name] if name in wanted else []) for name in rows}
    )


def check_labels(labels: pa.Table, target: str) -> None:
    """See that labels can be correlated with, before anything is scored.

    Raises:
        MetricError: A source lacks levels that others have, or a label is NaN or Inf.
        CfqaError: A task is unknown.
    """
    for grid in read_grids(labels):
        get_task(grid.task)
        _truth(grid, labels, target)


def _truth(grid: Grid, labels: pa.Table, target: str) -> Floats:
    """Return the labels of a task, (S, K, L), larger is worse."""
    try:
        truth = np.asarray(labels[target].to_numpy().astype(np.float64)[grid.rows])
    except (TypeError, ValueError):
        raise MetricError(f"the labels in column {target!r} are no numbers") from None
    bad = np.flatnonzero(~np.isfinite(truth))
    if bad.size:
        raise MetricError(f"the {target} of {grid.name(int(bad[0]))} is missing, NaN or Inf")
    return truth


def _checked(draws: int, seed: int, tables: Iterable[str]) -> set[str]:
    for name, value in (("draws", draws), ("seed", seed)):
        if value < 0:
            raise MetricError(f"{name} is at least 0, not {value}")
    wanted = set(tables)
    for table in sorted(wanted - COLUMNS.keys()):
        raise MetricError(unknown_name("table", table, COLUMNS))
    return wanted


def _check_scores(grid: Grid, metrics: Sequence[Metric], scores: Floats) -> None:
    for metric, of_metric in zip(metrics, scores, strict=True):
        bad = np.flatnonzero(np.isinf(of_metric))
        if bad.size:
            raise MetricError(f"{metric.name}: the score of {grid.name(int(bad[0]))} is Inf")


def _append(
    rows: dict[str, Rows], table: str, cell: Cell, metrics: Sequence[Metric], place: dict[str, Any]
) -> None:
    figures, comparisons = cell_rows(cell, metrics)
    rows[table] += [place | row for row in figures]
    rows["comparisons"] += [place | row for row in comparisons]


def _per_level(
    grid: Grid, metrics: Sequence[Metric], scores: Floats, truth: Floats
) -> Iterator[dict[str, Any]]:
    """Yield the correlations over the sources at each level of each codec."""
    # (3, M, K, L): the sources are the points.
    points = scores.transpose(0, 2, 3, 1).reshape(len(metrics), -1, len(truth))
    truths = truth.transpose(1, 2, 0).reshape(-1, len(truth))
    found = coefficients(points, truths)
    present = ~np.isnan(points)
    for metric, row in np.argwhere(~present.all(axis=2) & present.any(axis=2)):
        here = present[metric, row]  # where scores are missing, those that are there
        alone = coefficients(points[metric, row, here][None, None], truths[row, here][None])
        found[:, metric, row] = alone[:, 0, 0]
    found = found.reshape(3, len(metrics), *truth.shape[1:])
    counts = present.sum(axis=2).reshape(found.shape[1:])
    for k, codec in enumerate(grid.codecs):
        for v, level in enumerate(grid.levels):
            for index, metric in enumerate(metrics):
                yield {
                    "task": grid.task,
                    "codec": codec,
                    "level": level,
                    "metric": metric.name,
                    "lower_better": metric.lower_better,
                    **dict(zip(COEFFICIENTS, found[:, index, k, v], strict=True)),
                    "n_sources": int(counts[index, k, v]),
                }


def _discrimination(
    task: str, target: str, metrics: Sequence[Metric], scores: Floats, truth: Floats
) -> Iterator[dict[str, Any]]:
    facts = get_task(task)
    threshold = facts.noticeable_loss if target == "loss" else facts.noticeable
    signs = orientation([metric.lower_better for metric in metrics])
    found = discriminate(scores, truth, signs, threshold)
    for index, metric in enumerate(metrics):
        yield {
            "task": task,
            "threshold": threshold,
            "n_different": int(found.different[index]),
            "n_similar": int(found.similar[index]),
            "metric": metric.name,
            "lower_better": metric.lower_better,
            "auc_different": found.auc_different[index],
            "auc_better": found.auc_better[index],
        }


def _percentiles(truth: Floats) -> Floats:
    """Return the share of points below each, ties counting half: comparable across tasks."""
    return np.asarray((average_ranks(truth[None])[0] - 0.5) / truth.size)
