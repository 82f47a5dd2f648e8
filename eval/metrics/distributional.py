"""Distributional metrics: how a token's channels, or a slice's tokens, are distributed.

`kl_softmax` and `js_softmax` take the softmax of a token as probabilities of its channels. The
others take the tokens of a slice as a sample, in which no token knows which it was.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from cfqa_data.errors import MetricError
from cfqa_data.eval.metrics.base import Metric

if TYPE_CHECKING:
    from torch import Tensor

    from cfqa_data.eval.features import Features

__all__ = [
    "DISTRIBUTIONAL",
    "frechet",
    "js_softmax",
    "kl_softmax",
    "moments",
    "sliced_wasserstein",
]


def kl_softmax(x: Tensor | Features, y: Tensor | Features) -> Tensor:
    """Kullback-Leibler divergence of the original token's softmax from the compressed one's.

    The softmax and its logarithm are float64, since the terms of a small divergence cancel.

    Args:
        x: (B or 1, N, C, T, D).
        y: (B, N, C, T, D).

    Returns:
        (B,) float64, in nats, averaged over tokens.
    """
    import torch

    from cfqa_data.eval.features import as_features, slice_mean

    x, y = as_features(x, y)
    p, order = _softmax(x)
    return slice_mean(order - torch.linalg.vecdot(p, y.log_softmax)).clamp(min=0.0)


def js_softmax(x: Tensor | Features, y: Tensor | Features) -> Tensor:
    """Jensen-Shannon divergence of the two tokens' softmaxes, in float64 as `kl_softmax`.

    Args:
        x: (B or 1, N, C, T, D).
        y: (B, N, C, T, D).

    Returns:
        (B,) float64 in [0, ln 2], in nats, averaged over tokens.
    """
    import torch

    from cfqa_data.eval.features import as_features, slice_mean

    x, y = as_features(x, y)
    p, p_order = _softmax(x)
    q = y.log_softmax.exp()
    q_order = torch.linalg.vecdot(q, y.log_softmax)
    both = q.add_(p)
    logarithm = both.clamp(min=torch.finfo(both.dtype).tiny).log_()  # 0 log 0 = 0
    # The negative entropy of the mean of both is <p + q, log(p + q)> / 2 - log 2.
    twice = p_order + q_order - torch.linalg.vecdot(both, logarithm)
    return slice_mean(math.log(2.0) + twice / 2.0).clamp(0.0, math.log(2.0))


def _softmax(z: Features) -> tuple[Tensor, Tensor]:
    """Return each token's softmax and its negative entropy, (B, N, C, T, D) and (B, N, C, T)."""
    import torch

    def softmax() -> tuple[Tensor, Tensor]:
        p = z.log_softmax.exp()
        return p, torch.linalg.vecdot(p, z.log_softmax)

    found: tuple[Tensor, Tensor] = z.once("softmax", softmax)
    return found


def sliced_wasserstein(
    x: Tensor | Features, y: Tensor | Features, projections: int = 64, seed: int = 0
) -> Tensor:
    """Wasserstein-2 distance of the tokens along random directions, root mean square over these.

    The directions are the normalised rows of
    ``numpy.random.default_rng(seed).normal(size=(projections, D))``, the same for all slices.

    Args:
        x: (B or 1, N, C, T, D).
        y: (B, N, C, T, D).
        projections: Number of directions.
        seed: Of the directions.

    Returns:
        (B,) float64, in feature units.

    Raises:
        MetricError: There is no direction, or the seed is no natural number.
    """
    from cfqa_data.eval.features import as_features, slice_mean

    x, y = as_features(x, y)
    squares = (_projected(y, projections, seed) - _projected(x, projections, seed)).square()
    return slice_mean(squares.mean((-2, -1)).sqrt())


def _projected(z: Features, projections: int, seed: int) -> Tensor:
    """Return the tokens' places along each direction, sorted, float64 (B, N, C, P, T)."""
    import torch

    def project() -> Tensor:
        along = torch.from_numpy(_directions(projections, z.shape[-1], seed)).to(z.values.device)
        return (z.values.double() @ along.mT).mT.sort(-1).values

    found: Tensor = z.once(("projected", projections, seed), project)
    return found


