"""Geometry metrics: the shape of the cloud of tokens, up to an offset and an orthogonal map."""

from __future__ import annotations

import math

from cfqa_data.eval.features.batch import Features, root
from cfqa_data.eval.features.clouds import differences
from cfqa_data.eval.features.lazy_torch import Tensor, torch
from cfqa_data.eval.features.relations import (
    ROUNDING,
    UnitArrays,
    alignment,
    by_slice,
    per_slice,
    squared_distances,
    token_cosines,
    unit,
    upper,
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

    In squared feature units, summed over tokens and channels:
    ``min_Q |Xc - Yc Q|^2 = |Xc|^2 + |Yc|^2 - 2 |Xc^T Yc|_*``, with the nuclear norm, the sum of
    singular values. Computed as ``(|Xc| - |Yc|)^2 + 2 |Xc| |Yc| (1 - s)`` with the shapes'
    similarity ``s = |Xc^T Yc|_* / (|Xc| |Yc|)``.

    Raises:
        MetricError: The decomposition did not converge.
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
    """`procrustes` of clouds scaled to norm 1: 2 (1 - s).

    A slice where x or y does not vary over tokens scores 2, as if nothing were shared.
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

    A slice where x or y does not vary over tokens is at right angles.
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
    """Spearman correlation of the distances between tokens, each pair once.

    The dissimilarity is the Euclidean distance. Distances that are equal but for rounding share
    their mean rank. A slice where all distances of x or y are equal scores 0.
    """
    return alignment(_ranks(x), _ranks(y))


@relational(
    formula="mean_nc sqrt(mean_{s!=t} (cos(y_s, y_t) - cos(x_s, x_t))^2)",
    score_range=(0.0, 2.0),
    invariances={"orthogonal", "permutation", "scale"},
    citation="Yin and Shen, On the Dimensionality of Word Embedding, NeurIPS 2018 (the pairwise "
    "inner product loss, here of unit tokens)",
)
def rsm_difference(x: Features, y: Features) -> Tensor:
    """Root mean square change of the cosines between two tokens of a slice.

    Cosines are not centred; with a zero token they are 0.
    """
    tokens = y.shape[-2]

    def make(before: Tensor, after: Tensor) -> Tensor:
        changes = after - before
        changes.diagonal(dim1=-2, dim2=-1).zero_()
        return torch.linalg.matrix_norm(changes) / math.sqrt(tokens * (tokens - 1))

    return by_slice(make, token_cosines(x), token_cosines(y))


@per_slice(squared_distances)
def _ranks(values: Tensor, squares: Tensor) -> UnitArrays:
    """Return the centred ranks of the distances, above the diagonal of unit T x T matrices."""
    ranks = _mean_ranks(upper(squares))
    ranks -= (ranks.shape[-1] - 1) / 2
    matrices = torch.zeros_like(squares, dtype=values.dtype)
    tokens = squares.shape[-1]
    rows, columns = torch.triu_indices(tokens, tokens, 1, device=squares.device)
    matrices[..., rows, columns] = ranks.to(values.dtype)
    return unit(matrices)


def _mean_ranks(values: Tensor) -> Tensor:
    """Return the rank of each number in its row, from 0; equal ones share their mean rank.

    Args:
        values: (..., P) float64, not negative. Neighbours in order are equal if they differ by no
            more than rounding, relative to themselves and to the row's mean.
    """
    ordered, order = values.sort(-1)
    noise = ROUNDING * (ordered[..., 1:] + ordered.mean(-1, keepdim=True))
    rises = ordered.diff(dim=-1) > noise
    ends = torch.ones_like(ordered[..., :1], dtype=torch.bool)
    places = torch.arange(values.shape[-1], device=values.device)
    first = places.where(torch.cat((ends, rises), -1), 0).cummax(-1).values
    last = places.where(torch.cat((rises, ends), -1), len(places)).flip(-1).cummin(-1).values
    means = (first + last.flip(-1)).double() / 2.0
    return torch.empty_like(means).scatter_(-1, order, means)
