"""Correlations over the points of all sources as one series, on many resamples at once.

A resample is a weight per source, the number of times it was drawn; a source's points carry its
weight. Every coefficient below is that of the materialised resample (each source's points repeated
as often as it was drawn), from quantities that do not depend on the resample:

* Pearson: sums and products per source, one matrix product with the weights.
* Spearman: twice the mid-rank of a point is the weight below it, plus the weight up to it, plus
  one, and a running sum of weights over the sorted points has both.
* Kendall's tau-b: with C[s, s'] the sum over points i of s and j of s' of
  sign(x_i - x_j) sign(y_i - y_j), concordant minus discordant pairs are w'Cw / 2.
* Ties: a value of total weight W makes W^2 ordered tied pairs, and takes W^3 - W from the rank
  variance. Both are whole numbers, so that a constant resample is recognised exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfqa_data.eval.statistics.correlations import COEFFICIENTS, centred, signs

__all__ = ["concordance", "pooled_coefficients"]

Floats = NDArray[np.float64]

NUMBERS_AT_ONCE = 12_000_000
"""Points times resamples that are worked on together, about: 96 MB an array."""

MOST_DRAWS = 500
"""Resamples for the intervals of pooled figures, at most: each orders all points of all sources."""


def pooled_coefficients(
    scores: NDArray[Any],
    truth: NDArray[Any],
    starts: NDArray[np.intp],
    counts: Floats,
    names: Sequence[str] = COEFFICIENTS,
) -> Floats:
    """Correlate all points with the truth, on each resample.

    Args:
        scores: (M, n) finite scores; the points of one source are neighbours.
        truth: (n,) finite labels.
        starts: (S,) where each source's points begin.
        counts: (R, S) how often each source was drawn; 0 or more.
        names: Which of `COEFFICIENTS`; KROCC takes as long as the others together.

    Returns:
        (len(names), M, R): NaN where the truth is constant over the resample's points, 0 where it
        varies and the metric is constant.
    """
    sizes = np.diff(np.append(starts, truth.size))
    agreement = concordance(scores, truth, starts) if "krocc" in names else None
    chosen = [COEFFICIENTS.index(name) for name in names]
    parts = []
    for some in np.array_split(counts, max(1, round(len(counts) * truth.size / NUMBERS_AT_ONCE))):
        weights = np.ascontiguousarray(some.T)
        by_moments = _pearson(scores, truth, starts, weights)
        by_ranks = _ranked(scores, truth, sizes, weights, agreement)
        parts.append(np.concatenate([by_moments[None], by_ranks[:2]])[chosen])
        unknown, flat = by_ranks[2] == 0, by_ranks[3] == 0
        parts[-1][:, flat] = 0.0
        parts[-1][:, unknown] = np.nan
    return np.clip(np.concatenate(parts, axis=2), -1.0, 1.0)


def concordance(scores: NDArray[Any], truth: NDArray[Any], starts: NDArray[np.intp]) -> Floats:
    """Sum sign(x_i - x_j) sign(y_i - y_j) over the points i of one source and j of another.

    Args:
        scores: (M, n), x.
        truth: (n,), y.
        starts: (S,) where each source's points begin.

    Returns:
        (M, S, S) float64, symmetric, whole numbers.
    """
    ends = np.append(starts[1:], truth.size)
    # Only the order matters, and small integers are compared several at a time.
    small = np.int16 if truth.size < 2**15 else np.int32
    total = np.int8 if (ends - starts).max() < 2**7 else np.int32
    x, y = (
        np.stack([np.unique(row, return_inverse=True)[1] for row in rows]).astype(small)
        for rows in (scores, truth[None])
    )
    tied = [len(np.unique(row)) < truth.size for row in x]
    sums = np.zeros((len(scores), len(starts), len(starts)))
    for source, (start, end) in enumerate(zip(starts, ends, strict=True)):
        right = starts[source:] - start
        truths = signs(y[0, start:end, None], y[:, start:])

        def summed(products: NDArray[np.int8], to: NDArray[np.intp] = right) -> Any:
            column = np.add.reduce(products, axis=0, dtype=total)
            return np.add.reduceat(column, to, dtype=np.int64)

        every = summed(truths)
        for metric, row in enumerate(x):
            ours, others = row[start:end, None], row[None, start:]
            found = 2 * summed((ours > others).view(np.int8) * truths) - every
            if tied[metric]:
                found += summed((ours == others).view(np.int8) * truths)
            sums[metric, source, source:] = found
    lower = np.tril_indices(len(starts), -1)
    sums[:, lower[0], lower[1]] = sums[:, lower[1], lower[0]]
    return sums


def _ranked(
    scores: NDArray[Any],
    truth: NDArray[Any],
    sizes: NDArray[np.intp],
    weights: Floats,
    agreement: Floats | None,
) -> Floats:
    """Return (4, M, R): Spearman, Kendall, and untied pairs of truth and scores (0: constant).

    Without the sums of `concordance`, Kendall's is 0.
    """
    size = sizes @ weights
    (variance_y,), (untied_y,) = _spread(truth[None], sizes, weights, size)
    variance, untied = _spread(scores, sizes, weights, size)
    harm = _weighted_ranks(truth, sizes, weights, size)
    products = _rank_products(scores, harm, sizes, weights)
    net = np.zeros_like(untied)
    if agreement is not None:
        net = np.einsum("sr,msr->mr", weights, agreement @ weights)
    found = np.zeros((4, *untied.shape))
    for place, top, scale in (
        (0, products, np.sqrt(variance) * np.sqrt(variance_y)),
        (1, net, np.sqrt(untied) * np.sqrt(untied_y)),
    ):
        np.divide(top, scale, out=found[place], where=scale > 0)
    found[2], found[3] = untied_y, untied
    return found


def _weighted_ranks(
    values: NDArray[Any], sizes: NDArray[np.intp], weights: Floats, size: Floats
) -> Floats:
    """Return (n, R): twice each point's mid-rank, less its mean, times its weight; sums to 0."""
    source = np.repeat(np.arange(len(sizes)), sizes)
    found = np.zeros((len(values), weights.shape[1]))
    for (order,) in _orders(values[None]):
        below = np.zeros_like(size)
        for point, of in zip(order.tolist(), source[order].tolist(), strict=True):
            found[point] += below
            below += weights[of]
    for points, weight in zip(np.split(found, np.cumsum(sizes)), weights, strict=False):
        points += weight - size
        points *= weight
    return found


