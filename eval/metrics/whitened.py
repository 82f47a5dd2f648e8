"""Whitened metrics: the error relative to the variation of the originals.

So no channel dominates. The units are those of the dataset's originals, per layer, never of the
pair that is scored: its few tokens would make a covariance of lower rank than there are channels.

By default whitening reduces and does not magnify: no channel or direction counts for more than one
that varies as channels usually do. Otherwise the few that hardly vary, which a network ignores,
decide the score. The usual variance is the median of the channels', which neither a few outlier
channels nor a few constant ones move.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from cfqa_data.errors import MetricError
from cfqa_data.eval.features.batch import Features, slice_mean
from cfqa_data.eval.features.lazy_torch import Tensor, torch
from cfqa_data.eval.features.pairs import errors
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
    e = errors(x, y).values
    usual = _usual(deviation.square()).sqrt()
    units = torch.maximum(deviation, floor * usual[:, None])
    units = units.masked_fill(units == 0, 1.0).to(e)
    lengths = torch.linalg.vector_norm(e / units[:, None], dim=-1).double()
    return slice_mean(lengths.square()) / y.shape[-1]


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
    e = errors(x, y).values
    whitening = _whitening(covariance, shrinkage, e)

    def lengths(upper: Tensor, errors: Tensor) -> Tensor:
        return torch.linalg.vector_norm(product_upper(errors, upper), dim=-1).double().square()

    return by_slice(lengths, whitening.expand(1, e.shape[1], -1, -1, -1), e)


def _usual(variances: Tensor) -> Tensor:
    """Return the median of variances (C, D) over channels, (C,); their mean where that is zero."""
    median = variances.quantile(0.5, dim=-1)
    return torch.where(median > 0, median, variances.mean(-1))


def _whitening(covariance: Tensor, shrinkage: float, like: Tensor) -> Tensor:
    """Return upper triangular W (C, D, D) with W W^T = (S + aI)^-1, once for each covariance."""
    known = _whitenings().setdefault(covariance, {})
    key = shrinkage, like.dtype, like.device
    if key not in known:
        known[key] = _factor(covariance.to(like.device), shrinkage).to(like.dtype)
    found: Tensor = known[key]
    return found


@cache
def _whitenings() -> Any:
    """Return the factors of each covariance tensor, kept for as long as that tensor is."""
    from torch.utils.weak import WeakTensorKeyDictionary

    return WeakTensorKeyDictionary()


def _factor(covariance: Tensor, shrinkage: float) -> Tensor:
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
