"""How well a metric's scores follow the labels: PLCC and SROCC, per source and pooled.

A *source* is one original; its *points* are its compressed versions. The rules, which hold for
every metric alike so that all of them are averaged over the same sources:

* A source whose label is the same at all its points says nothing: it is left out for every metric
  (``n_constant`` counts those; ``n_valid`` counts the sources that remain).
* A metric that is constant on a source whose label varies has missed the change: it counts as 0
  there and is not left out (``n_flat`` counts those sources).
* The average over sources is the plain mean, as in the published benchmark (SROCC = 1 is common at
  ten points, where Fisher's z is infinite).
* Signs are kept. Against a label that grows with the damage, a metric where lower is better should
  correlate positively, one where higher is better negatively.

Everything is NumPy, float64, vectorised over the rows of an (S, L) matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfqa_data.errors import MetricError

__all__ = ["Correlation", "average_ranks", "correlate", "pearson", "spearman"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Correlation:
    """Average correlation over sources.

    Attributes:
        plcc: Mean Pearson correlation over the valid sources; NaN when there is none.
        srocc: Mean Spearman correlation, likewise.
        n_valid: Sources in the mean.
        n_constant: Sources left out because their label is constant.
        n_flat: Sources in the mean at 0 because the metric is constant there.
    """

    plcc: float
    srocc: float
    n_valid: int
    n_constant: int
    n_flat: int


def average_ranks(values: NDArray[Any]) -> Floats:
    """Rank each row from 1; equal values share the mean of their ranks.

    Args:
        values: (S, L) finite numbers.

    Returns:
        (S, L) float64 ranks.
    """
    order = np.argsort(values, axis=1, kind="stable")
    ordered = np.take_along_axis(values, order, axis=1)
    starts = np.ones(values.shape, dtype=bool)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    # A run of equal values at (0-based) positions first..last has the mean rank
    # (first + last) / 2 + 1. Every row starts a run, so runs never cross rows in the flat view.
    flat = np.flatnonzero(starts)
    lengths = np.diff(np.append(flat, values.size))
    mean_rank = flat % values.shape[1] + (lengths + 1) / 2
    ranks = np.empty(values.shape, dtype=np.float64)
    np.put_along_axis(ranks, order, np.repeat(mean_rank, lengths).reshape(values.shape), axis=1)
    return ranks


def pearson(x: NDArray[Any], y: NDArray[Any]) -> Floats:
    """Pearson correlation of each row of x with the same row of y.

    Args:
        x: (S, L) finite numbers.
        y: (S, L) finite numbers.

    Returns:
        (S,) float64 in [-1, 1]; NaN where a row of x or y is constant.
    """
    dx, dy = _standardise(x), _standardise(y)
    return np.clip((dx * dy).sum(axis=1), -1.0, 1.0)


def spearman(x: NDArray[Any], y: NDArray[Any]) -> Floats:
    """Spearman correlation of rows: Pearson's on average ranks. See `pearson`."""
    return pearson(average_ranks(x), average_ranks(y))


def correlate(scores: NDArray[Any], label: NDArray[Any]) -> Correlation:
    """Correlate a metric with the label on each source, then average over the sources.

    A single row gives the pooled figure: all points of all sources as one series.

    Args:
        scores: (S, L) metric scores: S sources, L points each.
        label: (S, L) labels, larger is worse.

    Raises:
        MetricError: Shapes differ, or a number is NaN or Inf.
    """
    scores = np.asarray(scores, dtype=np.float64)
    label = np.asarray(label, dtype=np.float64)
    if scores.shape != label.shape or scores.ndim != 2 or scores.shape[1] == 0:
        raise MetricError(
            f"correlating needs two equal (sources, points) shapes, not {scores.shape} "
            f"and {label.shape}"
        )
    for what, values in (("score", scores), ("label", label)):
        if not np.isfinite(values).all():
            row, column = np.argwhere(~np.isfinite(values))[0]
            raise MetricError(f"the {what} of source {row}, point {column} is NaN or Inf")

    varies = (label != label[:, :1]).any(axis=1)
    scores, label = scores[varies], label[varies]
    flat = (scores == scores[:, :1]).all(axis=1)
    means = []
    for coefficient in (pearson, spearman):
        rows = np.zeros(len(scores))
        rows[~flat] = coefficient(scores[~flat], label[~flat])
        means.append(float(rows.mean()) if len(rows) else float("nan"))
    return Correlation(
        plcc=means[0],
        srocc=means[1],
        n_valid=int(varies.sum()),
        n_constant=int((~varies).sum()),
        n_flat=int(flat.sum()),
    )


def _standardise(values: NDArray[Any]) -> Floats:
    """Centre each row and give it length 1; a constant row becomes NaN.

    The first value is taken off before the mean, so that a constant row is exactly zero, and the
    row is scaled by its largest deviation, so that tiny numbers do not underflow when squared.
    """
    deviations = np.asarray(values, dtype=np.float64)
    deviations = deviations - deviations[:, :1]
    largest = np.abs(deviations).max(axis=1, keepdims=True)
    constant = largest == 0
    deviations = deviations / np.where(constant, np.nan, largest)
    deviations -= deviations.mean(axis=1, keepdims=True)
    return np.asarray(deviations / np.linalg.norm(deviations, axis=1, keepdims=True))
