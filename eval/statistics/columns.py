"""Columns of the tables of statistics, and the construction of these tables.

An undefined figure (nothing to correlate, no bootstrap samples) is null, not NaN.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from cfqa_data.arrow import pa
from cfqa_data.eval.statistics.correlations import COEFFICIENTS

__all__ = ["BY_LEVEL", "COLUMNS", "DIFFERENCES", "Rows", "make_table"]

METRIC = ("metric", "lower_better")

BY_LEVEL = ("plcc", "srocc")
"""Coefficients with an interval at each level."""


def _with_interval(prefix: str, names: Sequence[str] = COEFFICIENTS) -> tuple[str, ...]:
    return tuple(prefix + name + end for name in names for end in ("", "_low", "_high"))


FIGURES = (
    *("n_versions", *METRIC, *_with_interval("")),
    *("n_valid", "n_constant", "n_missing", "n_flat", *_with_interval("pooled_"), "n_pooled"),
    *("mapped_plcc", "mapped_rmse", "mapping", *(f"{name}_group" for name in COEFFICIENTS)),
)

DIFFERENCES = (
    *("view", "task", "codec", "level", "figure", "metric", "other", "value", "other_value"),
    *("difference", "low", "high", "p", "p_holm", "n_sources"),
)
"""Columns of the comparison with a baseline; see `cfqa_data.eval.statistics.baseline`."""

COLUMNS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "correlations": ("task", "codec", *FIGURES),
        "across_codecs": ("task", "codecs", *FIGURES),
        "across_tasks": ("tasks", *FIGURES),
        "per_level": (
            *("task", "codec", "level", *METRIC),
            *(*_with_interval("", BY_LEVEL), "krocc", "n_sources"),
        ),
        "comparisons": (
            *("task", "codec", "figure", "metric", "other"),
            *("difference", "low", "high", "p", "p_holm"),
        ),
        "discrimination": (
            *("task", "threshold", "n_different", "n_similar", *METRIC),
            *("auc_different", "auc_better"),
        ),
        "left_out": (
            *("task", "codec", *METRIC, "trained"),
            *("pairs", "pairs_low", "pairs_high", "pairs_group", "n_valid"),
        ),
    }
)
"""Table -> its columns, which docs/statistics.md describes."""

TEXTS = ("view", "task", "codec", "metric", "other", "figure", "mapping")
COUNTS = ("codecs", "tasks", "level")

Rows = dict[str, Any]
"""Part of a table: column -> an array, or one value for all rows; ``metric`` is an array."""


def make_table(names: Sequence[str], parts: Iterable[Rows]) -> pa.Table:
    """Make a table with the named columns from parts of its rows; NaN becomes null."""
    columns: dict[str, list[Any]] = {column: [] for column in names}
    for part in parts:
        for column, values in columns.items():
            values += np.broadcast_to(part[column], len(part["metric"])).tolist()
    kinds = dict.fromkeys(TEXTS, pa.string()) | dict.fromkeys(
        ("lower_better", "trained"), pa.bool_()
    )
    for column in columns:
        whole = column in COUNTS or column.startswith("n_") or column.endswith("_group")
        kinds.setdefault(column, pa.int32() if whole else pa.float64())
    return pa.table(
        {
            column: pa.array(values, from_pandas=True).cast(kinds[column])
            for column, values in columns.items()
        }
    )
