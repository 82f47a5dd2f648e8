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
* left_out: per task, codec and metric, where metrics were also trained without the codec.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cfqa_data.arrow import pa
from cfqa_data.errors import MetricError, unknown_name
from cfqa_data.eval.features.datasets import facts_of
from cfqa_data.eval.statistics.cells import (
    Cell,
    cell_comparisons,
    cell_figures,
    cell_of,
    join_cells,
)
from cfqa_data.eval.statistics.columns import COLUMNS, Rows, make_table
from cfqa_data.eval.statistics.comparison import orientation
from cfqa_data.eval.statistics.correlations import COEFFICIENTS, coefficients
from cfqa_data.eval.statistics.discrimination import discriminate
from cfqa_data.eval.statistics.grids import Grid, read_grids
from cfqa_data.eval.statistics.left_out import left_out_figures
from cfqa_data.eval.statistics.levels import per_level
from cfqa_data.extras import extras

if TYPE_CHECKING:
    from cfqa_data.eval.metrics import Metric
    from cfqa_data.format.facts import TaskFacts

__all__ = ["DRAWS", "Statistics", "check_labels", "source_means", "statistics", "truths"]

DRAWS = 1000

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """The tables, each described in docs/statistics.md; null where there is no figure.

    Attributes:
        correlations: One row per task, codec and metric.
        across_codecs: One row per task and metric, all codecs together.
        across_tasks: One row per metric, all tasks together.
        per_level: One row per task, codec, level and metric, over the sources.
        comparisons: One row per pair of metrics, coefficient, and row of the first three tables.
        discrimination: One row per task and metric: can it tell versions of a source apart?
        left_out: One row per task, codec and metric, of ``leave_out`` only: does it place versions
            of a codec, which it was not trained on, among those of the others?
    """

    correlations: pa.Table
    across_codecs: pa.Table
    across_tasks: pa.Table
    per_level: pa.Table
    comparisons: pa.Table
    discrimination: pa.Table
    left_out: pa.Table


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
    tasks: Mapping[str, TaskFacts] = MappingProxyType({}),
) -> Statistics:
    """Correlate each metric with the label in every way, with intervals and comparisons.

    The result does not depend on the order of the rows of one task, nor a task's figures on the
    other tasks, but for ``across_tasks``.

    Args:
        labels: One row per compressed feature. Where they have a column ``group``, the sources of a
            group are drawn together.
        metrics: M metrics. Those with ``left_out`` count in the table of that name only.
        values: (rows, M) float64 scores; NaN where a metric has none.
        target: Label column to follow, larger is worse: distortion or loss.
        draws: Resamples of the sources for the intervals; 0 for none, and no comparisons.
        seed: Of the resamples.
        tables: Names of the tables to compute; the others come without rows.
        tasks: What is known of the tasks: the smallest difference that counts. See
            `cfqa_data.eval.features.datasets.facts_of` for those about which nothing is given.

    Raises:
        MetricError: A source lacks levels that others have; a label is NaN or Inf, or a score Inf;
            draws or seed is negative; there is no such table.
    """
    for name, value in (("draws", draws), ("seed", seed)):
        if value < 0:
            raise MetricError(f"{name} must be at least 0, not {value}")
    requested = set(tables)
    for table in sorted(requested - COLUMNS.keys()):
        raise MetricError(unknown_name("table", table, COLUMNS))
    everything, plain = metrics, [n for n, one in enumerate(metrics) if one.left_out is None]
    metrics = [everything[number] for number in plain]
    directions = [metric.lower_better for metric in metrics]
    signs = orientation(directions)
    named: Rows = {
        "metric": np.array([m.name for m in metrics], object),
        "lower_better": directions,
    }
    parts: dict[str, list[Rows]] = {table: [] for table in COLUMNS}

    def append(table: str, cell: Cell, **place: Any) -> None:
        if {table, "comparisons"} & requested:
            whole = "comparisons" in requested
            groups, comparisons = cell_comparisons(cell, named["metric"], signs, whole)
            parts["comparisons"] += [{"codec": "all"} | place | rows for rows in comparisons]
            if table in requested:
                parts[table].append(place | named | cell_figures(cell) | groups)

    together: list[Cell] = []
    for grid in read_grids(labels):
        whole = np.moveaxis(np.asarray(values, dtype=np.float64)[grid.rows], -1, 0)
        scores, truth = whole[plain], truths(grid, labels, target)
        for metric, bad in zip(metrics, np.isinf(scores).reshape(len(metrics), -1), strict=True):
            if bad.any():
                where = grid.name(int(bad.argmax()))
                raise MetricError(f"{metric.name}: the score of {where} is Inf")
        of = grid.groups, grid.draw(draws, seed)
        if len(plain) < len(everything) and {"left_out", "comparisons"} & requested:
            figures, compared = left_out_figures(grid, everything, whole, truth, of[1])
            parts["left_out"] += figures
            parts["comparisons"] += compared
        for codec, versions in grid.codecs.items():
            cell = cell_of(scores[:, :, versions], truth[:, versions], *of)
            append("correlations", cell, task=grid.task, codec=codec)
        together.append(cell_of(scores, truth, *of))
        append("across_codecs", together[-1], task=grid.task, codecs=len(grid.codecs))
        if "per_level" in requested:
            levels = per_level(grid, scores, truth, of[1])
            parts["per_level"] += (named | rows for rows in levels)
        if "discrimination" in requested:
            facts = facts_of(grid.task, tasks)
            counted = facts.loss if target == "loss" else facts.score
            threshold = counted.noticeable if counted else 0.0
            areas = discriminate(scores, truth, signs, threshold)._asdict()
            place = {"task": grid.task, "threshold": threshold}
            parts["discrimination"].append(place | named | areas)
    if together:
        append("across_tasks", join_cells(together), task="all", tasks=len(together))
    return Statistics(
        **{
            name: make_table(COLUMNS[name], parts[name] if name in requested else [])
            for name in parts
        }
    )


