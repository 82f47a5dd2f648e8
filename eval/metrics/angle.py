"""Angle metrics: the direction of each token's vector, and its length.

They are made from the distance between unit vectors, so that float32 tells reconstructions apart
whose cosine rounds to 1.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from cfqa_data.eval.metrics.base import Metric

if TYPE_CHECKING:
    from torch import Tensor

    from cfqa_data.eval.features import Features

__all__ = [
    "ANGLE",
    "angle",
    "ccc",
    "cosine",
    "cosine_class",
    "cosine_flat",
    "cosine_p5",
    "norm_error",
    "pearson_token",
]

# Added to both norms, as in the published baseline: a zero token scores 0 rather than 0/0.
NORM_OFFSET = 1e-8


def cosine(x: Tensor | Features, y: Tensor | Features) -> Tensor:
    """Mean over all tokens of the cosine between the original and the compressed token.

    Args:
        x: (B or 1, N, C, T, D).
        y: (B, N, C, T, D).

    Returns:
        (B,) float64 in [-1, 1].
    """
    from cfqa_data.eval.features import as_features, slice_mean
    from cfqa_data.eval.pairs import cosines

    x, y = as_features(x, y)
    shares = x.norms / (x.norms + NORM_OFFSET) * (y.norms / (y.norms + NORM_OFFSET))
    return slice_mean(cosines(x, y) * shares).clamp(-1.0, 1.0)


def cosine_class(x: Tensor | Features, y: Tensor | Features) -> Tensor:
    """Cosine of the class token, the first one, alone; what classifiers look at most.

    Args:
        x: (B or 1, N, C, T, D).
        y: (B, N, C, T, D).

    Returns:
        (B,) float64 in [-1, 1].
    """
    from cfqa_data.eval.features import as_features, slice_mean
    from cfqa_data.eval.pairs import cosines

    x, y = as_features(x, y)
    return slice_mean(cosines(x, y)[..., 0]).clamp(-1.0, 1.0)


def cosine_flat(x: Tensor | Features, y: Tensor | Features) -> Tensor:
    """Cosine of each slice taken as one vector of T * D numbers; 0 where one of the two is zero.

    Args:
        x: (B or 1, N, C, T, D).
        y: (B, N, C, T, D).

    Returns:
        (B,) float64 in [-1, 1].
    """
    import torch

    from cfqa_data.eval.features import as_features, slice_mean
    from cfqa_data.eval.pairs import ratio

    x, y = as_features(x, y)
    before, after = (z.norms.square().sum(-1).sqrt() for z in (x, y))
    scale = ratio(before, after)[..., None, None].to(y.values.dtype)
    apart = torch.addcmul(x.values, y.values, scale, value=-1.0)
    # Norms by token first: a float32 sum over a whole slice would lose digits.
    gaps = ratio(torch.linalg.vector_norm(apart, dim=-1).double().square().sum(-1).sqrt(), before)
    flat = (1.0 - gaps.square() / 2.0).masked_fill((before == 0) | (after == 0), 0.0)
    return slice_mean(flat).clamp(-1.0, 1.0)


def cosine_p5(x: Tensor | Features, y: Tensor | Features) -> Tensor:
    """5th percentile of the token cosines of each slice: how the worst tokens fare.

    Between the two nearest tokens it is interpolated linearly. A zero token has cosine 0.

    Args:
        x: (B or 1, N, C, T, D).
        y: (B, N, C, T, D).

    Returns:
        (B,) float64 in [-1, 1].
    """
    from cfqa_data.eval.features import as_features, slice_mean
    from cfqa_data.eval.pairs import cosines

    x, y = as_features(x, y)
    ordered = cosines(x, y).sort(-1).values
    last = ordered.shape[-1] - 1
    below = int(0.05 * last)
    low, high = ordered[..., below], ordered[..., min(below + 1, last)]
    return slice_mean(low + (0.05 * last - below) * (high - low)).clamp(-1.0, 1.0)


def norm_error(x: Tensor | Features, y: Tensor | Features) -> Tensor:
    """Mean over tokens of the change of the token's length, relative to the original's.

    A token that is zero in the original scores 0 if it is zero in ``y`` too, and 1 otherwise.

    Args:
        x: (B or 1, N, C, T, D).
        y: (B, N, C, T, D).

    Returns:
        (B,) float64.
    """
    import torch

    from cfqa_data.eval.features import as_features, slice_mean
    from cfqa_data.eval.pairs import error_energies, errors, ratio

    x, y = as_features(x, y)
    e = errors(x, y)
    # |y| - |x| = (|y|^2 - |x|^2) / (|y| + |x|), where |y|^2 - |x|^2 = 2<x, e> + |e|^2.
    growth = 2.0 * torch.linalg.vecdot(x.values, e.values).double() + error_energies(x, y)
    return slice_mean(ratio(ratio(growth.abs(), x.norms + y.norms), x.norms))


def angle(x: Tensor | Features, y: Tensor | Features) -> Tensor:
    """Mean over tokens of the angle between the original and the compressed token.

    A zero token is at right angles to every other.

    Args:
        x: (B or 1, N, C, T, D).
        y: (B, N, C, T, D).

    Returns:
        (B,) float64 in [0, pi], in radians.
    """
    import torch

    from cfqa_data.eval.features import as_features, slice_mean
    from cfqa_data.eval.pairs import opposite_gaps, square_gaps

    x, y = as_features(x, y)
    # The arc tangent is as good at 0 and at pi as between; the arc cosine is not.
    half = torch.atan2(square_gaps(x, y).sqrt(), opposite_gaps(x, y).sqrt())
    return slice_mean(2.0 * half).clamp(0.0, math.pi)


def pearson_token(x: Tensor | Features, y: Tensor | Features) -> Tensor:
    """Mean over tokens of the Pearson correlation of a token's channels with their originals.

    A token that does not vary over channels, in ``x`` or in ``y``, scores 0.

    Args:
        x: (B or 1, N, C, T, D).
        y: (B, N, C, T, D).

    Returns:
        (B,) float64 in [-1, 1].
    """
    import torch

    from cfqa_data.eval.features import as_features, slice_mean
    from cfqa_data.eval.pairs import ratio

    x, y = as_features(x, y)
    scale = ratio(x.spreads, y.spreads)[..., None].to(y.values.dtype)
    apart = torch.addcmul(x.values, y.values, scale, value=-1.0)
    apart -= apart.mean(-1, keepdim=True)
    lengths = torch.linalg.vector_norm(apart, dim=-1).double()
    gaps = ratio(lengths, x.spreads * math.sqrt(y.shape[-1]))
    flat = (x.spreads == 0) | (y.spreads == 0)
    return slice_mean((1.0 - gaps.square() / 2.0).masked_fill(flat, 0.0)).clamp(-1.0, 1.0)


def ccc(x: Tensor | Features, y: Tensor | Features) -> Tensor:
    """Lin's concordance correlation coefficient of all values of each slice.

    Unlike Pearson's it falls with a difference of mean or of scale. Two constant slices score 1 if
    they are equal, 0 otherwise.

    Args:
        x: (B or 1, N, C, T, D).
        y: (B, N, C, T, D).

    Returns:
        (B,) float64 in [-1, 1].
    """
    from cfqa_data.eval.features import as_features, slice_mean
    from cfqa_data.eval.pairs import error_energies, ratio

    x, y = as_features(x, y)
    means, variances = [], []
    for z in (x, y):
        tokens = z.values.mean(-1).double()
        means.append(tokens.mean(-1))
        variances.append(z.spreads.square().mean(-1) + tokens.var(-1, correction=0))
    # 2 cov(x, y) = var(x) + var(y) + (mean(x) - mean(y))^2 - mse(x, y).
    whole = variances[0] + variances[1] + (means[0] - means[1]).square()
    mse = error_energies(x, y).mean(-1) / y.shape[-1]
    return slice_mean(1.0 - ratio(mse, whole)).clamp(-1.0, 1.0)


COSINE = Metric(
    name="cosine",
    family="angle",
    formula="mean_t <x_t, y_t> / ((|x_t| + 1e-8) (|y_t| + 1e-8))",
    function=cosine,
    lower_better=False,
    score_range=(-1.0, 1.0),
    identity=1.0,
    invariances=frozenset({"scale"}),
    cost="TD",
    citation="Gao et al., Compressed Feature Quality Assessment, ACM MM 2025 (baseline)",
)

COSINE_CLASS = Metric(
    name="cosine_class",
    family="angle",
    formula="mean_nc <x_0, y_0> / (|x_0| |y_0|)",
    function=cosine_class,
    lower_better=False,
    score_range=(-1.0, 1.0),
    identity=1.0,
    invariances=frozenset({"scale"}),
    cost="TD",
    citation="cosine similarity (textbook), of the class token",
)

COSINE_FLAT = Metric(
    name="cosine_flat",
    family="angle",
    formula="mean_nc <x, y> / (|x| |y|)",
    function=cosine_flat,
    lower_better=False,
    score_range=(-1.0, 1.0),
    identity=1.0,
    invariances=frozenset({"scale"}),
    cost="TD",
    citation="cosine similarity (textbook)",
)

COSINE_P5 = Metric(
    name="cosine_p5",
    family="angle",
    formula="mean_nc percentile_t(<x_t, y_t> / (|x_t| |y_t|), 5)",
    function=cosine_p5,
    lower_better=False,
    score_range=(-1.0, 1.0),
    identity=1.0,
    invariances=frozenset({"scale"}),
    cost="TD",
    citation="cosine similarity (textbook), its lower tail over tokens",
)

NORM_ERROR = Metric(
    name="norm_error",
    family="angle",
    formula="mean_t ||y_t| - |x_t|| / |x_t|",
    function=norm_error,
    lower_better=True,
    score_range=(0.0, math.inf),
    identity=0.0,
    invariances=frozenset({"orthogonal", "permutation"}),
    cost="TD",
    citation="relative error of vector norms (textbook)",
)

ANGLE_METRIC = Metric(
    name="angle",
    family="angle",
    formula="mean_t arccos(<x_t, y_t> / (|x_t| |y_t|))",
    function=angle,
    lower_better=True,
    score_range=(0.0, math.pi),
    identity=0.0,
    invariances=frozenset({"scale"}),
    cost="TD",
    citation="angle between vectors (textbook)",
)

PEARSON_TOKEN = Metric(
    name="pearson_token",
    family="angle",
    formula="mean_t cov_j(x_tj, y_tj) / (std_j(x_tj) std_j(y_tj))",
    function=pearson_token,
    lower_better=False,
    score_range=(-1.0, 1.0),
    identity=1.0,
    invariances=frozenset({"scale"}),
    cost="TD",
    citation="Pearson correlation (textbook)",
)

CCC = Metric(
    name="ccc",
    family="angle",
    formula="mean_nc 2 cov(x, y) / (var(x) + var(y) + (mean(x) - mean(y))^2)",
    function=ccc,
    lower_better=False,
    score_range=(-1.0, 1.0),
    identity=1.0,
    invariances=frozenset(),
    cost="TD",
    citation="Lin, A Concordance Correlation Coefficient to Evaluate Reproducibility, "
    "Biometrics 1989",
)

ANGLE = (COSINE, COSINE_CLASS, COSINE_FLAT, COSINE_P5, NORM_ERROR, ANGLE_METRIC, PEARSON_TOKEN, CCC)
