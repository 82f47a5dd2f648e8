"""Pair classification: whether a metric tells different from similar versions, and which is worse.

Krasula et al., QoMEX 2016: a pair of points of the same source, over all codecs, is *different* if
their labels differ by at least the noticeable difference of the task, and otherwise *similar*.

* Different or similar: the area under the ROC curve (AUC) of |difference of scores|, different
  against similar pairs.
* Better or worse: on the different pairs, the AUC of the difference of scores, oriented so that it
  should be positive if the second point is worse. Each pair is used in both directions, as in the
  authors' code, so that the order of the points does not matter.

An AUC is the probability that a pair of one class has a larger value than a pair of the other, ties
counting half (Mann and Whitney): 1 is perfect, 0.5 is chance.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cfqa_data.eval.statistics.correlations import power_of_two, ranks_of_sorted

__all__ = ["Discrimination", "discriminate"]

Floats = NDArray[np.float64]


class Discrimination(NamedTuple):
    """The two AUCs of M metrics.

    Attributes:
        n_different: (M,) number of different pairs for which the metric has both scores.
        n_similar: (M,) number of similar pairs for which it has both scores.
        auc_different: (M,) AUC of different against similar; NaN without pairs of both kinds.
        auc_better: (M,) AUC of better against worse; NaN without different pairs, or if the
            direction of the metric is undeclared.
    """

    n_different: NDArray[np.intp]
    n_similar: NDArray[np.intp]
    auc_different: Floats
    auc_better: Floats


def discriminate(
    scores: NDArray[Any], truth: NDArray[Any], orientation: Floats, noticeable: float
) -> Discrimination:
    """Compute the two AUCs of every metric.

    Args:
        scores: (M, S, L) scores; NaN where missing.
        truth: (S, L) finite labels, larger is worse.
        orientation: (M,) 1 if lower scores are better, -1 if higher ones are, NaN if undeclared.
        noticeable: Smallest difference of labels for which a pair is different.
    """
    first, second = np.triu_indices(truth.shape[1], 1)
    true_change = _differences(truth, first, second)
    unit = float(power_of_two(truth.ravel())[0])
    noticed = np.abs(true_change) >= noticeable / unit
    # With a threshold of 0, pairs of equal labels are neither better nor worse, and left out.
    compared = ~noticed | (true_change != 0)
    areas = np.full((2, len(scores)), np.nan)
    pairs = np.zeros((2, len(scores)), dtype=np.intp)
    for metric, (rows, sign) in enumerate(zip(scores, orientation, strict=True)):
        change = _differences(rows, first, second) * compared
        rising = np.argsort(np.abs(change))[: np.count_nonzero(~np.isnan(change))]
        different, sizes = noticed[rising], np.abs(change[rising])
        pairs[:, metric] = above, below = different.sum(), (~different).sum()
        if above and below:
            won = ranks_of_sorted(sizes)[different].sum() - above * (above + 1) / 2
            areas[0, metric] = won / above / below
        if above and not np.isnan(sign):
            # The pairs against their reverses: of two, the sign of the larger one decides.
            right = sign * (np.sign(true_change) * np.sign(change))[rising][different]
            ranks = ranks_of_sorted(sizes[different])
            areas[1, metric] = 0.5 + (right * (ranks - 0.5)).sum() / above / above
    return Discrimination(*pairs, *areas)


def _differences(rows: NDArray[Any], first: NDArray[np.intp], second: NDArray[np.intp]) -> Floats:
    """Return the differences of all pairs in rows (S, L), flat, in units of a power of two.

    In their own unit, differences of numbers near the largest float would overflow.
    """
    known = rows[~np.isnan(rows)]
    if known.size:
        rows = rows / power_of_two(known)
    return np.asarray((rows[:, second] - rows[:, first]).ravel())
