"""Geometry metrics: the point cloud of a slice's tokens, up to an offset and an orthogonal map."""

from __future__ import annotations

import math

from cfqa_data.eval.features.batch import Features, derived, root
from cfqa_data.eval.features.clouds import differences
from cfqa_data.eval.features.lazy_torch import Tensor, torch
from cfqa_data.eval.features.order import ascending
from cfqa_data.eval.features.relations import (
    ROUNDING,
    UnitArrays,
    by_slice,
    squared_distances,
    token_cosines,
    upper,
    with_token_cosines,
)
from cfqa_data.eval.metrics.base import relational, relational_agreement

__all__ = ["angular_shape", "procrustes", "procrustes_normalized", "rsa", "rsm_difference"]


@relational(
    formula="mean_nc |Xc|^2 + |Yc|^2 - 2 |Xc^T Yc|_*",
    invariances={"orthogonal", "permutation", "translation"},
    cost="D3",
    citation="Ding et al., Grounding Representation Similarity Through Statistical Testing, "
    "NeurIPS 2021",
)
def procrustes(x: Features, y: Features) -> Tensor:
    """Squared distance of the centred clouds after the best orthogonal map.

    In squared feature units, summed over tokens and channels, it is
    ``min_Q |Xc - Yc Q|^2 = |Xc|^2 + |Yc|^2 - 2 |Xc^T Yc|_*`` with the nuclear norm, the sum of
    singular values. It is computed as ``(|Xc| - |Yc|)^2 + 2 |Xc| |Yc| (1 - s)`` with the similarity
    ``s = |Xc^T Yc|_* / (|Xc| |Yc|)``.

    Raises:
        MetricError: If the eigenvalue decomposition does not converge.
    """
    return differences(x, y).squared()


@relational(
    formula="mean_nc 2 - 2 |Xc^T Yc|_* / (|Xc| |Yc|)",
    score_range=(0.0, 2.0),
    cost="D3",
    citation="Ding et al., Grounding Representation Similarity Through Statistical Testing, "
    "NeurIPS 2021",
)
def procrustes_normalized(x: Features, y: Features) -> Tensor:
    """`procrustes` of clouds that are scaled to norm 1, which is 2 (1 - s).

    A slice where all tokens of x or of y are equal scores 2, as clouds without similarity do.
    """
    return 2.0 * differences(x, y).gap


@relational(
    formula="mean_nc arccos(|Xc^T Yc|_* / (|Xc| |Yc|))",
    score_range=(0.0, math.pi / 2),
    cost="D3",
    citation="Williams et al., Generalized Shape Metrics on Neural Representations, NeurIPS 2021",
)
def angular_shape(x: Features, y: Features) -> Tensor:
    """Angle between the centred clouds after the best orthogonal map, arccos(s), in radians.

    A slice where all tokens of x or of y are equal scores pi / 2.
    """
    # 1 - cos(a) = 2 sin(a / 2)^2
    return 2.0 * root(differences(x, y).gap / 2.0).asin()


@relational_agreement(
    formula="mean_nc spearman_{s<t}(|x_s - x_t|, |y_s - y_t|)",
    score_range=(-1.0, 1.0),
    least_tokens=3,
    differentiable=False,
    citation="Kriegeskorte et al., Representational Similarity Analysis, Frontiers in Systems "
    "Neuroscience 2008",
)
def rsa(x: Features, y: Features) -> Tensor:
    """Spearman correlation of the Euclidean distances between tokens, over all pairs.

    Distances that are equal up to rounding share the mean of their ranks. A slice where all
    distances of x or of y are equal scores 0.
    """

    def make(ranks: Tensor, squares: Tensor) -> Tensor:
        means, order = _mean_ranks(upper(squares))
        means, norm = _unit(means)
        gaps = torch.linalg.vector_norm(ranks.expand_as(means).gather(-1, order) - means, dim=-1)
        return (1.0 - gaps.square() / 2.0).masked_fill(norm == 0, 0.0)

    before, missing = _ranks(x)
    return by_slice(make, before, squared_distances(y)).masked_fill(missing, 0.0)


@relational(
    formula="mean_nc sqrt(mean_{s!=t} (cos(y_s, y_t) - cos(x_s, x_t))^2)",
    score_range=(0.0, 2.0),
    invariances={"orthogonal", "permutation", "scale"},
    citation="Yin and Shen, On the Dimensionality of Word Embedding, NeurIPS 2018 (the pairwise "
    "inner product loss, here of unit tokens)",
)
def rsm_difference(x: Features, y: Features) -> Tensor:
    """Root mean square change of the cosines between two tokens of a slice.

    Tokens are not centred. The cosine with a zero token is 0.
    """
    tokens = y.shape[-2]

    def make(before: Tensor, after: Tensor) -> Tensor:
        changes = after - before
        changes.diagonal(dim1=-2, dim2=-1).zero_()
        return torch.linalg.matrix_norm(changes) / math.sqrt(tokens * (tokens - 1))

    return with_token_cosines(make, y, token_cosines(x))


@derived
def _ranks(x: Features) -> UnitArrays:
    """Return the ranks of the distances, centred and of norm 1, (B, N, C, P) float64."""

    def make(squares: Tensor) -> UnitArrays:
        means, order = _mean_ranks(upper(squares))
        means, norm = _unit(means)
        return UnitArrays(torch.empty_like(means).scatter_(-1, order, means), norm == 0)

    return by_slice(make, squared_distances(x))


def _unit(ranks: Tensor) -> tuple[Tensor, Tensor]:
    """Centre ranks (..., P) and scale them to norm 1; return them and their norms before."""
    ranks = ranks - (ranks.shape[-1] - 1) / 2
    norm = torch.linalg.vector_norm(ranks, dim=-1)
    return ranks.div_(norm.masked_fill(norm == 0, 1.0)[..., None]), norm


def _mean_ranks(values: Tensor) -> tuple[Tensor, Tensor]:
    """Rank the numbers of each row from 0; ties share the mean of their ranks.

    Args:
        values: (..., P) float64, not negative. Consecutive numbers are tied if they differ by no
            more than rounding, relative to themselves and to the mean of the row.

    Returns:
        The ranks in ascending order and the indices of the numbers in that order, (..., P) each.
    """
    ordered, order = ascending(values)
    noise = ROUNDING * (ordered[..., 1:] + ordered.mean(-1, keepdim=True))
    rises = ordered.diff(dim=-1) > noise
    if rises.device.type == "cpu" and bool(rises.all()):
        ranks = torch.arange(ordered.shape[-1], dtype=torch.float64).expand_as(ordered)
        return ranks, order
    # Ties form a group, whose last rank is the number of elements in all groups up to it, minus 1.
    first = torch.zeros_like(ordered[..., :1], dtype=torch.bool)
    group = torch.cat((first, rises), -1).cumsum(-1)
    counts = torch.zeros_like(ordered).scatter_add_(-1, group, torch.ones_like(ordered))
    return (counts.cumsum(-1) - (counts + 1.0) / 2.0).gather(-1, group), order
