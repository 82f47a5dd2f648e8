"""Neighbour metrics: do the tokens keep those that are nearest to them?

Where tokens tie for the last places among the nearest, each of them counts as the share of the
places that is left to them. So a score depends neither on the order of the tokens nor on rounding,
a feature always scores 1 against itself, and a constant reconstruction scores what chance does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cfqa_data.errors import MetricError
from cfqa_data.eval.metrics.base import Metric

if TYPE_CHECKING:
    from torch import Tensor

    from cfqa_data.eval.features import Features

__all__ = ["NEIGHBOURS", "jaccard_knn", "mutual_knn"]


def mutual_knn(x: Tensor | Features, y: Tensor | Features, k: int = 10) -> Tensor:
    """Share of each token's k nearest tokens by cosine that stay among its nearest.

    Mean over tokens, then over slices. With T tokens there are at most (T - 1) / 2 neighbours,
    whatever ``k``: of more than half of the others, sets overlap of necessity. A single token
    scores 0. A zero token has cosine 0 with every other.

    Args:
        x: (B or 1, N, C, T, D).
        y: (B, N, C, T, D).
        k: Number of neighbours, at least 1.

    Returns:
        (B,) float64 in [0, 1].

    Raises:
        MetricError: k is not a number of neighbours.
    """
    from cfqa_data.eval.features import as_features, slice_mean
    from cfqa_data.eval.relations import by_slice, token_cosines

    x, y = as_features(x, y)
    k = _neighbours("mutual_knn", k, y.shape[-2])

    def make(a: Tensor, from_a: Tensor, b: Tensor, from_b: Tensor) -> tuple[Tensor]:
        kept = _members(-a, from_a).minimum(_members(-b, from_b))
        return (kept.sum((-2, -1)) / (k * kept.shape[-1]),)

    both = [part for z in (x, y) for part in (token_cosines(z), _borders(z, "cosine", k))]
    return slice_mean(by_slice(make, *both)[0]).clamp(0.0, 1.0)


def jaccard_knn(x: Tensor | Features, y: Tensor | Features, k: int = 10) -> Tensor:
    """Jaccard index of each token's k nearest tokens by Euclidean distance, before and after.

    Mean over tokens, then over slices, of the size of the intersection over that of the union.
    ``k`` is limited as in `mutual_knn`, and a single token scores 0.

    Args:
        x: (B or 1, N, C, T, D).
        y: (B, N, C, T, D).
        k: Number of neighbours, at least 1.

    Returns:
        (B,) float64 in [0, 1].

    Raises:
        MetricError: k is not a number of neighbours.
    """
    from cfqa_data.eval.features import as_features, slice_mean
    from cfqa_data.eval.relations import by_slice, squared_distances

    x, y = as_features(x, y)
    k = _neighbours("jaccard_knn", k, y.shape[-2])

    def make(a: Tensor, from_a: Tensor, b: Tensor, from_b: Tensor) -> tuple[Tensor]:
        kept = _members(a, from_a).minimum(_members(b, from_b)).sum(-1)
        return ((kept / (2 * k - kept)).mean(-1),)  # |A| + |B| = 2 k

    both = [part for z in (x, y) for part in (squared_distances(z), _borders(z, "distance", k))]
    return slice_mean(by_slice(make, *both)[0]).clamp(0.0, 1.0)


def _neighbours(name: str, k: int, tokens: int) -> int:
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise MetricError(f"{name}: k is a whole number of neighbours, at least 1, not {k!r}")
    return min(k, max(1, (tokens - 1) // 2))


def _borders(z: Features, kind: str, k: int) -> Tensor:
    """Return the border of each token's neighbourhood, (B, N, C, T, 3) float64.

    Below the first number others are among the nearest k, between it and the second they tie for
    the last places, and the third is the share of those places that each of them has.
    """
    import torch

    from cfqa_data.eval.relations import ROUNDING, by_slice, squared_distances, token_cosines

    def make(apart: Tensor) -> tuple[Tensor]:
        if apart.shape[-1] == 1:
            return (torch.zeros_like(apart).expand(-1, 1, 3),)
        if kind == "cosine":
            apart, typical = -apart, torch.ones_like(apart[..., :1])
        else:
            apart, typical = apart.clone(), apart.mean(-1, keepdim=True)
        apart.diagonal(dim1=-2, dim2=-1).fill_(torch.inf)
        border = apart.topk(k, largest=False).values[..., -1:]
        noise = ROUNDING * (border.abs() + typical)
        low, high = border - noise, border + noise
        inside = (apart < low).sum(-1, keepdim=True)
        tied = (apart <= high).sum(-1, keepdim=True) - inside
        return (torch.cat((low, high, (k - inside).double() / tied), -1),)

    def made() -> Tensor:
        relations = token_cosines(z) if kind == "cosine" else squared_distances(z)
        return by_slice(make, relations)[0]

    return z.once(("borders", kind, k), made)


def _members(apart: Tensor, borders: Tensor) -> Tensor:
    """Return how far each token belongs to the neighbours of another, (b, T, T) in [0, 1].

    Args:
        apart: (b, T, T) float64.
        borders: (b, T, 3), see `_borders`.
    """
    low, high, share = borders.unsqueeze(-2).unbind(-1)
    members = share.where(apart <= high, 0.0).masked_fill_(apart < low, 1.0)
    members.diagonal(dim1=-2, dim2=-1).zero_()
    return members


MUTUAL_KNN = Metric(
    name="mutual_knn",
    family="neighbours",
    formula="mean_t |N_x(t) & N_y(t)| / k, N the k nearest by cosine",
    function=mutual_knn,
    lower_better=False,
    score_range=(0.0, 1.0),
    identity=1.0,
    invariances=frozenset({"orthogonal", "permutation", "scale"}),
    cost="T2D",
    citation="Huh et al., The Platonic Representation Hypothesis, ICML 2024",
    options={"k": 10},
)

JACCARD_KNN = Metric(
    name="jaccard_knn",
    family="neighbours",
    formula="mean_t |N_x(t) & N_y(t)| / |N_x(t) u N_y(t)|, N the k nearest by distance",
    function=jaccard_knn,
    lower_better=False,
    score_range=(0.0, 1.0),
    identity=1.0,
    invariances=frozenset({"orthogonal", "permutation", "scale", "translation"}),
    cost="T2D",
    citation=(
        "Klabunde et al., Similarity of Neural Network Models: A Survey of Functional and "
        "Representational Measures, ACM Computing Surveys 2025"
    ),
    options={"k": 10},
)

NEIGHBOURS = (MUTUAL_KNN, JACCARD_KNN)
