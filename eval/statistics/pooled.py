"""Correlations over the points of all sources together, on many bootstrap samples at once.

A bootstrap sample is a weight per source, the number of times it was drawn, which applies to all
its points. Every coefficient equals that of the materialised sample (each source's points repeated
as often as it was drawn), but is computed from quantities that do not depend on the sample:

* Pearson: sums and products per source, and one matrix product with the weights.
* Spearman: twice the mid-rank of a point is the weight below it, plus the weight up to it, plus
  one; a running sum of weights over the sorted points yields both.
* Kendall's tau-b: with C[s, s'] the sum over points i of s and j of s' of
  sign(x_i - x_j) sign(y_i - y_j), concordant minus discordant pairs are w'Cw / 2.
* Ties: a value of total weight W makes W^2 ordered tied pairs, and reduces the rank variance by
  W^3 - W. Both are whole numbers, so that a constant sample is recognised exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfqa_data.eval.statistics.correlations import COEFFICIENTS, centred, signs

__all__ = ["concordance", "pooled_coefficients"]

Floats = NDArray[np.float64]

MAX_ELEMENTS = 12_000_000
"""Approximate number of points times samples that are processed together: 96 MB per array."""

MAX_DRAWS = 500
"""Maximum number of samples for pooled figures, since each ranks all points of all sources."""


def pooled_coefficients(
    scores: NDArray[Any],
    truth: NDArray[Any],
    starts: NDArray[np.intp],
    counts: Floats,
    names: Sequence[str] = COEFFICIENTS,
) -> Floats:
    """Correlate all points with the labels, on each bootstrap sample.

    Args:
        scores: (M, n) finite scores, grouped by source.
        truth: (n,) finite labels.
        starts: (S,) index of the first point of each source.
        counts: (R, S) how often each source was drawn.
        names: A subset of `COEFFICIENTS`; KROCC takes as long as the others together.

    Returns:
        (len(names), M, R) float64: NaN if the labels are constant in the sample, 0 if they vary
        and the metric is constant.
    """
    sizes = np.diff(np.append(starts, truth.size))
    agreement = concordance(scores, truth, starts) if "krocc" in names else None
    chosen = [COEFFICIENTS.index(name) for name in names]
    parts = []
    for part in np.array_split(counts, max(1, round(len(counts) * truth.size / MAX_ELEMENTS))):
        weights = np.ascontiguousarray(part.T)
        by_moments = _pearson(scores, truth, starts, weights)
        by_ranks = _ranked(scores, truth, sizes, weights, agreement)
        parts.append(np.concatenate([by_moments[None], by_ranks[:2]])[chosen])
        constant_truth, constant_scores = by_ranks[2] == 0, by_ranks[3] == 0
        parts[-1][:, constant_scores] = 0.0
        parts[-1][:, constant_truth] = np.nan
    return np.clip(np.concatenate(parts, axis=2), -1.0, 1.0)


def concordance(scores: NDArray[Any], truth: NDArray[Any], starts: NDArray[np.intp]) -> Floats:
    """Sum sign(x_i - x_j) sign(y_i - y_j) over the points i of one source and j of another.

    Args:
        scores: (M, n) scores x.
        truth: (n,) labels y.
        starts: (S,) index of the first point of each source.

    Returns:
        (M, S, S) float64, symmetric, whole numbers.
    """
    ends = np.append(starts[1:], truth.size)
    # Only the order matters, and SIMD compares more small integers at a time.
    rank_type = np.int16 if truth.size < 2**15 else np.int32
    sum_type = np.int8 if (ends - starts).max() < 2**7 else np.int32
    x, y = (
        np.stack([np.unique(row, return_inverse=True)[1] for row in rows]).astype(rank_type)
        for rows in (scores, truth[None])
    )
    tied = [len(np.unique(row)) < truth.size for row in x]
    sums = np.zeros((len(scores), len(starts), len(starts)))
    for source, (start, end) in enumerate(zip(starts, ends, strict=True)):
        blocks = starts[source:] - start
        truth_signs = signs(y[0, start:end, None], y[:, start:])

        def summed(products: NDArray[np.int8], blocks: NDArray[np.intp] = blocks) -> Any:
            column = np.add.reduce(products, axis=0, dtype=sum_type)
            return np.add.reduceat(column, blocks, dtype=np.int64)

        total = summed(truth_signs)
        for metric, row in enumerate(x):
            own, others = row[start:end, None], row[None, start:]
            # sign(x) = 2 [x > 0] + [x = 0] - 1
            result = 2 * summed((own > others).view(np.int8) * truth_signs) - total
            if tied[metric]:
                result += summed((own == others).view(np.int8) * truth_signs)
            sums[metric, source, source:] = result
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
    """Return (4, M, R): Spearman, Kendall, and untied pairs of labels and scores (0 if constant).

    Kendall is 0 if ``agreement``, the result of `concordance`, is None.
    """
    size = sizes @ weights
    (variance_y,), (untied_y,) = _spread(truth[None], sizes, weights, size)
    variance, untied = _spread(scores, sizes, weights, size)
    truth_ranks = _weighted_ranks(truth, sizes, weights, size)
    products = _rank_products(scores, truth_ranks, sizes, weights)
    net = np.zeros_like(untied)
    if agreement is not None:
        net = np.einsum("sr,msr->mr", weights, agreement @ weights)
    result = np.zeros((4, *untied.shape))
    for row, numerator, scale in (
        (0, products, np.sqrt(variance) * np.sqrt(variance_y)),
        (1, net, np.sqrt(untied) * np.sqrt(untied_y)),
    ):
        np.divide(numerator, scale, out=result[row], where=scale > 0)
    result[2], result[3] = untied_y, untied
    return result


def _weighted_ranks(
    values: NDArray[Any], sizes: NDArray[np.intp], weights: Floats, size: Floats
) -> Floats:
    """Return twice each point's mid-rank, minus the mean, times its weight, (n, R); sums to 0."""
    source = np.repeat(np.arange(len(sizes)), sizes)
    result = np.zeros((len(values), weights.shape[1]))
    for (order,) in _orders(values[None]):
        below = np.zeros_like(size)
        for point, own in zip(order.tolist(), source[order].tolist(), strict=True):
            result[point] += below
            below += weights[own]
    for points, weight in zip(np.split(result, np.cumsum(sizes)), weights, strict=False):
        points += weight - size
        points *= weight
    return result


