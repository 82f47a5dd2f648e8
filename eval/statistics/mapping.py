"""The 4-parameter logistic that maps a metric's scores to the scale of the truth.

f(x) = b2 + (b1 - b2) / (1 + exp(-(x - b3) / b4)), fitted by least squares over all points of all
sources (ITU-T P.1401, clause 7; Sheikh et al., IEEE TIP 2006). Fitted per source it would follow
the noise: four parameters on ten points.

It starts at b1 = max y, b2 = min y, b3 = mean x, b4 = std x / 4, with b4's sign that of the pooled
Pearson correlation, so that a metric that falls with the damage starts on a falling curve.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfqa_data.eval.statistics.correlations import pearson, power_of_two

__all__ = ["Mapped", "logistic", "map_scores"]

Floats = NDArray[np.float64]

MOST_EVALUATIONS = 500

TOLERANCE = 1e-6
"""Relative change of error or parameters at which a fit ends. Where the truth rises without
levelling off, the best curve has b1 at infinity and the parameters drift for ever, while the
correlation hardly changes: such a fit ends here, or after `MOST_EVALUATIONS`."""


@dataclass(frozen=True)
class Mapped:
    """What correlates after the mapping.

    Attributes:
        plcc: Pearson correlation of the mapped scores with the truth, times the direction of the
            curve (-1 if it falls): the mapping alone would turn every sign positive. NaN if the
            truth is constant, 0 if only the metric is.
        rmse: Root mean square error of the mapped scores, in units of the truth; NaN as plcc.
        kind: ``logistic``, or ``linear`` where the logistic could not be fitted; None of no scores.
        curve: Takes scores (k,) to the truth that the mapping expects of them.
    """

    plcc: float
    rmse: float
    kind: str | None
    curve: Callable[[NDArray[Any]], Floats] = field(repr=False, compare=False)


def logistic(x: NDArray[Any], b1: float, b2: float, b3: float, b4: float) -> Floats:
    """Return b2 + (b1 - b2) / (1 + exp(-(x - b3) / b4))."""
    from scipy.special import expit

    return np.asarray(b2 + (b1 - b2) * expit((x - b3) / b4))


def map_scores(scores: NDArray[Any], truth: NDArray[Any]) -> Mapped:
    """Fit the logistic and correlate what it gives.

    The fit has failed when it ends nowhere finite, or further off than the straight line, which a
    logistic can come as near to as one likes; the line is then taken instead.

    Args:
        scores: (n,) finite scores.
        truth: (n,) finite labels.
    """
    unit = float(power_of_two(truth)[0])
    deviation, mean = (unit * float(function(truth / unit)) for function in (np.std, np.mean))
    if (truth == truth[0]).all():
        return Mapped(np.nan, np.nan, "linear", lambda at: np.full(len(at), mean))
    if (scores == scores[0]).all():
        return Mapped(0.0, deviation, "linear", lambda at: np.full(len(at), mean))
    r = float(pearson(scores[None], truth[None])[0])
    standard = _standardiser(scores)
    x, y = standard(scores), _standardiser(truth)(truth)
    line = float(np.sqrt(max(0.0, 1 - r * r)))
    fitted = _fit(x, y, 1.0 if r >= 0 else -1.0)
    if fitted is not None:
        mapped = logistic(x, *fitted)
        error = float(np.sqrt(np.mean((mapped - y) ** 2)))
        if error <= line and (mapped != mapped[0]).any():
            direction = float(np.sign((fitted[0] - fitted[1]) * fitted[3]))
            plcc = direction * float(pearson(mapped[None], y[None])[0])
            curve = partial(_curve, standard, lambda z: logistic(z, *fitted), mean, deviation)
            return Mapped(plcc, error * deviation, "logistic", curve)
    curve = partial(_curve, standard, lambda z: r * z, mean, deviation)
    return Mapped(r, line * deviation, "linear", curve)


def _curve(standard: Any, shape: Any, mean: float, deviation: float, at: NDArray[Any]) -> Floats:
    with np.errstate(over="ignore"):  # a straight line may leave what a float can be
        return np.asarray(mean + deviation * shape(standard(at)))


def _standardiser(values: NDArray[Any]) -> Callable[[NDArray[Any]], Floats]:
    """Return what scales values that vary to mean 0 and deviation 1, whatever their size."""
    unit = float(power_of_two(values)[0])
    first = values[0] / unit
    size = np.abs(values / unit - first).max()
    scaled = (values / unit - first) / size
    mean, deviation = scaled.mean(), scaled.std()
    return lambda at: np.asarray(((at / unit - first) / size - mean) / deviation)


def _fit(x: Floats, y: Floats, sign: float) -> tuple[float, float, float, float] | None:
    """Fit standardised values; None where nothing finite is found."""
    from scipy.optimize import least_squares
    from scipy.special import expit

    def residuals(b: Floats) -> Floats:
        return logistic(x, *b) - y

    def jacobian(b: Floats) -> Floats:
        t = (x - b[2]) / b[3]
        rise = expit(t)
        slope = (b[0] - b[1]) * rise * (1 - rise) / b[3]
        return np.stack([rise, 1 - rise, -slope, -slope * t], axis=1)

    start = [y.max(), y.min(), 0.0, sign / 4]
    if len(x) < len(start):
        return None
    with np.errstate(all="ignore"):
        try:
            found = least_squares(
                residuals,
                start,
                jacobian,
                method="lm",
                ftol=TOLERANCE,
                xtol=TOLERANCE,
                max_nfev=MOST_EVALUATIONS,
            )
        except (ValueError, np.linalg.LinAlgError):  # it stepped to where nothing is finite
            return None
    if not np.isfinite(found.x).all() or found.x[3] == 0:
        return None
    b1, b2, b3, b4 = (float(value) for value in found.x)
    return b1, b2, b3, b4
