"""Correlation of a metric's scores with the labels, row by row: PLCC, SROCC and KROCC.

A *source* is one original; its *points* are its compressed versions, a row each. The rules, which
hold for every metric alike so that all of them are averaged over the same sources:

* A source whose label is the same at all its points says nothing: it is left out for every metric.
* A metric that is constant on a source whose label varies has missed the change: it counts as 0
  there and is not left out.
* The average over sources is the plain mean, as in the published benchmark (SROCC = 1 is common at
  ten points, where Fisher's z is infinite).
* A source on which a metric has no score at some point is left out for that metric, and counted.
* Signs are kept. Against a label that grows with the damage, a metric where lower is better should
  correlate positively, one where higher is better negatively.

Everything is NumPy, float64, vectorised over the rows of a matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["COEFFICIENTS", "average_ranks", "coefficients", "kendall", "pearson", "spearman"]

COEFFICIENTS = ("plcc", "srocc", "krocc")
"""Pearson's, Spearman's and Kendall's, in the order of every array that holds all three."""

Floats = NDArray[np.float64]


def average_ranks(values: NDArray[Any]) -> Floats:
    """Rank each row from 1; equal values share the mean of their ranks.

    Args:
        values: (..., L) finite numbers.

    Returns:
        (..., L) float64 ranks.
    """
    order = np.argsort(values, axis=-1)
    ranks = np.empty(values.shape, dtype=np.float64)
    rising = np.take_along_axis(values, order, axis=-1)
    np.put_along_axis(ranks, order, ranks_of_sorted(rising), axis=-1)
    return ranks


def ranks_of_sorted(rising: NDArray[Any]) -> Floats:
    """Return the `average_ranks` of rows that do not fall, (..., L)."""
    starts = np.ones(rising.shape, dtype=bool)
    starts[..., 1:] = rising[..., 1:] != rising[..., :-1]
    # A run of equal values at (0-based) positions first..last has the mean rank
    # (first + last) / 2 + 1. Every row starts a run, so runs never cross rows in the flat view.
    flat = np.flatnonzero(starts)
    lengths = np.diff(np.append(flat, rising.size))
    mean_rank = flat % rising.shape[-1] + (lengths + 1) / 2
    return np.repeat(mean_rank, lengths).reshape(rising.shape)


def pearson(x: NDArray[Any], y: NDArray[Any]) -> Floats:
    """Pearson correlation of each row of x with the same row of y.

    Args:
        x: (..., L) finite numbers.
        y: (..., L) finite numbers; what precedes the last axis is broadcast.

    Returns:
        (...) float64 in [-1, 1]; NaN where a row of x or y is constant.
    """
    units = []
    for rows in (centred(x), centred(y)):
        lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
        units.append(rows / np.where(lengths == 0, np.nan, lengths))
    return np.clip(np.einsum("...l,...l->...", *units), -1.0, 1.0)


def spearman(x: NDArray[Any], y: NDArray[Any]) -> Floats:
    """Spearman correlation of rows: Pearson's on average ranks. See `pearson`."""
    return pearson(average_ranks(x), average_ranks(y))


def kendall(x: NDArray[Any], y: NDArray[Any]) -> Floats:
    """Kendall's tau-b of rows: (concordant - discordant) / sqrt(untied in x, untied in y).

    Kendall, Biometrika 1945. See `pearson`.
    """
    y = y[(None,) * (x.ndim - y.ndim)]
    x, y = (np.ascontiguousarray(np.moveaxis(rows, -1, 0)) for rows in (x, y))
    kind = np.int8 if len(x) < 2**7 else np.int32
    agree, untied_x, untied_y = (np.zeros(v.shape[1:], np.int64) for v in (x, x, y))
    for apart in range(1, len(x)):  # pairs of points that are so far apart, of all rows
        sx, sy = (signs(v[apart:], v[:-apart]) for v in (x, y))
        for sums, products in ((agree, sx * sy), (untied_x, sx * sx), (untied_y, sy * sy)):
            sums += np.add.reduce(products, axis=0, dtype=kind)
    scale = np.sqrt(untied_x) * np.sqrt(untied_y)
    tau = np.divide(agree, scale, out=np.full(agree.shape, np.nan), where=scale > 0)
    return np.clip(tau, -1.0, 1.0)


def coefficients(scores: NDArray[Any], truth: NDArray[Any]) -> Floats:
    """Correlate the scores of metrics with the truth, row by row.

    Args:
        scores: (M, S, L) scores of M metrics: S rows of L points each; NaN where there is none.
        truth: (S, L) finite labels.

    Returns:
        (3, M, S) float64, `COEFFICIENTS` first: NaN where the row's truth is constant or one of its
        scores is missing, 0 where the truth varies and the metric is constant.
    """
    incomplete = np.isnan(scores).any(axis=-1)
    rows = np.where(incomplete[..., None], 0.0, scores)
    found = np.stack([function(rows, truth) for function in (pearson, spearman, kendall)])
    found = np.nan_to_num(found, nan=0.0)
    found[:, :, constant_rows(truth)] = np.nan
    found[:, incomplete] = np.nan
    return found


def constant_rows(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Return (..., S): whether all points of a row of the (..., S, L) values are equal."""
    return np.asarray((values == values[..., :1]).all(axis=-1))


def equal_rows(mask: NDArray[np.bool_]) -> Iterator[tuple[NDArray[np.intp], NDArray[np.bool_]]]:
    """Yield each distinct row of a mask (N, K), after the numbers of the rows that equal it."""
    if len(mask) and (mask == mask[0]).all():  # without sorting them
        yield np.arange(len(mask)), mask[0]
    elif len(mask):
        patterns, which = np.unique(mask, axis=0, return_inverse=True)
        for number, pattern in enumerate(patterns):
            yield np.flatnonzero(which.ravel() == number), pattern


def power_of_two(values: NDArray[Any]) -> Floats:
    """Return (..., 1): the power of two of the largest of (..., L) values.

    Divided by it, which rounds nothing, numbers of any size can be subtracted and squared.
    """
    _, exponents = np.frexp(np.abs(values).max(axis=-1, keepdims=True))
    return np.asarray(np.ldexp(1.0, exponents - 1))


def signs(x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.int8]:
    """Return the sign of x - y, which is not computed: it could overflow, or underflow to 0."""
    return (x > y).view(np.int8) - (x < y).view(np.int8)


def centred(values: NDArray[Any]) -> Floats:
    """Centre each row, scaled to deviations from its first value of 1 at most.

    The first value is taken off before the mean, so that a constant row is exactly zero, and the
    row is scaled by its largest deviation, so that no square over- or underflows.
    """
    deviations = np.asarray(values, dtype=np.float64)
    deviations = deviations / power_of_two(deviations)
    deviations = deviations - deviations[..., :1]
    largest = np.abs(deviations).max(axis=-1, keepdims=True)
    deviations = deviations / np.where(largest == 0, 1, largest)
    return np.asarray(deviations - deviations.mean(axis=-1, keepdims=True))