@lru_cache(maxsize=16)
def _directions(projections: int, channels: int, seed: int) -> Any:
    import numpy as np

    if projections < 1 or seed < 0:
        raise MetricError(
            f"sliced_wasserstein: projections is at least 1 and seed at least 0, "
            f"not {projections} and {seed}"
        )
    rows = np.random.default_rng(seed).normal(size=(projections, channels))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def frechet(x: Tensor | Features, y: Tensor | Features) -> Tensor:
    """Squared Frechet distance of the Gaussians fitted to the tokens of each slice.

    With m the mean of the tokens and S their covariance (divided by T), it is
    ``|m_x - m_y|^2 + tr(S_x) + tr(S_y) - 2 tr((S_x S_y)^(1/2))``. The last trace is the sum of the
    singular values of ``Xc Yc^T / T``, T x T, whatever the rank of the covariances; where there
    are fewer channels than tokens, triangular factors of Xc and Yc stand for them. All of it is
    float64: the traces cancel.

    Args:
        x: (B or 1, N, C, T, D).
        y: (B, N, C, T, D).

    Returns:
        (B,) float64, in squared feature units.
    """
    import torch

    from cfqa_data.eval.features import as_features, slice_mean

    x, y = as_features(x, y)
    a, b = _root(x), _root(y)
    traces = a.square().sum((-2, -1)) + b.square().sum((-2, -1))
    shared = torch.linalg.svdvals(a @ b.mT).sum(-1)
    spread = (traces - 2.0 * shared).clamp(min=0.0) / y.shape[-2]
    return slice_mean((_means(x) - _means(y)).square().sum(-1) + spread)


def _root(z: Features) -> Tensor:
    """Return R with R^T R = Xc^T Xc and at most as many rows as channels, float64."""
    import torch

    def root() -> Tensor:
        centred = z.centred.double()
        tokens, channels = z.shape[-2:]
        return centred if tokens <= channels else torch.linalg.qr(centred, mode="r").R

    found: Tensor = z.once("root", root)
    return found


def moments(x: Tensor | Features, y: Tensor | Features) -> Tensor:
    """Squared distance of the channels' means and standard deviations over tokens.

    It is the Frechet distance of Gaussians with independent channels, divided by their number.

    Args:
        x: (B or 1, N, C, T, D).
        y: (B, N, C, T, D).

    Returns:
        (B,) float64, in squared feature units.
    """
    from cfqa_data.eval.features import as_features, slice_mean

    x, y = as_features(x, y)
    first = (_means(x) - _means(y)).square()
    second = (_deviations(x) - _deviations(y)).square()
    return slice_mean(first + second)


def _means(z: Features) -> Tensor:
    """Return the mean of the tokens, float64 (B, N, C, D)."""
    import torch

    found: Tensor = z.once("means", lambda: z.values.mean(-2, dtype=torch.float64))
    return found


def _deviations(z: Features) -> Tensor:
    """Return the standard deviation of each channel over tokens, float64 (B, N, C, D)."""
    import torch

    def deviations() -> Tensor:
        return z.centred.square().mean(-2, dtype=torch.float64).sqrt()

    found: Tensor = z.once("deviations", deviations)
    return found


KL_SOFTMAX = Metric(
    name="kl_softmax",
    family="distributional",
    formula="mean_t sum_j p_tj log(p_tj / q_tj), p = softmax_j(x), q = softmax_j(y)",
    function=kl_softmax,
    lower_better=True,
    score_range=(0.0, math.inf),
    identity=0.0,
    invariances=frozenset(),
    cost="TD",
    citation="Kullback and Leibler, On Information and Sufficiency, Ann. Math. Statist. 1951",
)

JS_SOFTMAX = Metric(
    name="js_softmax",
    family="distributional",
    formula="mean_t (KL(p_t, m_t) + KL(q_t, m_t)) / 2, m = (p + q) / 2",
    function=js_softmax,
    lower_better=True,
    score_range=(0.0, math.log(2.0)),
    identity=0.0,
    invariances=frozenset(),
    cost="TD",
    citation="Lin, Divergence Measures Based on the Shannon Entropy, IEEE Trans. Inf. Theory 1991",
)

SLICED_WASSERSTEIN = Metric(
    name="sliced_wasserstein",
    family="distributional",
    formula="mean_nc (mean_ut (sort_t<y_t, u> - sort_t<x_t, u>)^2)^(1/2), u random unit vectors",
    function=sliced_wasserstein,
    lower_better=True,
    score_range=(0.0, math.inf),
    identity=0.0,
    invariances=frozenset(),
    cost="T2D",
    citation="Bonneel et al., Sliced and Radon Wasserstein Barycenters of Measures, JMIV 2015",
    options={"projections": 64, "seed": 0},
)

FRECHET = Metric(
    name="frechet",
    family="distributional",
    formula="mean_nc |m_x - m_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)), moments over tokens",
    function=frechet,
    lower_better=True,
    score_range=(0.0, math.inf),
    identity=0.0,
    invariances=frozenset(),
    cost="D3",
    citation="Dowson and Landau, The Frechet Distance between Multivariate Normal Distributions, "
    "J. Multivariate Analysis 1982",
)

MOMENTS = Metric(
    name="moments",
    family="distributional",
    formula="mean_ncj (mean_t(y_tj) - mean_t(x_tj))^2 + (std_t(y_tj) - std_t(x_tj))^2",
    function=moments,
    lower_better=True,
    score_range=(0.0, math.inf),
    identity=0.0,
    invariances=frozenset(),
    cost="TD",
    citation="Frechet distance of Gaussians with diagonal covariances (textbook)",
)

DISTRIBUTIONAL = (KL_SOFTMAX, JS_SOFTMAX, SLICED_WASSERSTEIN, FRECHET, MOMENTS)
