"""From scores and labels to the tables of an evaluation.

Three tables, all pyarrow:

* scores: one row per compressed feature and metric: task, source_id, codec, level, metric, value.
* correlations: one row per task, codec and metric. ``plcc`` and ``srocc`` are taken per source
  over its levels and averaged, as published; ``pooled_plcc`` and ``pooled_srocc`` take all points
  of the task and codec as one series.
* across_codecs: one row per task and metric, the same figures with the codecs' levels put together
  (forty points per source for four codecs). Within one codec's ladder every sane metric falls with
  the level, and their SROCCs hardly differ; across codecs they must agree on which of two different
  kinds of damage is worse.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cfqa_data.errors import MetricError
from cfqa_data.eval.correlations import correlate
from cfqa_data.eval.metrics import Metric

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["across_codecs_table", "correlations_table", "scores_table"]


def scores_table(labels: pa.Table, metrics: Sequence[Metric], values: NDArray[Any]) -> pa.Table:
    """Lay out scores in long form, the metrics of one feature next to each other.

    Args:
        labels: One row per compressed feature.
        metrics: M metrics.
        values: (rows, M) float64 scores.
    """
    import pyarrow as pa

    rows = labels.select(["task", "source_id", "codec", "level"]).combine_chunks()
    names = pa.array([metric.name for metric in metrics], pa.string())
    repeated = rows.take(pa.array(np.repeat(np.arange(labels.num_rows), len(metrics))))
    return repeated.append_column(
        "metric", names.take(pa.array(np.tile(np.arange(len(metrics)), labels.num_rows)))
    ).append_column("value", pa.array(values.ravel(), pa.float64()))


def correlations_table(
    labels: pa.Table, metrics: Sequence[Metric], values: NDArray[Any], target: str = "distortion"
) -> pa.Table:
    """Correlate each metric with the label, per task and codec.

    Args:
        labels: One row per compressed feature.
        metrics: M metrics.
        values: (rows, M) float64 scores.
        target: Label column to follow, larger is worse: distortion or loss.

    Raises:
        MetricError: A source lacks levels that others have, or a label is missing.
    """
    return _table(
        {"task": task, "codec": codec, **figures}
        for task, codecs, grid in _grids(labels)
        for k, codec in enumerate(codecs)
        for figures in _figures(labels, metrics, values, target, grid[:, k])
    )


def across_codecs_table(
    labels: pa.Table, metrics: Sequence[Metric], values: NDArray[Any], target: str = "distortion"
) -> pa.Table:
    """Correlate each metric with the label per task, all codecs together.

    See `correlations_table`.
    """
    return _table(
        {"task": task, "codecs": len(codecs), **figures}
        for task, codecs, grid in _grids(labels)
        for figures in _figures(labels, metrics, values, target, grid.reshape(len(grid), -1))
    )


def _grids(labels: pa.Table) -> Iterator[tuple[str, list[str], NDArray[np.intp]]]:
    """Yield per task its codecs and the label rows as an (S, K, L) array of row numbers."""
    columns = {name: labels[name].to_pylist() for name in ("task", "source_id", "codec", "level")}
    for task in dict.fromkeys(columns["task"]):
        rows = [row for row, name in enumerate(columns["task"]) if name == task]
        cells = {
            (columns["source_id"][row], columns["codec"][row], columns["level"][row]): row
            for row in rows
        }
        sources, codecs, levels = (list(dict.fromkeys(axis)) for axis in zip(*cells, strict=True))
        levels.sort()
        full = [(s, k, v) for s in sources for k in codecs for v in levels]
        for cell in full:
            if cell not in cells:
                raise MetricError(
                    f"labels of {task}: {cell[0]} has no row for codec {cell[1]}, level {cell[2]}"
                )
        if len(rows) != len(full):
            raise MetricError(f"labels of {task}: {len(rows) - len(full)} rows are there twice")
        grid = np.array([cells[cell] for cell in full], dtype=np.intp)
        yield task, codecs, grid.reshape(len(sources), len(codecs), len(levels))


def _figures(
    labels: pa.Table,
    metrics: Sequence[Metric],
    values: NDArray[Any],
    target: str,
    grid: NDArray[np.intp],
) -> Iterator[dict[str, Any]]:
    """Yield one row of figures per metric for an (S, L) grid of row numbers."""
    label = labels[target].to_numpy()[grid]
    for column, metric in enumerate(metrics):
        scores = values[:, column][grid]
        try:
            mean = correlate(scores, label)
            pooled = correlate(scores.reshape(1, -1), label.reshape(1, -1))
        except MetricError as error:
            raise MetricError(f"{metric.name} against {target}: {error}") from None
        yield {
            "metric": metric.name,
            "lower_better": metric.lower_better,
            "plcc": mean.plcc,
            "srocc": mean.srocc,
            "n_valid": mean.n_valid,
            "n_constant": mean.n_constant,
            "n_flat": mean.n_flat,
            "pooled_plcc": pooled.plcc,
            "pooled_srocc": pooled.srocc,
            "n_pooled": label.size,
        }


def _table(rows: Iterator[dict[str, Any]]) -> pa.Table:
    """Make a table; NaN (nothing to correlate) becomes null."""
    import pyarrow as pa

    schema = {
        "task": pa.string(),
        "codec": pa.string(),
        "codecs": pa.int32(),
        "metric": pa.string(),
        "lower_better": pa.bool_(),
        "plcc": pa.float64(),
        "srocc": pa.float64(),
        "n_valid": pa.int32(),
        "n_constant": pa.int32(),
        "n_flat": pa.int32(),
        "pooled_plcc": pa.float64(),
        "pooled_srocc": pa.float64(),
        "n_pooled": pa.int32(),
    }
    collected = list(rows)
    names = [name for name in schema if not collected or name in collected[0]]
    return pa.table(
        {
            name: pa.array([row[name] for row in collected], schema[name], from_pandas=True)
            for name in names
        }
    )
