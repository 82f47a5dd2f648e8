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
    cells: Cells | None = None,
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
        cells: What `arrange` made of these scores, where that was done before.

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
    named: Rows = {"metric": np.array([m.name for m in plain], object), "lower_better": directions}
    parts: dict[str, list[Rows]] = {table: [] for table in COLUMNS}

    def append(table: str, cell: Cell, **place: Any) -> None:
        whole = "comparisons" in requested
        groups, comparisons = cell_comparisons(cell, named["metric"], signs, whole)
        parts["comparisons"] += [{"codec": "all"} | place | rows for rows in comparisons]
        if table in requested:
            parts[table].append(place | named | cell_figures(cell) | groups)

    for task in cells.tasks:
        name, scores = task.grid.task, task.scores[task.plain]
        if len(plain) < len(metrics) and {"left_out", "comparisons"} & requested:
            of = task.grid, metrics, task.scores, task.truth, task.counts
            for table, rows in zip(("left_out", "comparisons"), left_out_figures(*of), strict=True):
                parts[table] += rows
        if {"correlations", "comparisons"} & requested:
            for codec, cell in task.codecs.items():
                append("correlations", cell, task=name, codec=codec)
        if {"across_codecs", "comparisons"} & requested:
            append("across_codecs", task.whole, task=name, codecs=len(task.codecs))
        if "per_level" in requested:
            levels = per_level(task.grid, scores, task.truth, task.counts)
            parts["per_level"] += (named | rows for rows in levels)
        if "discrimination" in requested:
            facts = facts_of(name, tasks)
            counted = facts.loss if target == "loss" else facts.score
            threshold = counted.noticeable if counted else 0.0
            areas = discriminate(scores, task.truth, signs, threshold)._asdict()
            parts["discrimination"].append({"task": name, "threshold": threshold} | named | areas)
    if cells.tasks and {"across_tasks", "comparisons"} & requested:
        append("across_tasks", cells.together, task="all", tasks=len(cells.tasks))
    return Statistics(
        **{
            name: make_table(COLUMNS[name], parts[name] if name in requested else [])
            for name in parts
        }
    )


def source_means(cells: Cells, metrics: Sequence[Metric]) -> list[dict[str, Any]]:
    """Return the coefficients of ``correlations`` alone, a row per task, codec and metric."""
    found = []
    for task in cells.tasks:
        for codec, cell in task.codecs.items():
            for place, metric in enumerate(metrics):
                known = cell.per_source[:, place][:, ~np.isnan(cell.per_source[0, place])]
                means = known.mean(axis=1).tolist() if known.size else [None] * len(COEFFICIENTS)
                row: dict[str, Any] = {"task": task.grid.task, "codec": codec}
                row |= {"metric": metric.name, "lower_better": metric.lower_better}
                found.append(row | dict(zip(COEFFICIENTS, means, strict=True)))
    return found
