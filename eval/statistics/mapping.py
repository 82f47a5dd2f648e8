"""The 4-parameter logistic that maps the scores of a metric to the scale of the labels.

f(x) = b2 + (b1 - b2) / (1 + exp(-(x - b3) / b4)), fitted by least squares over all points of all
sources (ITU-T P.1401, clause 7; Sheikh et al., IEEE TIP 2006). Fits per source would follow noise:
four parameters on ten points.

The fit starts at b1 = max y, b2 = min y, b3 = mean x, b4 = std x / 4, where b4 has the sign of the
pooled Pearson correlation, so that the curve of a metric where higher is better starts falling.
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

MAX_EVALUATIONS = 500

TOLERANCE = 1e-6
"""Relative change of error or parameters at which a fit ends. If the labels do not level off, the
best curve has b1 at infinity and the parameters diverge while the correlation hardly changes; such
a fit ends here, or after `MAX_EVALUATIONS`."""


@dataclass(frozen=True)
class Mapped:
    """The fitted mapping of a metric and the figures after it.

    Attributes:
        plcc: Pearson correlation of the mapped scores with the labels, times -1 if the curve falls,
            since the mapping would make every sign positive. NaN if the labels are constant, 0 if
            only the scores are.
        rmse: Root mean square error of the mapped scores, in units of the label; NaN if the labels
            are constant.
        kind: ``logistic``, or ``linear`` if the logistic could not be fitted; None without scores.
        curve: Maps scores (k,) to the expected labels (k,).
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
    """Fit the logistic and correlate the mapped scores with the labels.

    The fit has failed if its parameters are not finite or its error is larger than that of the
    straight line, which a logistic can approximate arbitrarily well; the line is used instead.

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
    standardise = _standardiser(scores)
    x, y = standardise(scores), _standardiser(truth)(truth)
    line = float(np.sqrt(max(0.0, 1 - r * r)))
    fitted = _fit(x, y, 1.0 if r >= 0 else -1.0)
    if fitted is not None:
        mapped = logistic(x, *fitted)
        error = float(np.sqrt(np.mean((mapped - y) ** 2)))
        if error <= line and (mapped != mapped[0]).any():
            direction = float(np.sign((fitted[0] - fitted[1]) * fitted[3]))
            plcc = direction * float(pearson(mapped[None], y[None])[0])
            curve = partial(_curve, standardise, lambda z: logistic(z, *fitted), mean, deviation)
            return Mapped(plcc, error * deviation, "logistic", curve)
    curve = partial(_curve, standardise, lambda z: r * z, mean, deviation)
    return Mapped(r, line * deviation, "linear", curve)


def _curve(standardise: Any, shape: Any, mean: float, deviation: float, at: NDArray[Any]) -> Floats:
    with np.errstate(over="ignore"):  # a straight line may exceed the largest float
        return np.asarray(mean + deviation * shape(standardise(at)))


def _standardiser(values: NDArray[Any]) -> Callable[[NDArray[Any]], Floats]:
    """Return a function that standardises values to mean 0 and deviation 1, without overflow."""
    unit = float(power_of_two(values)[0])
    first = values[0] / unit
    size = np.abs(values / unit - first).max()
    scaled = (values / unit - first) / size
    mean, deviation = scaled.mean(), scaled.std()
    return lambda at: np.asarray(((at / unit - first) / size - mean) / deviation)


def _fit(x: Floats, y: Floats, sign: float) -> tuple[float, float, float, float] | None:
    """Fit the logistic to standardised values; return None if no parameters are finite."""
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
            fit = least_squares(
                residuals,
                start,
                jacobian,
                method="lm",
                ftol=TOLERANCE,
                xtol=TOLERANCE,
                max_nfev=MAX_EVALUATIONS,
            )
        except (ValueError, np.linalg.LinAlgError):  # a step to values that are not finite
            return None
    if not np.isfinite(fit.x).all() or fit.x[3] == 0:
        return None
    b1, b2, b3, b4 = (float(value) for value in fit.x)
    return b1, b2, b3, b4
