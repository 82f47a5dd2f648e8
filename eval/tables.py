"""The scores of an evaluation as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cfqa_data.eval.metrics import Metric

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["key_columns", "scores_table"]

KEYS = ("task", "source_id", "codec", "level")


def key_columns(labels: pa.Table) -> pa.Table:
    """Return what names each row of labels, in types that a file of scores is read back with.

    Args:
        labels: Anybody's: texts may be ``large_string``, ``string_view`` or a dictionary.
    """
    import pyarrow as pa

    keys = labels.select(KEYS)
    for place, column in enumerate(keys.columns):
        kind = column.type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
            kind = pa.string()
        if kind != column.type:
            keys = keys.set_column(place, KEYS[place], column.cast(kind))
    return keys


def scores_table(labels: pa.Table, metrics: Sequence[Metric], values: NDArray[Any]) -> pa.Table:
    """Lay out scores in long form, the metrics of one feature next to each other.

    Args:
        labels: One row per compressed feature.
        metrics: M metrics.
        values: (rows, M) float64 scores; NaN, where there is none, becomes null.
    """
    import pyarrow as pa

    rows = key_columns(labels).combine_chunks()
    names = pa.array([metric.name for metric in metrics], pa.string())
    repeated = rows.take(pa.array(np.repeat(np.arange(labels.num_rows), len(metrics))))
    return repeated.append_column(
        "metric", names.take(pa.array(np.tile(np.arange(len(metrics)), labels.num_rows)))
    ).append_column("value", pa.array(values.ravel(), pa.float64(), from_pandas=True))
