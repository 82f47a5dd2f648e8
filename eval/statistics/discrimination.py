"""How well a metric tells different versions of a source from similar ones, and better from worse.

Krasula et al., QoMEX 2016: every pair of points of the same source, over all codecs, is *different*
when their truths differ by at least what is noticeable for the task, else *similar*.

* Different/similar: the area under the ROC curve of |difference of scores|, different against
  similar pairs.
* Better/worse: on the different pairs, the area of the difference of scores, oriented so that it
  should be positive where the second point is worse. Each pair is taken in both directions, as in
  the authors' code, so that the order of the points does not matter.

An area is the probability that a pair of the one class has a larger value than one of the other,
ties counting half (Mann and Whitney): 1 is perfect, 0.5 is chance, below is the wrong way round.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cfqa_data.eval.statistics.correlations import power_of_two, ranks_of_sorted

__all__ = ["Discrimination", "discriminate"]

Floats = NDArray[np.float64]


class Discrimination(NamedTuple):
    """The two areas of M metrics.

    Attributes:
        n_different: (M,) number of different pairs, of those that a metric scored both of.
        n_similar: (M,) number of similar pairs.
        auc_different: (M,) NaN where there are no pairs of one kind.
        auc_better: (M,) NaN where there is no different pair, or the metric's direction is not
            known.
    """

    n_different: NDArray[np.intp]
    n_similar: NDArray[np.intp]
    auc_different: Floats
    auc_better: Floats


def discriminate(
    scores: NDArray[Any], truth: NDArray[Any], orientation: Floats, noticeable: float
) -> Discrimination:
    """Return the two areas of every metric.

    Args:
        scores: (M, S, L) scores, NaN where there is none.
        truth: (S, L) finite labels, larger is worse.
        orientation: (M,) 1 where scores should grow with the truth, -1 where they should fall, NaN
            where that is not known.
        noticeable: Smallest difference of two truths that counts.
    """
    first, second = np.triu_indices(truth.shape[1], 1)
    harm = _differences(truth, first, second)
    noticed = np.abs(harm) >= noticeable / float(power_of_two(truth.ravel())[0])
    compared = ~noticed | (harm != 0)  # where any difference counts, none of two equal truths does
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
            # Against all of them turned round: of two, the larger one's sign decides.
            right = sign * (np.sign(harm) * np.sign(change))[rising][different]
            ranks = ranks_of_sorted(sizes[different])
            areas[1, metric] = 0.5 + (right * (ranks - 0.5)).sum() / above / above
    return Discrimination(*pairs, *areas)


def _differences(rows: NDArray[Any], first: NDArray[np.intp], second: NDArray[np.intp]) -> Floats:
    """Return what lies between the points of all pairs in rows (S, L), in units of a power of two.

    In their own unit, differences of numbers near the largest float overflow.
    """
    known = rows[~np.isnan(rows)]
    if known.size:
        rows = rows / power_of_two(known)
    return np.asarray((rows[:, second] - rows[:, first]).ravel())
