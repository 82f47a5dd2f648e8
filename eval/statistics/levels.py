"""Correlation over the sources at each level of each codec."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from cfqa_data.eval.statistics.bootstrap import interval
from cfqa_data.eval.statistics.columns import BY_LEVEL, Rows
from cfqa_data.eval.statistics.correlations import COEFFICIENTS, coefficients, equal_rows
from cfqa_data.eval.statistics.grids import Grid
from cfqa_data.eval.statistics.pooled import pooled_coefficients

__all__ = ["per_level"]

MAX_DRAWS = 200
"""Maximum number of bootstrap samples; small since there are many levels."""

Floats = NDArray[np.float64]


def per_level(grid: Grid, scores: Floats, truth: Floats, counts: Floats) -> Iterator[Rows]:
    """Yield the rows of the table ``per_level`` for each level, a row per metric.

    Sources for which a metric has no score are left out.

    Args:
        grid: Grid of a task.
        scores: (M, S, V) scores; NaN where missing.
        truth: (S, V) labels, larger is worse.
        counts: (1 + R, S) bootstrap counts of the sources, the data itself first.
    """
    counts = counts[: 1 + MAX_DRAWS]
    by_level = coefficients(scores.swapaxes(1, 2), truth.T)  # (3, M, V)
    for version, (codec, level) in enumerate(grid.versions):
        points, labels = scores[:, :, version], truth[:, version]
        present = ~np.isnan(points)
        correlations = by_level[..., version]
        ends = np.full((2, len(BY_LEVEL), len(scores)), np.nan)
        for rows, sources in equal_rows(present):
            if sources.any():
                x, y = points[rows][:, sources], labels[sources]
                if not sources.all():
                    correlations[:, rows] = coefficients(x[:, None], y[None])[..., 0]
                starts = np.arange(len(y))
                resampled = pooled_coefficients(x, y, starts, counts[:, sources], BY_LEVEL)
                if len(np.unique(grid.groups[sources])) > 1:  # else each sample is the data
                    ends[..., rows] = interval(resampled)
        figures = dict(zip(COEFFICIENTS, correlations, strict=True))
        for name, low, high in zip(BY_LEVEL, *ends, strict=True):
            figures |= {f"{name}_low": low, f"{name}_high": high}
        keys = {"task": grid.task, "codec": codec, "level": level}
        yield {**keys, **figures, "n_sources": present.sum(axis=1)}
