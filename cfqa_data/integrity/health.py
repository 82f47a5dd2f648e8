"""Label sanity checks: whether the labels of a codec vary enough to compare metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cfqa_data.arrow import pa
from cfqa_data.console.text import percent

__all__ = ["LEAST_CHANGING", "LEAST_MONOTONE", "LEAST_SPAN", "figures_of", "health", "health_cells"]

LEAST_CHANGING = 0.8
"""Smallest share of sources whose distortion is not the same at every level."""

LEAST_SPAN = 10.0
"""Smallest ratio of the mean distortions at the last and first level."""

LEAST_MONOTONE = 0.95
"""Smallest share of steps between neighbouring levels at which the rate falls or the MSE rises."""


def health(labels: pa.Table) -> list[dict[str, Any]]:
    """Return the figures of each task and codec.

    Args:
        labels: Rows of :func:`cfqa_data.format.schema.label_schema`.

    Returns:
        One row per task and codec with ``task``, ``codec``, ``sources`` (their number),
        ``changing`` (share of sources whose distortion is not constant over the levels; None for a
        single level), ``distortion_best`` and ``distortion_worst`` (means at the first and last
        level, in the unit of the score), ``rate_falls`` and ``mse_rises`` (shares of the steps
        between neighbouring levels of a source; None if all values are unknown) and ``ok``
        (whether all known figures meet their thresholds).
    """
    columns = ("task", "codec", "source_id", "level", "distortion", "bits", "mse")
    data = {name: labels[name].to_numpy() for name in columns}
    rows = []
    for task, codec in dict.fromkeys(zip(data["task"], data["codec"], strict=True)):
        chosen = (data["task"] == task) & (data["codec"] == codec)
        series = _series({name: column[chosen] for name, column in data.items()})
        rows.append({"task": task, "codec": codec} | figures_of(*series))
    return rows


def health_cells(row: Mapping[str, Any]) -> list[str]:
    """Return the cells of a row for a table, without ``ok``."""
    several = row["changing"] is not None  # a single level has no steps
    return [
        row["task"],
        row["codec"],
        percent(row["changing"]),
        f"{row['distortion_best']:.4g}",
        f"{row['distortion_worst']:.4g}",
        *(percent(row[name], 1) if several else "-" for name in ("rate_falls", "mse_rises")),
    ]


def _series(data: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Return distortion, bits and MSE as float64 (sources, levels), with NaN for unknown values."""
    sources, row = np.unique(data["source_id"].astype(str), return_inverse=True)
    levels, column = np.unique(data["level"], return_inverse=True)
    series = []
    for name in ("distortion", "bits", "mse"):
        table = np.full((len(sources), len(levels)), np.nan)
        table[row, column] = data[name]
        series.append(table)
    return series


def figures_of(distortion: np.ndarray, bits: np.ndarray, mse: np.ndarray) -> dict[str, Any]:
    """Return the figures of one task and codec, as in :func:`health`.

    Args:
        distortion: Distortion, float64 (sources, levels).
        bits: Size in bits, same shape; NaN if unknown.
        mse: MSE, same shape; NaN if unknown.
    """
    best, worst = distortion[:, 0].mean(), distortion[:, -1].mean()
    falls, rises = _share_rising(-bits), _share_rising(mse)
    several = distortion.shape[1] > 1
    figures: dict[str, Any] = {
        "sources": len(distortion),
        "changing": float((distortion != distortion[:, :1]).any(axis=1).mean())
        if several
        else None,
        "distortion_best": float(best),
        "distortion_worst": float(worst),
        "rate_falls": falls,
        "mse_rises": rises,
    }
    ok = not several or (
        figures["changing"] >= LEAST_CHANGING and worst > 0 and worst >= LEAST_SPAN * best
    )
    monotone = all(share is None or share >= LEAST_MONOTONE for share in (falls, rises))
    return figures | {"ok": bool(ok and monotone)}


def _share_rising(series: np.ndarray) -> float | None:
    """Return the share of steps between neighbouring levels at which a series rises.

    Steps with an unknown value are left out. Return None if there are steps and all are unknown.

    Args:
        series: Values, float64 (sources, levels).
    """
    steps = np.diff(series)
    known = ~np.isnan(steps)
    if not known.any():
        return None if steps.size else 1.0
    return float((steps > 0)[known].mean())
