"""Label health: whether labels vary enough, per task and codec, to compare metrics by them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cfqa_data.arrow import pa
from cfqa_data.console.text import percent

__all__ = ["LEAST_CHANGING", "LEAST_MONOTONE", "LEAST_SPAN", "figures_of", "health", "health_cells"]

LEAST_CHANGING = 0.8
"""Share of sources whose distortion must not be the same at every level."""

LEAST_SPAN = 10.0
"""How many times the mean distortion at the best level the one at the worst must be."""

LEAST_MONOTONE = 0.95
"""Share of neighbouring levels of a source over which the rate must fall and the MSE rise."""


def health(labels: pa.Table) -> list[dict[str, Any]]:
    """Return one row of figures per task and codec.

    Args:
        labels: Rows of :func:`cfqa_data.format.schema.label_schema`.

    Returns:
        Rows with ``task``, ``codec``, ``sources`` (how many), ``changing`` (share of sources whose
        distortion is not constant over the levels; None of one level), ``distortion_best`` and
        ``distortion_worst`` (means at the first and last level, in the score's unit),
        ``rate_falls`` and ``mse_rises`` (shares of neighbouring levels within a source; None if
        none of the values is known) and ``ok`` (all thresholds are met by what is known).
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
    """Return a row's figures for a table: all but whether they are ok."""
    several = row["changing"] is not None  # of one level, no neighbouring levels are compared
    return [
        row["task"],
        row["codec"],
        percent(row["changing"]),
        f"{row['distortion_best']:.4g}",
        f"{row['distortion_worst']:.4g}",
        *(percent(row[name], 1) if several else "-" for name in ("rate_falls", "mse_rises")),
    ]


def _series(data: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Return distortion, bits and MSE as float64 (sources, levels); what is not known is NaN."""
    sources, row = np.unique(data["source_id"].astype(str), return_inverse=True)
    levels, column = np.unique(data["level"], return_inverse=True)
    series = []
    for name in ("distortion", "bits", "mse"):
        table = np.full((len(sources), len(levels)), np.nan)
        table[row, column] = data[name]
        series.append(table)
    return series


def figures_of(distortion: np.ndarray, bits: np.ndarray, mse: np.ndarray) -> dict[str, Any]:
    """Return the figures of a task and codec; see :func:`health`.

    Args:
        distortion: float64 (sources, levels), as are the others; what is not known is NaN.
        bits: Of each feature.
        mse: Of each feature.
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
    """Return the share of neighbouring levels over which a series (sources, levels) rises.

    Counted are those whose values are known; None if there are levels to compare and no values.
    """
    steps = np.diff(series)
    known = ~np.isnan(steps)
    if not known.any():
        return None if steps.size else 1.0
    return float((steps > 0)[known].mean())
