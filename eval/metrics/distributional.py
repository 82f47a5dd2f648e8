"""Distributional metrics: the distributions of a token's channels or of a slice's tokens.

`kl_softmax` and `js_softmax` use the softmax of a token as the probabilities of its channels. The
others use the tokens of a slice as an unordered sample.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from cfqa_data.errors import MetricError
from cfqa_data.eval.features.batch import Features, by_rows, derived, own, root, token_mean
from cfqa_data.eval.features.clouds import differences
from cfqa_data.eval.features.lazy_torch import Tensor, torch
from cfqa_data.eval.features.order import in_order
from cfqa_data.eval.features.relations import by_slice
from cfqa_data.eval.metrics.base import metric

__all__ = ["frechet", "js_softmax", "kl_softmax", "moments", "sliced_wasserstein"]


@metric(
    formula="mean_t sum_j p_tj log(p_tj / q_tj), p = softmax_j(x), q = softmax_j(y)",
    citation="Kullback and Leibler, On Information and Sufficiency, Ann. Math. Statist. 1951",
)
def kl_softmax(x: Features, y: Features) -> Tensor:
    """Kullback-Leibler divergence between the softmaxes of the original and compressed token, nats.

    The softmax and its logarithm are float64, since the terms of a small divergence cancel.
    """
    p, negentropy = _softmax(x)

    def divergence(p: Tensor, negentropy: Tensor, values: Tensor) -> Tensor:
        return negentropy[..., 0] - own(_logarithms(values)).mul_(p).sum(-1)

    return by_rows(divergence, p, negentropy[..., None], y.values, share=4)


@metric(
    formula="mean_t (KL(p_t, m_t) + KL(q_t, m_t)) / 2, m = (p + q) / 2",
    score_range=(0.0, math.log(2.0)),
    citation="Lin, Divergence Measures Based on the Shannon Entropy, IEEE Trans. Inf. Theory 1991",
)
def js_softmax(x: Features, y: Features) -> Tensor:
    """Jensen-Shannon divergence of the softmaxes of both tokens, nats; float64, as `kl_softmax`."""
    p, negentropy = _softmax(x)

    def divergence(p: Tensor, negentropy: Tensor, values: Tensor) -> Tensor:
        logarithms = _logarithms(values)
        q = logarithms.exp()
        negentropy_q = own(logarithms).mul_(q).sum(-1)
        total = own(q).add_(p)
        logarithm = total.clamp(min=torch.finfo(total.dtype).tiny).log_()  # 0 log 0 = 0
        # The negative entropy of the mean of both is <p + q, log(p + q)> / 2 - log 2.
        twice = negentropy[..., 0] + negentropy_q - own(logarithm).mul_(total).sum(-1)
        return math.log(2.0) + twice / 2.0

    return by_rows(divergence, p, negentropy[..., None], y.values, share=4)


@derived
def _softmax(z: Features) -> tuple[Tensor, Tensor]:
    """Return each token's softmax and its negative entropy, (B, N, C, T, D) and (B, N, C, T)."""
    logarithms = _logarithms(z.values)
    p = logarithms.exp()
    return p, torch.linalg.vecdot(p, logarithms)


def _logarithms(values: Tensor) -> Tensor:
    """Return the logarithm of the softmax of each token, float64 (..., D)."""
    return values.log_softmax(-1, dtype=torch.float64)


@metric(
    formula="mean_nc (mean_ut (sort_t<y_t, u> - sort_t<x_t, u>)^2)^(1/2), u random unit vectors",
    cost="T2D",
    citation="Bonneel et al., Sliced and Radon Wasserstein Barycenters of Measures, JMIV 2015",
)
def sliced_wasserstein(x: Features, y: Features, projections: int = 64, seed: int = 0) -> Tensor:
    """Wasserstein-2 distance of the tokens along random directions, root mean square over these.

    It is in feature units. The directions are the normalised rows of
    ``numpy.random.default_rng(seed).normal(size=(projections, D))``, the same for all slices.

    Raises:
        MetricError: If ``projections`` is less than 1 or ``seed`` less than 0.
    """
    squares = (_projected(y, projections, seed) - _projected(x, projections, seed)).square()
    return root(squares.mean((-2, -1)))


@derived
def _projected(z: Features, projections: int, seed: int) -> Tensor:
    """Return the sorted projections of the tokens on each direction, float64 (B, N, C, P, T)."""
    directions = _directions(projections, z.shape[-1], seed, z.values.device)
    return in_order((z.values.double() @ directions.mT).mT)


@lru_cache(maxsize=16)
def _directions(projections: int, channels: int, seed: int, device: Any) -> Tensor:
    if projections < 1 or seed < 0:
        raise MetricError(
            "sliced_wasserstein: projections must be at least 1 and seed at least 0, not "
            f"{projections} and {seed}"
        )
    rows = np.random.default_rng(seed).normal(size=(projections, channels))
    return torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True)).to(device)


@metric(
    formula="mean_nc |m_x - m_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)), moments over tokens",
    cost="D3",
    citation="Dowson and Landau, The Frechet Distance between Multivariate Normal Distributions, "
    "J. Multivariate Analysis 1982",
)
def frechet(x: Features, y: Features) -> Tensor:
    """Squared Frechet distance of the Gaussians fitted to the tokens of each slice.

    In squared feature units, with m the mean of the tokens and S their covariance (divided by T),
    it is ``|m_x - m_y|^2 + tr(S_x) + tr(S_y) - 2 tr((S_x S_y)^(1/2))``. The last trace is the sum
    of the singular values of ``Xc Yc^T / T``. The score is computed in float64 as ``|m_x - m_y|^2 +
    ((|Xc| - |Yc|)^2 + 2 |Xc| |Yc| (1 - s)) / T`` with ``s = |Xc Yc^T|_* / (|Xc| |Yc|)``.

    Raises:
        MetricError: If the eigenvalue decomposition does not converge.
    """
    spread = differences(x, y, True).squared() / y.shape[-2]
    return (_means(x) - _means(y)).square().sum(-1) + spread


@metric(
    formula="mean_ncj (mean_t(y_tj) - mean_t(x_tj))^2 + (std_t(y_tj) - std_t(x_tj))^2",
    citation="Frechet distance of Gaussians with diagonal covariances (textbook)",
)
def moments(x: Features, y: Features) -> Tensor:
    """Squared distance of the means and standard deviations of the channels over tokens.

    In squared feature units, it is the squared Frechet distance of Gaussians with independent
    channels, divided by the number of channels.
    """
    means = (_means(x) - _means(y)).square()
    return means + (_deviations(x) - _deviations(y)).square()


@derived
def _means(z: Features) -> Tensor:
    """Return the mean of the tokens, float64 (B, N, C, D)."""
    return token_mean(z.values)


@derived
def _deviations(z: Features) -> Tensor:
    """Return the standard deviation of each channel over tokens, float64 (B, N, C, D)."""

    def deviations(values: Tensor) -> Tensor:
        z = values - values[..., :1, :]
        z = own(z).sub_(z.mean(-2, keepdim=True))
        return root(token_mean(own(z).square_()))[..., None, :]

    return by_slice(deviations, z.values)[..., 0, :]