def _rank_products(
    scores: NDArray[Any], truth_ranks: Floats, sizes: NDArray[np.intp], weights: Floats
) -> Floats:
    """Return the sum over points of twice the mid-rank, minus one, times the truth rank, (M, R)."""
    source = np.repeat(np.arange(len(sizes)), sizes)
    up, down = _orders(scores)
    tied = np.flatnonzero((up != down).any(axis=1))
    orders = np.ascontiguousarray(np.concatenate([up, down[tied]]).T)
    below, sums, rows = np.zeros((3, orders.shape[1], weights.shape[1]))
    for points, own in zip(orders, source[orders], strict=True):  # a point of each metric
        truth_ranks.take(points, 0, rows, "clip")
        rows *= below
        sums += rows
        below += weights.take(own, 0, rows, "clip")
    products = 2 * sums[: len(scores)]
    products[tied] += sums[len(scores) :] - sums[tied]
    for points, weight in zip(np.split(truth_ranks, np.cumsum(sizes)), weights, strict=False):
        products += weight * points.sum(axis=0)
    return products


def _orders(values: NDArray[Any]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return two sort orders of each row (n,): with ties in their order, and in reverse order.

    The weights before a point in both orders sum to twice the weight below its value plus the
    weight of the other points of that value: twice its mid-rank, minus one, minus its own weight.
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

    Both are (M, R) whole numbers, 0 for a constant sample. Pairs are ordered.
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
    """Return the Pearson correlations, (M, R); 0 for a sample without variance."""
    x, y = centred(scores), centred(truth[None])
    sizes = np.diff(np.append(starts, truth.size))
    size = np.maximum(sizes @ weights, 1)  # avoids dividing by 0 for a sample without points

    def total(values: Floats) -> Floats:
        return np.asarray(np.add.reduceat(values, starts, axis=1) @ weights)

    sum_x, sum_y = total(x), total(y)
    covariance = total(x * y) - sum_x * sum_y / size
    variance = (total(x * x) - sum_x**2 / size) * (total(y * y) - sum_y**2 / size)
    result = np.zeros_like(covariance)
    return np.divide(covariance, np.sqrt(np.maximum(variance, 0)), out=result, where=variance > 0)
