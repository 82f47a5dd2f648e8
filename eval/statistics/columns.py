"""Columns of the statistics' tables, and tables from rows.

A figure that does not exist (nothing to correlate, no resamples) is null, not NaN.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from cfqa_data.eval.statistics.correlations import COEFFICIENTS

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["COLUMNS", "make_table"]

METRIC = {"metric": "string", "lower_better": "bool"}


def _with_interval(names: Iterable[str]) -> dict[str, str]:
    return {name + end: "float64" for name in names for end in ("", "_low", "_high")}


FIGURES: Mapping[str, str] = {
    **METRIC,
    **_with_interval(COEFFICIENTS),
    "n_valid": "int32",
    "n_constant": "int32",
    "n_missing": "int32",
    "n_flat": "int32",
    **_with_interval(f"pooled_{name}" for name in COEFFICIENTS),
    "n_pooled": "int32",
    "mapped_plcc": "float64",
    "mapped_rmse": "float64",
    "mapping": "string",
    **{f"{name}_group": "int32" for name in COEFFICIENTS},
}

COLUMNS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "correlations": {"task": "string", "codec": "string", **FIGURES},
        "across_codecs": {"task": "string", "codecs": "int32", **FIGURES},
        "across_tasks": {"tasks": "int32", **FIGURES},
        "per_level": {
            "task": "string",
            "codec": "string",
            "level": "int32",
            **METRIC,
            **dict.fromkeys(COEFFICIENTS, "float64"),
            "n_sources": "int32",
        },
        "comparisons": {
            "task": "string",
            "codec": "string",
            "figure": "string",
            "metric": "string",
            "other": "string",
            **dict.fromkeys(("difference", "low", "high", "p", "p_holm"), "float64"),
        },
        "discrimination": {
            "task": "string",
            "threshold": "float64",
            "n_different": "int32",
            "n_similar": "int32",
            **METRIC,
            "auc_different": "float64",
            "auc_better": "float64",
        },
    }
)
"""Table -> column -> Arrow type; docs/statistics.md says what they mean."""


def make_table(name: str, rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Return the table called ``name``; NaN becomes null."""
    import pyarrow as pa

    collected = list(rows)
    return pa.table(
        {
            column: pa.array(
                [row[column] for row in collected], getattr(pa, _factory(kind))(), from_pandas=True
            )
            for column, kind in COLUMNS[name].items()
        }
    )


def _factory(kind: str) -> str:
    return "bool_" if kind == "bool" else kind