def _rank_products(
    scores: NDArray[Any], harm: Floats, sizes: NDArray[np.intp], weights: Floats
) -> Floats:
    """Sum twice each point's mid-rank, less one, times its harm, whose weights sum to 0: (M, R)."""
    source = np.repeat(np.arange(len(sizes)), sizes)
    up, down = _orders(scores)
    tied = np.flatnonzero((up != down).any(axis=1))
    orders = np.ascontiguousarray(np.concatenate([up, down[tied]]).T)
    below, sums, rows = np.zeros((3, orders.shape[1], weights.shape[1]))
    for points, of in zip(orders, source[orders], strict=True):  # one of each metric
        harm.take(points, 0, rows, "clip")
        rows *= below
        sums += rows
        below += weights.take(of, 0, rows, "clip")
    products = 2 * sums[: len(scores)]
    products[tied] += sums[len(scores) :] - sums[tied]
    for points, weight in zip(np.split(harm, np.cumsum(sizes)), weights, strict=False):
        products += weight * points.sum(axis=0)
    return products


def _orders(values: NDArray[Any]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return how each row (n,) is ordered: with equal values as they come, and the last one first.

    The weight below a point, of both orders together, is that below its value, twice, and that of
    the other points of its value: twice its mid-rank, less one, less its own weight.
    """
    last = values.shape[1] - 1
    return (
        np.argsort(values, axis=1, kind="stable"),
        last - np.argsort(values[:, ::-1], axis=1, kind="stable"),
    )


def _spread(
    values: NDArray[Any], sizes: NDArray[np.intp], weights: Floats, size: Floats
) -> tuple[Floats, Floats]:
    """Return the sum of squares of twice the mid-ranks about their mean, and the untied pairs.

    Both (M, R) whole numbers, 0 for a constant resample. Pairs are ordered ones.
    """
    source, shape = np.repeat(np.arange(len(sizes)), sizes), (len(values), len(size))
    squared = weights * weights
    squares, cubes = (
        np.broadcast_to(sizes @ one, shape).copy() for one in (squared, squared * weights)
    )
    rising = np.sort(values, axis=1)
    for row in np.flatnonzero((rising[:, 1:] == rising[:, :-1]).any(axis=1)):
        _, group, count = np.unique(values[row], return_inverse=True, return_counts=True)
        tied = (count > 1)[group]
        _, group = np.unique(group[tied], return_inverse=True)
        cells = np.zeros((group.max() + 1, len(weights)))
        np.add.at(cells, (group, source[tied]), 1.0)
        totals = cells @ weights
        alone = cells.sum(axis=0)
        squares[row] += np.einsum("vr,vr->r", totals, totals) - alone @ squared
        cubes[row] += np.einsum("vr,vr,vr->r", totals, totals, totals) - alone @ (squared * weights)
    return (size**3 - cubes) / 3, size**2 - squares


def _pearson(
    scores: NDArray[Any], truth: NDArray[Any], starts: NDArray[np.intp], weights: Floats
) -> Floats:
    """Return (M, R); a resample without variance gives 0."""
    x, y = centred(scores), centred(truth[None])
    sizes = np.diff(np.append(starts, truth.size))
    size = np.maximum(sizes @ weights, 1)  # of a resample without points: it gets no figure

    def total(values: Floats) -> Floats:
        return np.asarray(np.add.reduceat(values, starts, axis=1) @ weights)

    sum_x, sum_y = total(x), total(y)
    covariance = total(x * y) - sum_x * sum_y / size
    variance = (total(x * x) - sum_x**2 / size) * (total(y * y) - sum_y**2 / size)
    found = np.zeros_like(covariance)
    return np.divide(covariance, np.sqrt(np.maximum(variance, 0)), out=found, where=variance > 0)
