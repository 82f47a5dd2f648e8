"""Compute the tables of statistics from scores and labels.

docs/statistics.md describes the columns of each table:

* correlations: per task, codec and metric.
* across_codecs: per task and metric, with a source's points from all codecs pooled. Within one
  codec's ladder almost every metric is monotonic in the level, and SROCCs hardly differ; across
  codecs a metric must decide which of two different kinds of distortion is worse.
* across_tasks: per metric, all tasks together.
* per_level: per task, codec, level and metric, over the sources.
* comparisons: per cell of the first three tables, coefficient, and pair of metrics.
* discrimination: per task and metric, Krasula's two AUCs.
* left_out: per task, codec and metric, if metrics were also trained without the codec.
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
    Cells,
    arrange,
    cell_comparisons,
    cell_figures,
)
from cfqa_data.eval.statistics.columns import COLUMNS, Rows, make_table
from cfqa_data.eval.statistics.comparison import orientation
from cfqa_data.eval.statistics.correlations import COEFFICIENTS
from cfqa_data.eval.statistics.discrimination import discriminate
from cfqa_data.eval.statistics.left_out import left_out_figures
from cfqa_data.eval.statistics.levels import per_level
from cfqa_data.extras import extras

if TYPE_CHECKING:
    from cfqa_data.eval.metrics import Metric
    from cfqa_data.format.facts import TaskFacts

__all__ = ["DRAWS", "Statistics", "source_means", "statistics"]

DRAWS = 1000


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """The tables of statistics, described in docs/statistics.md; undefined figures are null.

    Attributes:
        correlations: One row per task, codec and metric.
        across_codecs: One row per task and metric, all codecs together.
        across_tasks: One row per metric, all tasks together.
        per_level: One row per task, codec, level and metric, over the sources.
        comparisons: One row per pair of metrics, coefficient, and row of the first three tables.
        discrimination: One row per task and metric: how well it classifies pairs of versions.
        left_out: One row per task, codec and metric, with ``leave_out`` only: how well it orders
            versions of a codec that it was not trained on among those of the others.
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
    cells: Cells | None = None,
) -> Statistics:
    """Compute the tables of statistics, with confidence intervals and comparisons.

    The result does not depend on the order of the rows of a task, and the figures of a task do not
    depend on other tasks, except for ``across_tasks``.

    Args:
        labels: One row per compressed feature. The sources of a ``group``, if there is such a
            column, are resampled together.
        metrics: M metrics. Those with ``left_out`` appear in the table of that name only.
        values: (rows, M) float64 scores; NaN where missing.
        target: Label column to correlate with, larger is worse: ``distortion`` or ``loss``.
        draws: Number of bootstrap samples of the sources; 0 computes no intervals and comparisons.
        seed: Seed of the bootstrap.
        tables: Names of the tables to compute; the others have no rows.
        tasks: Facts of the tasks, for the noticeable difference of their labels. See
            `cfqa_data.eval.features.datasets.facts_of` for the defaults.
        cells: Result of `arrange` for these scores, if it was computed before.

    Raises:
        MetricError: If a source lacks levels that other sources have, a label is NaN or Inf, a
            score is Inf, draws or seed is negative, or a table is unknown.
    """
    requested = set(tables)
    for table in sorted(requested - COLUMNS.keys()):
        raise MetricError(unknown_name("table", table, COLUMNS))
    cells = arrange(labels, metrics, values, target, draws, seed) if cells is None else cells
    plain = [metric for metric in metrics if metric.left_out is None]
    directions = [metric.lower_better for metric in plain]
    signs = orientation(directions)
    columns: Rows = {
        "metric": np.array([m.name for m in plain], object),
        "lower_better": directions,
    }
    parts: dict[str, list[Rows]] = {table: [] for table in COLUMNS}

    def append(table: str, cell: Cell, **keys: Any) -> None:
        intervals = "comparisons" in requested
        groups, comparisons = cell_comparisons(cell, columns["metric"], signs, intervals)
        parts["comparisons"] += [{"codec": "all"} | keys | rows for rows in comparisons]
        if table in requested:
            parts[table].append(keys | columns | cell_figures(cell) | groups)

    for task in cells.tasks:
        name, scores = task.grid.task, task.scores[task.plain]
        if len(plain) < len(metrics) and {"left_out", "comparisons"} & requested:
            left_out = left_out_figures(task.grid, metrics, task.scores, task.truth, task.counts)
            for table, rows in zip(("left_out", "comparisons"), left_out, strict=True):
                parts[table] += rows
        if {"correlations", "comparisons"} & requested:
            for codec, cell in task.codecs.items():
                append("correlations", cell, task=name, codec=codec)
        if {"across_codecs", "comparisons"} & requested:
            append("across_codecs", task.whole, task=name, codecs=len(task.codecs))
        if "per_level" in requested:
            levels = per_level(task.grid, scores, task.truth, task.counts)
            parts["per_level"] += (columns | rows for rows in levels)
        if "discrimination" in requested:
            facts = facts_of(name, tasks)
            label = facts.loss if target == "loss" else facts.score
            threshold = label.noticeable if label else 0.0
            areas = discriminate(scores, task.truth, signs, threshold)._asdict()
            keys = {"task": name, "threshold": threshold}
            parts["discrimination"].append(keys | columns | areas)
    if cells.tasks and {"across_tasks", "comparisons"} & requested:
        append("across_tasks", cells.together, task="all", tasks=len(cells.tasks))
    return Statistics(
        **{
            name: make_table(COLUMNS[name], parts[name] if name in requested else [])
            for name in parts
        }
    )


def source_means(cells: Cells, metrics: Sequence[Metric]) -> list[dict[str, Any]]:
    """Return the coefficients of the table ``correlations`` without intervals, as dictionaries."""
    rows = []
    for task in cells.tasks:
        for codec, cell in task.codecs.items():
            for column, metric in enumerate(metrics):
                valid = ~np.isnan(cell.per_source[0, column])
                known = cell.per_source[:, column][:, valid]
                means = known.mean(axis=1).tolist() if known.size else [None] * len(COEFFICIENTS)
                row: dict[str, Any] = {"task": task.grid.task, "codec": codec}
                row |= {"metric": metric.name, "lower_better": metric.lower_better}
                rows.append(row | dict(zip(COEFFICIENTS, means, strict=True)))
    return rows
