"""Paired comparisons of metrics over the same sources, with Holm's correction.

Metrics are compared by their oriented per-source means: the mean coefficient, times -1 for a metric
where higher is better, so that larger is always better agreement. A metric whose direction is not
declared cannot be oriented, and is left out.

p is two-sided, of the difference over its bootstrap standard error on Student's t with one degree
of freedom less than there are valid sources, or groups of them. It is not the share of resamples on
the other side of zero: of 1000 resamples that share is 0.002 at the least (counting the data
itself), which Holm's correction over the 300 pairs of 25 metrics would raise to 0.6, whatever the
metrics. Nor is it
smaller than 2 / 2^n, which n differences of the same sign have by chance (the sign test), so that
three sources, or sources of three groups, never prove anything.

Two metrics are compared on the sources that have a coefficient of both.
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
"""A corrected p below this is a significant difference."""

Floats = NDArray[np.float64]


class Differences(NamedTuple):
    """Q pairs of P metrics: all, in the order of `numpy.triu_indices`, or those with one of them.

    Attributes:
        first: (Q,) index of the one metric.
        second: (Q,) index of the other.
        difference: (Q,) oriented mean of the first less that of the second: above 0, the first is
            better.
        low: (Q,) lower bound of its interval, not corrected for the number of pairs.
        high: (Q,) upper bound.
        p: (Q,) two-sided, not corrected.
        p_holm: (Q,) corrected for the pairs that have a p.
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

    def compared(self, metrics: int) -> NDArray[np.bool_]:
        """Return for each of the metrics whether it was tested against another, if there is one."""
        tested = ~np.isnan(self.p_holm)
        both = np.concatenate([self.first[tested], self.second[tested]])
        return (np.bincount(both, minlength=metrics) > 0) | (metrics == 1)


def orientation(lower_better: Sequence[bool | None]) -> Floats:
    """Return (M,) what a coefficient is multiplied with: 1, -1, or NaN where that is not known."""
    signs = {True: 1.0, False: -1.0, None: np.nan}
    return np.array([signs[known] for known in lower_better])


def compare(
    oriented: Floats,
    counts: Floats,
    groups: NDArray[np.intp] | None = None,
    against: int | None = None,
    intervals: bool = True,
) -> Differences:
    """Compare P metrics two by two; from a single common group nothing follows.

    Args:
        oriented: (P, S) oriented coefficients on each source, NaN where a metric has none.
        counts: (1 + R, S) resamples of the sources, the data itself first.
        groups: (S,) number of the group that each source was drawn with; by default its own.
        against: Number of the metric that every other one is compared with; by default, all pairs.
        intervals: Whether to compute the intervals, which take longer than all else.
    """
    groups = np.arange(oriented.shape[-1]) if groups is None else groups
    first, second = np.triu_indices(len(oriented), 1)
    if against is not None:
        first = np.delete(np.arange(len(oriented)), against)
        second = np.full(len(first), against)
    found = np.full((4, len(first)), np.nan)
    missing = np.isnan(oriented)
    for pairs, left_out in equal_rows(missing[first] | missing[second]):
        which = np.unique([first[pairs], second[pairs]])
        means = np.full((len(oriented), len(counts)), np.nan)
        means[which] = resampled_means(oriented[which], counts)  # leaves the same sources out
        resampled = means[first[pairs]] - means[second[pairs]]
        largest = float(np.abs(means[which, 0]).max())
        of = len(np.unique(groups[~left_out]))
        found[:, pairs] = significance(resampled, largest, of, intervals)
    difference, low, high, p = found
    return Differences(first, second, difference, low, high, p, holm(p))


def significance(resampled: Floats, largest: float, groups: int, intervals: bool = True) -> Floats:
    """Return (4, Q): the differences of Q pairs on the same sources, their intervals and their p.

    Args:
        resampled: (Q, 1 + R) differences, the data's own first.
        largest: Magnitude of what was subtracted.
        groups: How many groups the sources are of.
        intervals: Whether to compute the intervals; else they are NaN.
    """
    from scipy.special import stdtr  # scipy.stats takes a second to import

    difference = resampled[:, 0]
    known = ~np.isnan(resampled[:, 1:]).any(axis=0)
    if groups < 2 or known.sum() < 2:
        return np.stack([difference, *np.full((3, len(difference)), np.nan)])
    error = resampled[:, 1:][:, known].std(axis=1, ddof=1)
    # Equal differences in all sources leave rounding for an error.
    scale = largest * np.finfo(float).eps * 8
    same = np.abs(difference) <= scale
    t = np.where(same, 0.0, np.abs(difference) / np.maximum(error, scale or 1.0))
    p = np.maximum(2 * stdtr(groups - 1, -t), min(1.0, 2.0 ** (1 - groups)))
    ends = interval(resampled) if intervals else np.full((2, len(p)), np.nan)
    return np.stack([difference, *ends, p])


def holm(p: Floats) -> Floats:
    """Correct p values for their number (Holm, Scandinavian Journal of Statistics 6, 1979).

    The k-th smallest of m is multiplied by m - k + 1, and is not smaller than those before it.

    Args:
        p: (Q,) in [0, 1]; NaN where nothing was tested, which does not count.

    Returns:
        (Q,) corrected, at most 1.
    """
    order = np.argsort(p, kind="stable")[: np.count_nonzero(~np.isnan(p))]
    steps = np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1))
    corrected = np.full(len(p), np.nan)
    corrected[order] = np.minimum(steps, 1.0)
    return corrected
