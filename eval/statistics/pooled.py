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

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfqa_data.eval.statistics.correlations import COEFFICIENTS, centred, signs

__all__ = ["concordance", "pooled_coefficients"]

Floats = NDArray[np.float64]

NUMBERS_AT_ONCE = 12_000_000
"""Points times resamples that are worked on together, about: 96 MB an array."""

MOST_THREADS = 4
WORTH_THREADS = 20_000_000
"""Points times metrics times resamples from which on threads share the metrics."""

MOST_DRAWS = 500
"""Resamples for the intervals of pooled figures, at most: each orders all points of all sources."""

VALUES_AT_ONCE = 32
"""Distinct values whose running sums are made together, to stay in the cache."""


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
    sums = np.zeros((len(scores), len(starts), len(starts)))
    for source, (start, end) in enumerate(zip(starts, ends, strict=True)):
        right = starts[source:] - start
        truths = signs(y[0, start:end, None], y[:, start:])
        for metric, row in enumerate(x):
            agree = signs(row[start:end, None], row[None, start:])
            agree *= truths
            column = np.add.reduce(agree, axis=0, dtype=total)
            sums[metric, source, source:] = np.add.reduceat(column, right, dtype=np.int64)
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
    source = np.repeat(np.arange(len(sizes)), sizes)
    size = sizes @ weights
    # Twice each point's mid-rank, less its mean, times the point's weight: sums to 0.
    weighted = np.empty((truth.size, weights.shape[1]))
    for points, twice in _midranks(truth, source, weights):
        weighted[points] = (twice - size) * weights[source[points]]
    variance_y, untied_y = _spread(truth, source, weights, size)

    def ranked(metric: int) -> Floats:
        row, found = scores[metric], np.zeros((4, weights.shape[1]))
        rows = np.empty((VALUES_AT_ONCE, weights.shape[1]))
        covariance = np.zeros(weights.shape[1])
        for points, twice in _midranks(row, source, weights):
            few = len(points) <= VALUES_AT_ONCE
            truths = take_rows(weighted, points, rows[: len(points)]) if few else weighted[points]
            covariance += np.einsum("pr,pr->r", twice, truths)
        net = np.zeros(weights.shape[1])
        if agreement is not None:
            np.einsum("sr,sr->r", weights, agreement[metric] @ weights, out=net)
        variance_x, untied_x = _spread(row, source, weights, size)
        for place, top, scale in (
            (0, covariance, np.sqrt(variance_x) * np.sqrt(variance_y)),
            (1, net, np.sqrt(untied_x) * np.sqrt(untied_y)),
        ):
            np.divide(top, scale, out=found[place], where=scale > 0)
        found[2:] = untied_y, untied_x
        return found

    threads = min(len(scores), MOST_THREADS, _cores())
    if scores.size * weights.shape[1] < WORTH_THREADS or threads == 1:
        return np.stack([ranked(metric) for metric in range(len(scores))], axis=1)
    with ThreadPoolExecutor(threads) as pool:  # NumPy lets others run while it computes
        return np.stack(list(pool.map(ranked, range(len(scores)))), axis=1)


def _cores() -> int:
    """Return how many cores this process may use."""
    known = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1


def _midranks(
    values: NDArray[Any], source: NDArray[np.intp], weights: Floats
) -> Iterator[tuple[NDArray[np.intp], Floats]]:
    """Go up through the distinct values, some at a time.

    Args:
        values: (n,) finite numbers.
        source: (n,) source of each point.
        weights: (S, R) weight of each source in each resample.

    Yields:
        The next P points, and (P, R) the weight below each plus the weight up to it: twice the
        mid-rank, less one. The next ones may overwrite it.
    """
    order = np.argsort(values)
    rising = values[order]
    new = np.append(True, rising[1:] != rising[:-1])
    bounds = np.append(np.flatnonzero(new), len(order))
    up_to = np.zeros((VALUES_AT_ONCE + 1, weights.shape[1]))
    twice = np.empty((VALUES_AT_ONCE, weights.shape[1]))
    for first in range(0, len(bounds) - 1, VALUES_AT_ONCE):
        here = bounds[first : first + VALUES_AT_ONCE + 1]
        points, count = order[here[0] : here[-1]], len(here) - 1
        tied = len(points) > count
        if tied:
            rows = weights[source[points]]
            np.add.reduceat(rows, here[:-1] - here[0], axis=0, out=up_to[1 : count + 1])
        else:
            take_rows(weights, source[points], up_to[1 : count + 1])
        # Row by row, in the cache: np.cumsum along columns takes ten times as long.
        for place in range(1, count + 1):
            np.add(up_to[place - 1], up_to[place], out=up_to[place])
        np.add(up_to[:count], up_to[1 : count + 1], out=twice[:count])
        up_to[0] = up_to[count]
        yield points, np.repeat(twice[:count], np.diff(here), axis=0) if tied else twice[:count]


def take_rows(values: Floats, rows: NDArray[np.intp], out: Floats) -> Floats:
    """Copy rows to where others were: new memory for each takes longer than to fill it."""
    return np.take(values, rows, axis=0, out=out, mode="clip")


def _spread(
    values: NDArray[Any], source: NDArray[np.intp], weights: Floats, size: Floats
) -> tuple[Floats, Floats]:
    """Return the sum of squares of twice the mid-ranks about their mean, and the untied pairs.

    Both (R,) whole numbers, 0 for a constant resample. Pairs are ordered ones.
    """
    _, group, count = np.unique(values, return_inverse=True, return_counts=True)
    alone = (count == 1)[group]
    single = np.bincount(source[alone], minlength=len(weights)).astype(np.float64)
    squared = weights * weights
    squares, cubes = single @ squared, single @ (squared * weights)
    if alone.all():
        return (size**3 - cubes) / 3, size**2 - squares
    _, group = np.unique(group[~alone], return_inverse=True)
    groups = int(group.max(initial=-1)) + 1
    cells = np.bincount(group * len(weights) + source[~alone], minlength=groups * len(weights))
    tied = cells.reshape(groups, len(weights)) @ weights
    squares += np.einsum("vr,vr->r", tied, tied)
    cubes += np.einsum("vr,vr,vr->r", tied, tied, tied)
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
