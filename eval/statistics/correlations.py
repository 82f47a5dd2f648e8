"""Correlation of scores with labels per source: PLCC, SROCC and KROCC.

A *source* is one original, and its *points* are its compressed versions. The following rules hold
for all metrics, so that they are averaged over the same sources:

* A source with the same label at all points carries no information and is left out.
* A metric that is constant on a source whose label varies has missed the change: it counts as 0.
* The average over sources is the arithmetic mean, as in the published benchmark (SROCC = 1 is
  common at ten points, where Fisher's z is infinite).
* A source on which a metric lacks a score is left out for that metric, and counted.
* Signs are kept. Labels are larger for more distortion, so a metric where lower is better should
  correlate positively, and one where higher is better negatively.

Everything is NumPy, float64, vectorised over the rows of a matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["COEFFICIENTS", "average_ranks", "coefficients", "kendall", "pearson", "spearman"]

COEFFICIENTS = ("plcc", "srocc", "krocc")
"""Pearson's, Spearman's and Kendall's coefficient, in the order of all arrays of three."""

Floats = NDArray[np.float64]


def average_ranks(values: NDArray[Any]) -> Floats:
    """Rank the values of each row from 1; ties share the mean of their ranks.

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
    """Return the `average_ranks` of rows in ascending order, (..., L)."""
    starts = np.ones(rising.shape, dtype=bool)
    starts[..., 1:] = rising[..., 1:] != rising[..., :-1]
    # A run of equal values at (0-based) positions first..last has the mean rank
    # (first + last) / 2 + 1. Every row starts a run, so runs never cross rows in the flat view.
    flat = np.flatnonzero(starts)
    lengths = np.diff(np.append(flat, rising.size))
    mean_rank = flat % rising.shape[-1] + (lengths + 1) / 2
    return np.repeat(mean_rank, lengths).reshape(rising.shape)


def pearson(x: NDArray[Any], y: NDArray[Any]) -> Floats:
    """Compute the Pearson correlation of each row of x with the same row of y.

    Args:
        x: (..., L) finite numbers.
        y: (..., L) finite numbers; the leading axes are broadcast.

    Returns:
        (...) float64 in [-1, 1]; NaN where a row of x or y is constant.
    """
    units = []
    for rows in (centred(x), centred(y)):
        lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
        units.append(rows / np.where(lengths == 0, np.nan, lengths))
    return np.clip(np.einsum("...l,...l->...", *units), -1.0, 1.0)


def spearman(x: NDArray[Any], y: NDArray[Any]) -> Floats:
    """Compute the Spearman correlation of rows: `pearson` of their average ranks."""
    return pearson(average_ranks(x), average_ranks(y))


def kendall(x: NDArray[Any], y: NDArray[Any]) -> Floats:
    """Compute Kendall's tau-b of rows; see `pearson` for shapes.

    tau-b = (concordant - discordant) / sqrt(untied in x * untied in y) (Kendall, Biometrika 1945).
    """
    y = y[(None,) * (x.ndim - y.ndim)]
    x, y = (np.ascontiguousarray(np.moveaxis(rows, -1, 0)) for rows in (x, y))
    dtype = np.int8 if len(x) < 2**7 else np.int32
    agree, untied_x, untied_y = (np.zeros(v.shape[1:], np.int64) for v in (x, x, y))
    for lag in range(1, len(x)):  # all pairs of points at this distance, of all rows
        sx, sy = (signs(v[lag:], v[:-lag]) for v in (x, y))
        for sums, products in ((agree, sx * sy), (untied_x, sx * sx), (untied_y, sy * sy)):
            sums += np.add.reduce(products, axis=0, dtype=dtype)
    scale = np.sqrt(untied_x) * np.sqrt(untied_y)
    tau = np.divide(agree, scale, out=np.full(agree.shape, np.nan), where=scale > 0)
    return np.clip(tau, -1.0, 1.0)


def coefficients(scores: NDArray[Any], truth: NDArray[Any]) -> Floats:
    """Correlate the scores of metrics with the labels, source by source.

    Args:
        scores: (M, S, L) scores of M metrics on L points of S sources; NaN where missing.
        truth: (S, L) finite labels.

    Returns:
        (3, M, S) float64, in the order of `COEFFICIENTS`: NaN if the label is constant on the
        source or a score is missing, 0 if the label varies and the metric is constant.
    """
    incomplete = np.isnan(scores).any(axis=-1)
    rows = np.where(incomplete[..., None], 0.0, scores)
    result = np.stack([function(rows, truth) for function in (pearson, spearman, kendall)])
    result = np.nan_to_num(result, nan=0.0)
    result[:, :, constant_rows(truth)] = np.nan
    result[:, incomplete] = np.nan
    return result


def constant_rows(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Return whether all values of each row are equal: (..., S) for (..., S, L) values."""
    return np.asarray((values == values[..., :1]).all(axis=-1))


def equal_rows(mask: NDArray[np.bool_]) -> Iterator[tuple[NDArray[np.intp], NDArray[np.bool_]]]:
    """Yield the distinct rows of a mask (N, K), each after the indices of the rows equal to it."""
    if len(mask) and (mask == mask[0]).all():  # the usual case, without sorting
        yield np.arange(len(mask)), mask[0]
    elif len(mask):
        patterns, which = np.unique(mask, axis=0, return_inverse=True)
        for number, pattern in enumerate(patterns):
            yield np.flatnonzero(which.ravel() == number), pattern


def power_of_two(values: NDArray[Any]) -> Floats:
    """Return the power of two of the largest of (..., L) values, (..., 1).

    Division by it is exact, and prevents overflow in differences and squares.
    """
    _, exponents = np.frexp(np.abs(values).max(axis=-1, keepdims=True))
    return np.asarray(np.ldexp(1.0, exponents - 1))


def signs(x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.int8]:
    """Return the sign of x - y without computing the difference, which could overflow."""
    return (x > y).view(np.int8) - (x < y).view(np.int8)


def centred(values: NDArray[Any]) -> Floats:
    """Centre each row, scaled so that deviations from its first value are at most 1.

    The first value is subtracted before the mean, so that a constant row becomes exactly zero, and
    the scaling prevents squares from over- or underflowing.
    """
    deviations = np.asarray(values, dtype=np.float64)
    deviations = deviations / power_of_two(deviations)
    deviations = deviations - deviations[..., :1]
    largest = np.abs(deviations).max(axis=-1, keepdims=True)
    deviations = deviations / np.where(largest == 0, 1, largest)
    return np.asarray(deviations - deviations.mean(axis=-1, keepdims=True))
