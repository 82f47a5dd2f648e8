"""Whitened metrics: the error relative to the variation of the originals.

So no channel dominates. The units are those of the dataset's originals, per layer, never of the
pair that is scored: its few tokens would make a covariance of lower rank than there are channels.

By default whitening reduces and does not magnify: no channel or direction counts for more than one
that varies as channels usually do. Otherwise the few that hardly vary, which a network ignores,
decide the score. The usual variance is the median of the channels', which neither a few outlier
channels nor a few constant ones move.
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
        deviation: (C, D), of the channels over the dataset's originals.
        floor: Deviations count as at least this share of the layer's usual one. A layer whose
            channels never vary has units of 1.
    """

    def inverse() -> Tensor:
        units = torch.maximum(deviation, floor * _usual(deviation.square()).sqrt()[:, None])
        return units.masked_fill(units == 0, 1.0).reciprocal()

    scales = _once(deviation, floor, y.values, inverse)

    def lengths(scales: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.linalg.vector_norm(own(b - a).mul_(scales), dim=-1).double()

    each = scales[:, None].expand(1, y.shape[1], -1, -1, -1)
    sizes = by_slice(lengths, each, x.values, y.values)
    return slice_mean(sizes.square()) / y.shape[-1]


@metric(
    formula="mean_t (y_t - x_t)^T (S_c + a I)^-1 (y_t - x_t), a = shrinkage median_j S_cjj",
    cost="T2D",
    citation="Mahalanobis distance (textbook); whitened feature distance: TAROT",
)
def mahalanobis(x: Features, y: Features, covariance: Tensor, shrinkage: float = 1.0) -> Tensor:
    """Squared Mahalanobis length of a token's error, averaged over tokens.

    Args:
        x: Original.
        y: Compressed.
        covariance: (C, D, D), of the channels over the dataset's originals.
        shrinkage: Added to its diagonal, as a share of the layer's usual variance; of 1 where all
            of it is zero.

    Raises:
        MetricError: The covariance is not positive definite even so.
    """
    whitening = _once(
        covariance, shrinkage, y.values, lambda: _factor(covariance.to(y.values.device), shrinkage)
    )

    def lengths(upper: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.linalg.vector_norm(product_upper(b - a, upper), dim=-1).double().square()

    return by_slice(lengths, whitening.expand(1, y.shape[1], -1, -1, -1), x.values, y.values)


def _usual(variances: Tensor) -> Tensor:
    """Return the median of variances (C, D) over channels, (C,); their mean where that is zero."""
    median = variances.quantile(0.5, dim=-1)
    return torch.where(median > 0, median, variances.mean(-1))


def _once(statistic: Tensor, option: float, like: Tensor, make: Callable[[], Tensor]) -> Tensor:
    """Return what a statistic gives with an option, computed once for a dtype and device."""
    known = _derived().setdefault(statistic, {})
    key = option, like.dtype, like.device
    if key not in known:
        known[key] = make().to(like)
    found: Tensor = known[key]
    return found


@cache
def _derived() -> Any:
    """Return what is derived from each statistic, kept for as long as its tensor is."""
    from torch.utils.weak import WeakTensorKeyDictionary

    return WeakTensorKeyDictionary()


def _factor(covariance: Tensor, shrinkage: float) -> Tensor:
    """Return upper triangular W (C, D, D) with W W^T = (S + aI)^-1."""
    eye = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    usual = _usual(covariance.diagonal(dim1=-2, dim2=-1))
    usual = usual.masked_fill(usual == 0, 1.0)
    root, info = torch.linalg.cholesky_ex(covariance + shrinkage * usual[:, None, None] * eye)
    if bool(info.any()):
        layer = int(info.ne(0).int().argmax())
        raise MetricError(
            f"the covariance of layer {layer} with a shrinkage of {shrinkage:g} is not positive "
            "definite: a larger shrinkage makes it so"
        )
    return torch.linalg.solve_triangular(root, eye.expand_as(root), upper=False).mT
