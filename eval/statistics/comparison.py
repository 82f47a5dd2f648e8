"""Is one metric better than another? Paired differences over the same sources.

Metrics are compared by their oriented per-source means: the mean coefficient, times -1 for a metric
where higher is better, so that larger is always better agreement. A metric whose direction is not
declared cannot be oriented, and is left out.

p is two-sided, of the difference over its bootstrap standard error on Student's t with one degree
of freedom less than there are valid sources. It is not the share of resamples on the other side of
zero: of 1000 resamples that share is 0.002 at the least (counting the data itself), which Holm's
correction over the 300 pairs of 25 metrics would raise to 0.6, whatever the metrics. Nor is it
smaller than 2 / 2^n, which n differences of the same sign have by chance (the sign test), so that
three sources never prove anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cfqa_data.eval.statistics.bootstrap import interval

__all__ = ["ALPHA", "Differences", "compare", "holm", "orientation"]

ALPHA = 0.05
"""A corrected p below this is a significant difference."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Differences:
    """All pairs of P metrics, in the order of `numpy.triu_indices`; Q = P (P - 1) / 2.

    Attributes:
        first: (Q,) index of the one metric.
        second: (Q,) index of the other.
        difference: (Q,) oriented mean of the first less that of the second: above 0, the first is
            better.
        low: (Q,) lower bound of its interval, not corrected for the number of pairs.
        high: (Q,) upper bound.
        p: (Q,) two-sided, not corrected.
        p_holm: (Q,) corrected for the Q pairs.
    """

    first: NDArray[np.intp]
    second: NDArray[np.intp]
    difference: Floats
    low: Floats
    high: Floats
    p: Floats
    p_holm: Floats

    def groups(self, metrics: int) -> NDArray[np.int64]:
        """Return for each of the metrics how many are significantly better than it."""
        significant = self.p_holm < ALPHA
        worse = np.where(self.difference > 0, self.second, self.first)
        return np.bincount(worse[significant], minlength=metrics)


def orientation(lower_better: Sequence[bool | None]) -> Floats:
    """Return (M,) what a coefficient is multiplied with: 1, -1, or NaN where that is not known."""
    signs = {True: 1.0, False: -1.0, None: np.nan}
    return np.array([signs[known] for known in lower_better])


def compare(oriented: Floats, valid: int) -> Differences:
    """Compare P metrics two by two.

    Args:
        oriented: (P, 1 + R) oriented means of the data and of its resamples, the same for all.
        valid: Sources in the means; from a single one nothing follows.
    """
    from scipy import stats

    first, second = np.triu_indices(len(oriented), 1)
    resampled = oriented[first] - oriented[second]
    difference = resampled[:, 0]
    low, high = interval(resampled)
    p = np.full(len(first), np.nan)
    known = ~np.isnan(resampled[:, 1:]).any(axis=0) if len(first) else np.zeros(0, bool)
    if valid > 1 and known.sum() > 1:
        error = resampled[:, 1:][:, known].std(axis=1, ddof=1)
        # Equal differences in all sources leave rounding for an error.
        scale = np.abs(oriented[:, 0]).max() * np.finfo(float).eps * 8
        same = np.abs(difference) <= scale
        t = np.where(same, 0.0, np.abs(difference) / np.maximum(error, scale or 1.0))
        p = np.maximum(2 * stats.t.sf(t, valid - 1), min(1.0, 2.0 ** (1 - valid)))
    else:
        low, high = np.full_like(p, np.nan), np.full_like(p, np.nan)
    return Differences(first, second, difference, low, high, p, holm(p))


def holm(p: Floats) -> Floats:
    """Correct p values for their number (Holm, Scandinavian Journal of Statistics 6, 1979).

    The k-th smallest of m is multiplied by m - k + 1, and is not smaller than those before it.

    Args:
        p: (Q,) in [0, 1], all NaN or none.

    Returns:
        (Q,) corrected, at most 1.
    """
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(steps, 1.0)
    return corrected