def source_means(
    labels: pa.Table, metrics: Sequence[Metric], values: NDArray[Any], target: str = "distortion"
) -> list[dict[str, Any]]:
    """Return the coefficients of ``correlations`` alone, a row per task, codec and metric.

    Args:
        labels: See `statistics`.
        metrics: See `statistics`.
        values: See `statistics`.
        target: See `statistics`.
    """
    found = []
    for grid in read_grids(labels):
        scores = np.moveaxis(np.asarray(values, dtype=np.float64)[grid.rows], -1, 0)
        truth = truths(grid, labels, target)
        for codec, versions in grid.codecs.items():
            each = coefficients(scores[:, :, versions], truth[:, versions])
            for place, metric in enumerate(metrics):
                known = each[:, place][:, ~np.isnan(each[0, place])]
                means = known.mean(axis=1).tolist() if known.size else [None] * len(COEFFICIENTS)
                row: dict[str, Any] = {"task": grid.task, "codec": codec, "metric": metric.name}
                row |= {"lower_better": metric.lower_better}
                found.append(row | dict(zip(COEFFICIENTS, means, strict=True)))
    return found


def check_labels(labels: pa.Table, target: str) -> None:
    """Check that labels can be correlated with, before anything is scored.

    Raises:
        MetricError: A source lacks levels that others have, a task has no such label, or one is NaN
            or Inf.
    """
    for grid in read_grids(labels):
        truths(grid, labels, target)


def truths(grid: Grid, labels: pa.Table, target: str) -> Floats:
    """Return the labels of a task, (S, V), larger is worse."""
    column = labels[target]
    if target == "loss" and column.take(grid.rows.ravel()).null_count == grid.rows.size:
        raise MetricError(
            f"task {grid.task} has no loss: use the distortion, or leave the task out"
        )
    try:
        truth = np.asarray(column.to_numpy().astype(np.float64)[grid.rows])
    except (TypeError, ValueError):
        raise MetricError(f"the labels in column {target!r} are not numbers") from None
    bad = np.flatnonzero(~np.isfinite(truth))
    if bad.size:
        raise MetricError(f"the {target} of {grid.name(int(bad[0]))} is missing, NaN or Inf")
    return truth
