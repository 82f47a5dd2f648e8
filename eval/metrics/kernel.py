"""Kernel metrics: how well the similarities among the tokens of a slice are preserved.

Each compares two T x T matrices, of x and of y, by the cosine between them. A slice where all
tokens of x or of y are equal has no similarity structure to preserve and scores 0.
"""

from __future__ import annotations

from typing import NamedTuple

from cfqa_data.eval.features.batch import Features, derived, root, saves_passes
from cfqa_data.eval.features.lazy_torch import Tensor, torch
from cfqa_data.eval.features.order import smallest
from cfqa_data.eval.features.products import UpperBlocks, gram
from cfqa_data.eval.features.relations import (
    UnitArrays,
    alignment,
    by_slice,
    centred_alignment,
    centred_tokens,
    centred_units,
    per_slice,
    squared_distances,
    unit,
)
from cfqa_data.eval.metrics.base import relational_agreement

__all__ = ["cka", "cka_debiased", "cka_rbf", "distance_correlation"]

LARGE = 512
"""Number of tokens from which the Gram matrices of compressed slices are not cached on a CPU."""

BOTH = "cka and cka_debiased"
"""Key cached for an original whose versions both metrics score, so that they share a product."""


class _Similarities(NamedTuple):
    """Cosines between Gram matrices of centred tokens, and of U-centred ones, (B, N, C) float64."""

    plain: Tensor
    debiased: Tensor


@relational_agreement(
    formula="mean_nc <K, L> / (|K| |L|), K = Xc Xc^T, L = Yc Yc^T",
    citation="Kornblith et al., Similarity of Neural Network Representations Revisited, ICML 2019",
)
def cka(x: Features, y: Features) -> Tensor:
    """Linear centred kernel alignment of each slice.

    This is the biased estimator: independent Gaussian slices of 257 x 1536 score 0.86.
    """
    if not _by_blocks(x, y):
        return alignment(_linear(x), _linear(y)).clamp_(min=0.0)
    if x.keeps(BOTH):
        return _both(x, y).plain.clamp(min=0.0)

    def gap(units: Tensor, values: Tensor) -> Tensor:
        slices = zip(*_flat(values, units, centred_tokens(values)), strict=True)
        gaps = [UpperBlocks(tokens).gap(one)[0] for one, tokens in slices]
        return torch.stack(gaps).view(values.shape[:3])

    before = _linear(x)
    gaps = by_slice(gap, before.arrays, y.values)
    return _similarity(gaps, before).clamp_(min=0.0)


@relational_agreement(
    formula="mean_nc HSIC_1(K, L) / sqrt(HSIC_1(K, K) HSIC_1(L, L))",
    score_range=(-1.0, 1.0),
    least_tokens=4,
    citation="Song et al., Feature Selection via Dependence Maximization, JMLR 2012; Szekely and "
    "Rizzo, Partial Distance Correlation with Methods for Dissimilarities, Annals of Statistics "
    "2014",
)
def cka_debiased(x: Features, y: Features) -> Tensor:
    """Linear CKA from the unbiased estimator of HSIC; independent features score about 0.

    The Gram matrices are centred so that their off-diagonal rows sum to zero (U-centring, Szekely
    and Rizzo 2014), which makes <K, L> / (T (T - 3)) the estimator HSIC_1 of Song et al. 2012. The
    score is its value for (K, L) over the square root of those for (K, K) and (L, L).

    The estimator needs at least four tokens. A slice where the centred matrix of x or y is within
    rounding errors of zero (tokens equal, or all equally far apart) scores 0.
    """
    if not _by_blocks(x, y):
        return alignment(_debiased(x), _debiased(y))
    x.once(BOTH, lambda: True)
    return _both(x, y).debiased


@relational_agreement(
    formula="mean_nc <K, L> / (|K| |L|), K = H exp(-|x_s - x_t|^2 / (2 median^2)) H",
    citation="Kornblith et al., Similarity of Neural Network Representations Revisited, ICML 2019",
)
def cka_rbf(x: Features, y: Features) -> Tensor:
    """CKA with the kernel exp(-d^2 / (2 s^2)) of the distances d between tokens.

    The width s is the median distance between two tokens of the slice, separate for x and y, and
    the lower of two medians. At a median of 0 the kernel is its limit, 1 for equal tokens, else 0.
    """
    return centred_alignment(_gaussian(x), _kernel, squared_distances(y)).clamp_(min=0.0)


