"""The scores of an evaluation as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cfqa_data.eval.metrics import Metric

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["scores_table"]


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
