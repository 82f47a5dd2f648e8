"""Whitened metrics: the error relative to the variation of the originals.

Whitening keeps channels of high variance from dominating the score. The statistics are those of the
dataset's originals, per layer: the covariance of a pair's few tokens would be singular.

By default, the variance of each channel or direction is limited from below by the typical variance
of the layer. Otherwise, the few that hardly vary, which a network ignores, would dominate the
score. The typical variance is the median over channels, which is robust to a few outlier or
constant channels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from cfqa_data.errors import MetricError
from cfqa_data.eval.features.batch import Features, own, slice_mean
from cfqa_data.eval.features.lazy_torch import Tensor, torch
from cfqa_data.eval.features.products import product_upper
from cfqa_data.eval.features.relations import by_slice
from cfqa_data.eval.metrics.base import metric

__all__ = ["mahalanobis", "mse_whitened"]


@metric(
    formula="mean_tj (y_tj - x_tj)^2 / sigma_cj^2",
    citation="standardised Euclidean distance (textbook); of features: TAROT",
)
def mse_whitened(x: Features, y: Features, deviation: Tensor, floor: float = 1.0) -> Tensor:
    """Mean squared error with each channel in units of its standard deviation.

    Args:
        x: Original.
        y: Compressed.
        deviation: Standard deviation of each channel over the dataset's originals, (C, D).
        floor: Minimum deviation, relative to the typical one of the layer. Deviations that are
            still 0 count as 1.
    """

    def inverse() -> Tensor:
        units = torch.maximum(deviation, floor * _typical(deviation.square()).sqrt()[:, None])
        return units.masked_fill(units == 0, 1.0).reciprocal()

    scales = _cached(deviation, floor, y.values, inverse)

    def lengths(scales: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.linalg.vector_norm(own(b - a).mul_(scales), dim=-1).double()

    scales = scales[:, None].expand(1, y.shape[1], -1, -1, -1)
    norms = by_slice(lengths, scales, x.values, y.values)
    return slice_mean(norms.square()) / y.shape[-1]


@metric(
    formula="mean_t (y_t - x_t)^T (S_c + a I)^-1 (y_t - x_t), a = shrinkage median_j S_cjj",
    cost="T2D",
    citation="Mahalanobis distance (textbook); whitened feature distance: TAROT",
)
def mahalanobis(x: Features, y: Features, covariance: Tensor, shrinkage: float = 1.0) -> Tensor:
    """Mean over tokens of the squared Mahalanobis norm of the error.

    Args:
        x: Original.
        y: Compressed.
        covariance: Covariance of the channels over the dataset's originals, (C, D, D).
        shrinkage: Constant added to its diagonal, relative to the typical variance of the layer,
            or absolute where all variances are zero.

    Raises:
        MetricError: If the sum is not positive definite.
    """
    whitening = _cached(
        covariance, shrinkage, y.values, lambda: _factor(covariance.to(y.values.device), shrinkage)
    )

    def squares(upper: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.linalg.vector_norm(product_upper(b - a, upper), dim=-1).double().square()

    return by_slice(squares, whitening.expand(1, y.shape[1], -1, -1, -1), x.values, y.values)


def _typical(variances: Tensor) -> Tensor:
    """Return the median of variances (C, D) over channels, (C,), or their mean where it is zero."""
    median = variances.quantile(0.5, dim=-1)
    return torch.where(median > 0, median, variances.mean(-1))


def _cached(statistic: Tensor, option: float, like: Tensor, make: Callable[[], Tensor]) -> Tensor:
    """Return the result of ``make()``, cached by statistic, option, dtype and device."""
    results = _results().setdefault(statistic, {})
    key = option, like.dtype, like.device
    if key not in results:
        results[key] = make().to(like)
    result: Tensor = results[key]
    return result


@cache
def _results() -> Any:
    """Return the cache of results by statistic; entries live as long as the statistic's tensor."""
    from torch.utils.weak import WeakTensorKeyDictionary

    return WeakTensorKeyDictionary()


def _factor(covariance: Tensor, shrinkage: float) -> Tensor:
    """Return an upper triangular W, (C, D, D), with W W^T = (S + a I)^-1."""
    eye = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    variance = _typical(covariance.diagonal(dim1=-2, dim2=-1))
    variance = variance.masked_fill(variance == 0, 1.0)
    root, info = torch.linalg.cholesky_ex(covariance + shrinkage * variance[:, None, None] * eye)
    if bool(info.any()):
        layer = int(info.ne(0).int().argmax())
        raise MetricError(
            f"the covariance of layer {layer} with a shrinkage of {shrinkage:g} is not positive "
            "definite: a larger shrinkage makes it so"
        )
    return torch.linalg.solve_triangular(root, eye.expand_as(root), upper=False).mT