@relational_agreement(
    formula="mean_nc sqrt(<A, B> / (|A| |B|)), A = H |x_s - x_t| H",
    citation="Szekely, Rizzo and Bakirov, Measuring and Testing Dependence by Correlation of "
    "Distances, Annals of Statistics 2007",
)
def distance_correlation(x: Features, y: Features) -> Tensor:
    """Distance correlation of each slice with tokens as samples, the biased (V-)statistic.

    A and B are the matrices of distances between tokens, centred by rows and columns.
    """
    cosine = centred_alignment(_distances(x), root, squared_distances(y))
    return root(cosine.clamp_(min=0.0))


def _by_blocks(x: Features, y: Features) -> bool:
    """Return whether the Gram matrices of y are too large to be cached."""
    return y.shape[-2] >= LARGE and saves_passes(y.values) and not x.values.requires_grad


@derived
def _both(x: Features, y: Features) -> _Similarities:
    """Compare the Gram matrices of each slice for both metrics; those of y are computed once."""

    def make(linear: Tensor, debiased: Tensor, values: Tensor) -> _Similarities:
        gaps = []
        slices = zip(*_flat(values, linear, debiased, centred_tokens(values)), strict=True)
        for one, other, tokens in slices:
            blocks = UpperBlocks(tokens)
            plain, size = blocks.gap(one, last=False)
            blocks.centre()
            centred, _ = blocks.gap(other, _floor(tokens) * size)
            gaps += [plain, centred]
        both = torch.stack(gaps).view(*values.shape[:3], 2)
        return _Similarities(both[..., 0], both[..., 1])

    before = _linear(x), _debiased(x)
    gaps = by_slice(make, *(units.arrays for units in before), y.values)
    return _Similarities(*map(_similarity, gaps, before))


def _flat(values: Tensor, *batches: Tensor) -> list[Tensor]:
    """Return the slices of each batch, (b or 1, n, c, T, ...) to (b n c, T, ...)."""
    return [batch.expand(*values.shape[:3], -1, -1).flatten(0, 2) for batch in batches]


def _similarity(gaps: Tensor, before: UnitArrays) -> Tensor:
    """Return cosines from the squared distances of unit matrices; 0 where one is missing."""
    return (1.0 - gaps / 2.0).masked_fill_(before.missing, 0.0)


@per_slice()
def _linear(values: Tensor) -> UnitArrays:
    """Return the unit Gram matrices of the centred tokens."""
    return unit(gram(centred_tokens(values)))


@per_slice(lambda z: _linear(z).arrays)
def _debiased(values: Tensor, gram: Tensor) -> UnitArrays:
    """Return the unit U-centred Gram matrices."""
    tokens = gram.shape[-1]
    gram = gram.clone()
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    diagonal.zero_()
    rows = gram.sum(-1)
    total = rows.sum(-1) / ((tokens - 1) * (tokens - 2))
    rows = rows / (tokens - 2)
    gram += total[..., None, None] - rows[..., :, None]
    gram -= rows[..., None, :]
    diagonal.zero_()
    return unit(gram, floor=_floor(gram))


def _floor(gram: Tensor) -> float:
    """Return the norm, relative to the Gram matrix, up to which a centred one is rounding."""
    return 8.0 * torch.finfo(gram.dtype).eps


@derived
def _gaussian(x: Features) -> UnitArrays:
    return centred_units(_kernel, squared_distances(x))


@derived
def _distances(x: Features) -> UnitArrays:
    return centred_units(root, squared_distances(x))


def _kernel(squares: Tensor) -> Tensor:
    """Return the Gaussian kernels of squared distances, (..., T, T)."""
    tokens = squares.shape[-1]
    # The zeros of the diagonal are first in the order, and each pair is in the matrix twice.
    rank = tokens + 2 * ((tokens * (tokens - 1) // 2 + 1) // 2)
    median = smallest(squares.flatten(-2), rank)[..., None, None]
    # With a median of 0, the factor is so large that the kernel of all positive distances is 0.
    return (squares * (-0.5 / median).clamp(min=-1e300)).exp_()
