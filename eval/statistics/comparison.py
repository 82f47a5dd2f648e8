"""Paired comparisons of metrics over the same sources, with Holm's correction.

Metrics are compared by their oriented per-source means: the mean coefficient, times -1 for a metric
where higher is better, so that larger always means better agreement. Metrics of undeclared
direction are left out.

The p value is two-sided: the difference divided by its bootstrap standard error, on Student's t
with one degree of freedom less than there are valid sources, or groups of sources. The share of
bootstrap samples on the other side of zero would not do: with 1000 samples it is at least 0.002
(counting the data itself), which Holm's correction over the 300 pairs of 25 metrics raises to 0.6.
The p value is at least 2 / 2^n, the probability that n differences have the same sign by chance
(the sign test), so that three sources, or three groups, are never significant.

Two metrics are compared on the sources that have a coefficient for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cfqa_data.eval.statistics.bootstrap import interval, resampled_means
from cfqa_data.eval.statistics.correlations import equal_rows

__all__ = ["ALPHA", "Differences", "compare", "holm", "orientation", "significance"]

ALPHA = 0.05
"""Significance level for corrected p values."""

Floats = NDArray[np.float64]


class Differences(NamedTuple):
    """Differences of Q pairs of P metrics.

    The pairs are all pairs in the order of `numpy.triu_indices`, or those with a baseline.

    Attributes:
        first: (Q,) index of the first metric.
        second: (Q,) index of the second metric.
        difference: (Q,) oriented mean of the first minus that of the second; positive if the first
            is better.
        low: (Q,) lower bound of the 95% interval, not corrected for the number of pairs.
        high: (Q,) upper bound of the interval.
        p: (Q,) two-sided p value, not corrected.
        p_holm: (Q,) p value after Holm's correction.
    """

    first: NDArray[np.intp]
    second: NDArray[np.intp]
    difference: Floats
    low: Floats
    high: Floats
    p: Floats
    p_holm: Floats

    def groups(self, metrics: int) -> NDArray[np.int64]:
        """Return the number of significantly better metrics for each metric, (P,)."""
        significant = self.p_holm < ALPHA
        worse = np.where(self.difference > 0, self.second, self.first)
        return np.bincount(worse[significant], minlength=metrics)

    def compared(self, metrics: int) -> NDArray[np.bool_]:
        """Return whether each metric was compared with another, (P,); True if there is none."""
        tested = ~np.isnan(self.p_holm)
        both = np.concatenate([self.first[tested], self.second[tested]])
        return (np.bincount(both, minlength=metrics) > 0) | (metrics == 1)


def orientation(lower_better: Sequence[bool | None]) -> Floats:
    """Return the sign of each metric's coefficients, (M,): 1, -1, or NaN if undeclared."""
    signs = {True: 1.0, False: -1.0, None: np.nan}
    return np.array([signs[known] for known in lower_better])


def compare(
    oriented: Floats,
    counts: Floats,
    groups: NDArray[np.intp] | None = None,
    against: int | None = None,
    intervals: bool = True,
) -> Differences:
    """Compare P metrics in pairs. Sources of a single group give neither intervals nor p values.

    Args:
        oriented: (P, S) oriented coefficients on each source; NaN where missing.
        counts: (1 + R, S) bootstrap counts of the sources, the data itself first.
        groups: (S,) index of the group with which each source was drawn; by default its own.
        against: Index of the baseline; None compares all pairs.
        intervals: Whether to compute the intervals, which take most of the time.
    """
    groups = np.arange(oriented.shape[-1]) if groups is None else groups
    first, second = np.triu_indices(len(oriented), 1)
    if against is not None:
        first = np.delete(np.arange(len(oriented)), against)
        second = np.full(len(first), against)
    columns = np.full((4, len(first)), np.nan)
    missing = np.isnan(oriented)
    for pairs, left_out in equal_rows(missing[first] | missing[second]):
        which = np.unique([first[pairs], second[pairs]])
        means = np.full((len(oriented), len(counts)), np.nan)
        means[which] = resampled_means(oriented[which], counts)
        resampled = means[first[pairs]] - means[second[pairs]]
        largest = float(np.abs(means[which, 0]).max())
        group_count = len(np.unique(groups[~left_out]))
        columns[:, pairs] = significance(resampled, largest, group_count, intervals)
    difference, low, high, p = columns
    return Differences(first, second, difference, low, high, p, holm(p))


def significance(resampled: Floats, largest: float, groups: int, intervals: bool = True) -> Floats:
    """Return the differences of Q pairs on the same sources, their intervals and p values, (4, Q).

    Args:
        resampled: (Q, 1 + R) differences for the data and each bootstrap sample.
        largest: Largest magnitude of the numbers that were subtracted.
        groups: Number of groups of the sources.
        intervals: Whether to compute the intervals; otherwise they are NaN.
    """
    from scipy.special import stdtr  # scipy.stats takes a second to import

    difference = resampled[:, 0]
    known = ~np.isnan(resampled[:, 1:]).any(axis=0)
    if groups < 2 or known.sum() < 2:
        return np.stack([difference, *np.full((3, len(difference)), np.nan)])
    error = resampled[:, 1:][:, known].std(axis=1, ddof=1)
    # If the difference is the same on all sources, its standard error is only rounding.
    scale = largest * np.finfo(float).eps * 8
    same = np.abs(difference) <= scale
    t = np.where(same, 0.0, np.abs(difference) / np.maximum(error, scale or 1.0))
    p = np.maximum(2 * stdtr(groups - 1, -t), min(1.0, 2.0 ** (1 - groups)))
    ends = interval(resampled) if intervals else np.full((2, len(p)), np.nan)
    return np.stack([difference, *ends, p])


def holm(p: Floats) -> Floats:
    """Apply Holm's correction for multiple comparisons.

    Holm, Scandinavian Journal of Statistics 6, 1979. The k-th smallest of m values is
    multiplied by m - k + 1, and made at least as large as those before it.

    Args:
        p: (Q,) p values in [0, 1]; NaN where nothing was tested, which is ignored.

    Returns:
        (Q,) corrected p values in [0, 1]; NaN where ``p`` is.
    """
    order = np.argsort(p, kind="stable")[: np.count_nonzero(~np.isnan(p))]
    steps = np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1))
    corrected = np.full(len(p), np.nan)
    corrected[order] = np.minimum(steps, 1.0)
    return corrected
