"""Kernel metrics: do the tokens keep their similarities to one another?

Each compares two T x T matrices, one of X and one of Y, by the cosine between them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cfqa_data.eval.metrics.base import Metric

if TYPE_CHECKING:
    from torch import Tensor

    from cfqa_data.eval.features import Features
    from cfqa_data.eval.relations import Directions

__all__ = ["KERNEL", "cka", "cka_debiased", "cka_rbf", "distance_correlation"]


def cka(x: Tensor | Features, y: Tensor | Features) -> Tensor:
    """Linear centred kernel alignment of each (n, c) slice, averaged over the slices.

    With Xc and Yc the token-centred T x D matrices, K = Xc Xc^T and L = Yc Yc^T, a slice scores
    <K, L> / (|K| |L|).

    A slice where x or y does not vary over tokens (a single token included) scores 0: nothing of
    the similarity structure is there to be kept.

    This is the biased estimator: independent Gaussians at 257 x 1536 already reach 0.86.

    Args:
        x: (B or 1, N, C, T, D).
        y: (B, N, C, T, D).

    Returns:
        (B,) float64 in [0, 1].
    """
    from cfqa_data.eval.features import as_features, slice_mean
    from cfqa_data.eval.relations import alignment

    x, y = as_features(x, y)
    return slice_mean(alignment(_linear(x), _linear(y)).clamp_(min=0.0))


def cka_debiased(x: Tensor | Features, y: Tensor | Features) -> Tensor:
    """Linear CKA from the unbiased estimator of HSIC: independent features score about 0.

    The Gram matrices are centred such that rows sum to zero without their diagonals
    (U-centring, Szekely and Rizzo 2014), which makes <K, L> / (T (T - 3)) the estimator HSIC_1 of
    Song et al. 2012; the score is its value for (K, L) over the root of those of (K, K), (L, L).

    There is no such estimator for fewer than four tokens: they score 0, as does a slice where the
    matrix of x or y is nothing but rounding (all tokens equal, or all equally far apart).

    Args:
        x: (B or 1, N, C, T, D).
        y: (B, N, C, T, D).

    Returns:
        (B,) float64 in [-1, 1].
    """
    from cfqa_data.eval.features import as_features, slice_mean
    from cfqa_data.eval.relations import alignment

    x, y = as_features(x, y)
    return slice_mean(alignment(_debiased(x), _debiased(y)))


def cka_rbf(x: Tensor | Features, y: Tensor | Features) -> Tensor:
    """CKA with the kernel exp(-d^2 / (2 s^2)) of the distances d between tokens.

    The width s is the median distance between two tokens of the slice, of x and y each its own;
    the lower one of two in the middle. A median of 0 leaves the limit: 1 for equal tokens, else 0.

    A slice where x or y does not vary over tokens scores 0.

    Args:
        x: (B or 1, N, C, T, D).
        y: (B, N, C, T, D).

    Returns:
        (B,) float64 in [0, 1].
    """
    from cfqa_data.eval.features import as_features, slice_mean
    from cfqa_data.eval.relations import alignment

    x, y = as_features(x, y)
    return slice_mean(alignment(_gaussian(x), _gaussian(y)).clamp_(min=0.0))


def distance_correlation(x: Tensor | Features, y: Tensor | Features) -> Tensor:
    """Distance correlation of each slice, tokens taken as samples, averaged over the slices.

    With A and B the matrices of distances between tokens, centred by rows and columns, it is
    sqrt(<A, B> / (|A| |B|)), the biased (V-)statistic.

    A slice where x or y does not vary over tokens scores 0.

    Args:
        x: (B or 1, N, C, T, D).
        y: (B, N, C, T, D).

    Returns:
        (B,) float64 in [0, 1].
    """
    from cfqa_data.eval.features import as_features, slice_mean
    from cfqa_data.eval.relations import alignment

    x, y = as_features(x, y)
    return slice_mean(alignment(_distances(x), _distances(y)).clamp_(min=0.0).sqrt_())


def _linear(z: Features) -> Directions:
    """Return the unit Gram matrices of the centred tokens."""
    from cfqa_data.eval.relations import Directions, by_slice, points, unit

    def make(values: Tensor) -> Directions:
        centred = points(values)
        return unit(centred @ centred.mT)

    return z.once("linear", lambda: Directions(*by_slice(make, z.values)))


def _debiased(z: Features) -> Directions:
    """Return the unit U-centred Gram matrices."""
    import torch

    from cfqa_data.eval.relations import Directions, by_slice, unit

    linear = _linear(z).arrays
    tokens = linear.shape[-1]
    floor = 8.0 * torch.finfo(linear.dtype).eps

    def make(gram: Tensor) -> Directions:
        if tokens < 4:
            return unit(torch.zeros_like(gram))
        gram = gram.clone()
        diagonal = gram.diagonal(dim1=-2, dim2=-1)
        diagonal.zero_()
        rows = gram.sum(-1)
        total = rows.sum(-1) / ((tokens - 1) * (tokens - 2))
        rows = rows / (tokens - 2)
        gram += total[:, None, None] - rows[:, :, None]
        gram -= rows[:, None, :]
        diagonal.zero_()
        return unit(gram, floor)

    return z.once("debiased", lambda: Directions(*by_slice(make, linear)))


def _gaussian(z: Features) -> Directions:
    """Return the unit centred Gaussian kernels."""
    import torch

    from cfqa_data.eval.relations import Directions, by_slice, squared_distances, unit, upper

    def make(squares: Tensor) -> Directions:
        pairs = upper(squares)
        if pairs.shape[-1] == 0:
            return unit(torch.zeros_like(squares, dtype=z.values.dtype))
        median = pairs.kthvalue((pairs.shape[-1] + 1) // 2).values[:, None, None]
        kernel = squares / (-2.0 * median)
        return unit(_centred(kernel.nan_to_num_(nan=0.0).exp_()).to(z.values.dtype))

    return z.once("gaussian", lambda: Directions(*by_slice(make, squared_distances(z))))


def _distances(z: Features) -> Directions:
    """Return the unit centred distance matrices."""
    from cfqa_data.eval.relations import Directions, by_slice, squared_distances, unit

    def make(squares: Tensor) -> Directions:
        return unit(_centred(squares.sqrt()).to(z.values.dtype))

    return z.once("distances", lambda: Directions(*by_slice(make, squared_distances(z))))


def _centred(matrices: Tensor) -> Tensor:
    """Return symmetric matrices centred by rows and columns, in place; (b, T, T).

    The first entry is taken off before: a matrix of equal entries becomes exactly zero.
    """
    matrices -= matrices[:, :1, :1].clone()
    means = matrices.mean(-1)
    matrices -= means[:, :, None]
    matrices -= means[:, None, :]
    matrices += means.mean(-1)[:, None, None]
    return matrices


CKA = Metric(
    name="cka",
    family="kernel",
    formula="mean_nc <K, L> / (|K| |L|), K = Xc Xc^T, L = Yc Yc^T",
    function=cka,
    lower_better=False,
    score_range=(0.0, 1.0),
    identity=1.0,
    invariances=frozenset({"orthogonal", "permutation", "scale", "translation"}),
    cost="T2D",
    citation="Kornblith et al., Similarity of Neural Network Representations Revisited, ICML 2019",
)

CKA_DEBIASED = Metric(
    name="cka_debiased",
    family="kernel",
    formula="mean_nc HSIC_1(K, L) / sqrt(HSIC_1(K, K) HSIC_1(L, L))",
    function=cka_debiased,
    lower_better=False,
    score_range=(-1.0, 1.0),
    identity=1.0,
    invariances=frozenset({"orthogonal", "permutation", "scale", "translation"}),
    cost="T2D",
    citation=(
        "Song et al., Feature Selection via Dependence Maximization, JMLR 2012; Szekely and Rizzo, "
        "Partial Distance Correlation with Methods for Dissimilarities, Annals of Statistics 2014"
    ),
)

CKA_RBF = Metric(
    name="cka_rbf",
    family="kernel",
    formula="mean_nc <K, L> / (|K| |L|), K = H exp(-|x_s - x_t|^2 / (2 median^2)) H",
    function=cka_rbf,
    lower_better=False,
    score_range=(0.0, 1.0),
    identity=1.0,
    invariances=frozenset({"orthogonal", "permutation", "scale", "translation"}),
    cost="T2D",
    citation="Kornblith et al., Similarity of Neural Network Representations Revisited, ICML 2019",
)

DISTANCE_CORRELATION = Metric(
    name="distance_correlation",
    family="kernel",
    formula="mean_nc sqrt(<A, B> / (|A| |B|)), A = H |x_s - x_t| H",
    function=distance_correlation,
    lower_better=False,
    score_range=(0.0, 1.0),
    identity=1.0,
    invariances=frozenset({"orthogonal", "permutation", "scale", "translation"}),
    cost="T2D",
    citation=(
        "Szekely, Rizzo and Bakirov, Measuring and Testing Dependence by Correlation of Distances, "
        "Annals of Statistics 2007"
    ),
)

KERNEL = (CKA, CKA_DEBIASED, CKA_RBF, DISTANCE_CORRELATION)
