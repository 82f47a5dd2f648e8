"""Angle metrics: the direction and the norm of each token.

Cosines are computed from distances between unit vectors, so that float32 scores distinguish
reconstructions whose cosine rounds to 1.
"""

from __future__ import annotations

import math
from functools import partial

from cfqa_data.eval.features.batch import Features, by_rows, own, root
from cfqa_data.eval.features.lazy_torch import Tensor, torch
from cfqa_data.eval.features.order import in_order
from cfqa_data.eval.features.pairs import cosines, error_energies, ratio, square_gaps
from cfqa_data.eval.metrics.base import agreement, metric

__all__ = [
    "angle",
    "ccc",
    "cosine",
    "cosine_class",
    "cosine_flat",
    "cosine_p5",
    "norm_error",
    "pearson_token",
]

NORM_OFFSET = 1e-8
"""Added to both norms, as in the published baseline, so that a zero token scores 0, not NaN."""

similarity = partial(agreement, invariances={"scale"})


@similarity(
    formula="mean_t <x_t, y_t> / ((|x_t| + 1e-8) (|y_t| + 1e-8))",
    citation="Gao et al., Compressed Feature Quality Assessment, ACM MM 2025 (baseline)",
)
def cosine(x: Features, y: Features) -> Tensor:
    """Mean over all tokens of the cosine between the original and the compressed token."""
    factors = x.norms / (x.norms + NORM_OFFSET) * (y.norms / (y.norms + NORM_OFFSET))
    return cosines(x, y) * factors


@similarity(
    formula="mean_nc <x_0, y_0> / (|x_0| |y_0|)",
    citation="cosine similarity (textbook), of the class token",
)
def cosine_class(x: Features, y: Features) -> Tensor:
    """Cosine of the class token, the first one, which classifiers depend on most."""
    return cosines(x, y)[..., 0]


@similarity(formula="mean_nc <x, y> / (|x| |y|)", citation="cosine similarity (textbook)")
def cosine_flat(x: Features, y: Features) -> Tensor:
    """Cosine of each slice as one vector of T * D numbers; 0 where one of the two is zero."""
    before, after = (root(z.norms.square().sum(-1)) for z in (x, y))
    scale = ratio(before, after)[..., None, None].to(y.values.dtype)

    def length(a: Tensor, factor: Tensor, b: Tensor) -> Tensor:
        return torch.linalg.vector_norm(torch.addcmul(a, b, factor, value=-1.0), dim=-1).double()

    # Norms of tokens are taken first, since a float32 sum over a whole slice would lose digits.
    scales = scale.expand(*y.shape[:-1], 1)
    lengths = by_rows(length, x.values, scales, y.values)
    gaps = ratio(root(lengths.square().sum(-1)), before)
    return (1.0 - gaps.square() / 2.0).masked_fill((before == 0) | (after == 0), 0.0)


@similarity(
    formula="mean_nc percentile_t(<x_t, y_t> / (|x_t| |y_t|), 5)",
    citation="cosine similarity (textbook), its lower tail over tokens",
)
def cosine_p5(x: Features, y: Features) -> Tensor:
    """5th percentile of the token cosines of each slice, a score of its worst tokens.

    It is interpolated linearly between the two nearest tokens. A zero token has cosine 0.
    """
    ordered = in_order(cosines(x, y))
    last = ordered.shape[-1] - 1
    below = int(0.05 * last)
    low, high = ordered[..., below], ordered[..., min(below + 1, last)]
    return low + (0.05 * last - below) * (high - low)


@metric(
    formula="mean_t ||y_t| - |x_t|| / |x_t|",
    invariances={"orthogonal", "permutation"},
    citation="relative error of vector norms (textbook)",
)
def norm_error(x: Features, y: Features) -> Tensor:
    """Mean over tokens of the change of the token's norm, relative to the original norm.

    A token that is zero in ``x`` scores 0 if it is zero in ``y``, too, and 1 otherwise.
    """
    # |y| - |x| = (|y|^2 - |x|^2) / (|y| + |x|), where |y|^2 - |x|^2 = <y - x, y + x>.

    def product(a: Tensor, b: Tensor) -> Tensor:
        return own(b - a).mul_(b + a).sum(-1).double()

    growth = by_rows(product, x.values, y.values)
    return ratio(ratio(growth.abs(), x.norms + y.norms), x.norms)


@metric(
    formula="mean_t arccos(<x_t, y_t> / (|x_t| |y_t|))",
    score_range=(0.0, math.pi),
    invariances={"scale"},
    citation="angle between vectors (textbook)",
)
def angle(x: Features, y: Features) -> Tensor:
    """Mean over tokens of the angle between the original and the compressed token, in radians.

    The angle between a zero token and any other is pi / 2.
    """
    # Unlike the arc cosine, the arc tangent is accurate near 0 and pi, too.
    return 2.0 * torch.atan2(root(square_gaps(x, y)), root(square_gaps(x, y, 1.0)))


@similarity(
    formula="mean_t cov_j(x_tj, y_tj) / (std_j(x_tj) std_j(y_tj))",
    citation="Pearson correlation (textbook)",
)
def pearson_token(x: Features, y: Features) -> Tensor:
    """Mean over tokens of the Pearson correlation of a token's channels with their originals.

    A token whose channels are all equal in ``x`` or in ``y`` scores 0.
    """
    scale = ratio(x.stds, y.stds)[..., None].to(y.values.dtype)

    def length(a: Tensor, factor: Tensor, b: Tensor) -> Tensor:
        difference = torch.addcmul(a, b, factor, value=-1.0)
        difference -= difference.mean(-1, keepdim=True)
        return torch.linalg.vector_norm(difference, dim=-1).double()

    lengths = by_rows(length, x.values, scale, y.values)
    gaps = ratio(lengths, x.stds * math.sqrt(y.shape[-1]))
    return (1.0 - gaps.square() / 2.0).masked_fill((x.stds == 0) | (y.stds == 0), 0.0)


@agreement(
    formula="mean_nc 2 cov(x, y) / (var(x) + var(y) + (mean(x) - mean(y))^2)",
    citation="Lin, A Concordance Correlation Coefficient to Evaluate Reproducibility, "
    "Biometrics 1989",
)
def ccc(x: Features, y: Features) -> Tensor:
    """Lin's concordance correlation coefficient of all values of each slice.

    Unlike Pearson's, it decreases with differences of mean or scale. Two constant slices score 1 if
    they are equal and 0 otherwise.
    """
    means, variances = [], []
    for z in (x, y):
        token_means = z.values.mean(-1).double()
        means.append(token_means.mean(-1))
        variances.append(z.stds.square().mean(-1) + token_means.var(-1, correction=0))
    # 2 cov(x, y) = var(x) + var(y) + (mean(x) - mean(y))^2 - mse(x, y).
    denominator = variances[0] + variances[1] + (means[0] - means[1]).square()
    return 1.0 - ratio(error_energies(x, y).mean(-1) / y.shape[-1], denominator)
