"""Correlations over the sources at each level of each codec."""

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

DRAWS = 200
"""Resamples for the intervals, at most: there are many levels."""

Floats = NDArray[np.float64]


def per_level(grid: Grid, scores: Floats, truth: Floats, counts: Floats) -> Iterator[Rows]:
    """Yield the rows of each level, a row per metric, of the sources that it has a score of.

    Args:
        grid: A task's.
        scores: (M, S, V) scores, NaN where there is none.
        truth: (S, V) labels.
        counts: (1 + R, S) resamples of the sources, the data itself first.
    """
    counts = counts[: 1 + DRAWS]
    of_levels = coefficients(scores.swapaxes(1, 2), truth.T)  # (3, M, V)
    for place, (codec, level) in enumerate(grid.versions):
        points, truths = scores[:, :, place], truth[:, place]
        present = ~np.isnan(points)
        found = of_levels[..., place]
        ends = np.full((2, len(BY_LEVEL), len(scores)), np.nan)
        for which, here in equal_rows(present):
            if here.any():
                some, of = points[which][:, here], truths[here]
                if not here.all():
                    found[:, which] = coefficients(some[:, None], of[None])[..., 0]
                starts = np.arange(len(of))
                drawn = pooled_coefficients(some, of, starts, counts[:, here], BY_LEVEL)
                if len(np.unique(grid.groups[here])) > 1:  # of one, every resample is the data
                    ends[..., which] = interval(drawn)
        figures = dict(zip(COEFFICIENTS, found, strict=True))
        for name, low, high in zip(BY_LEVEL, *ends, strict=True):
            figures |= {f"{name}_low": low, f"{name}_high": high}
        where = {"task": grid.task, "codec": codec, "level": level}
        yield {**where, **figures, "n_sources": present.sum(axis=1)}
