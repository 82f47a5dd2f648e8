"""Neighbour metrics: how well each token's nearest neighbours are preserved.

With T tokens there are at most (T - 1) / 2 neighbours, whatever ``k``: of more than half of the
others, sets overlap of necessity. Where tokens tie for the last places among the nearest, each of
them counts as the share of the places that is left to them. So a score depends neither on the order
of the tokens nor on rounding, a feature always scores 1 against itself, and a constant
reconstruction scores what chance does.
"""

from __future__ import annotations

from collections.abc import Callable

from cfqa_data.errors import MetricError
from cfqa_data.eval.features.batch import Features, derived
from cfqa_data.eval.features.lazy_torch import Tensor, torch
from cfqa_data.eval.features.relations import ROUNDING, by_slice, squared_distances, token_cosines
from cfqa_data.eval.metrics.base import relational_agreement

__all__ = ["jaccard_knn", "mutual_knn"]


@relational_agreement(
    formula="mean_t |N_x(t) & N_y(t)| / k, N the k nearest by cosine",
    invariances={"orthogonal", "permutation", "scale"},
    differentiable=False,
    citation="Huh et al., The Platonic Representation Hypothesis, ICML 2024",
)
def mutual_knn(x: Features, y: Features, k: int = 10) -> Tensor:
    """Share of each token's k nearest tokens by cosine that stay among its nearest.

    A zero token has cosine 0 with every other.
    """
    k = _neighbours("mutual_knn", k, y.shape[-2])
    return _kept(x, y, "cosine", k, lambda shared: shared.sum((-2, -1)) / (k * shared.shape[-1]))


@relational_agreement(
    formula="mean_t |N_x(t) & N_y(t)| / |N_x(t) u N_y(t)|, N the k nearest by distance",
    differentiable=False,
    citation="Klabunde et al., Similarity of Neural Network Models: A Survey of Functional and "
    "Representational Measures, ACM Computing Surveys 2025",
)
def jaccard_knn(x: Features, y: Features, k: int = 10) -> Tensor:
    """Jaccard index of each token's k nearest tokens by Euclidean distance, before and after."""
    k = _neighbours("jaccard_knn", k, y.shape[-2])

    def index(shared: Tensor) -> Tensor:
        both = shared.sum(-1)
        return (both / (2 * k - both)).mean(-1)  # |A| + |B| = 2 k

    return _kept(x, y, "distance", k, index)


def _neighbours(name: str, k: int, tokens: int) -> int:
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise MetricError(f"{name}: k is a whole number of neighbours, at least 1, not {k!r}")
    return min(k, max(1, (tokens - 1) // 2))


def _kept(x: Features, y: Features, kind: str, k: int, score: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the score of how far each token stays a neighbour of each other, (..., T, T)."""

    def make(a: Tensor, from_a: Tensor, b: Tensor, from_b: Tensor) -> Tensor:
        return score(_members(a, kind, from_a).minimum(_members(b, kind, from_b)))

    sides = [part for z in (x, y) for part in (_relations(z, kind), _borders(z, kind, k))]
    return by_slice(make, *sides)


def _relations(z: Features, kind: str) -> Tensor:
    return token_cosines(z) if kind == "cosine" else squared_distances(z)


@derived
def _borders(z: Features, kind: str, k: int) -> Tensor:
    """Return the border of each token's neighbourhood, (B, N, C, T, 3) float64.

    Below the first number others are among the nearest k, between it and the second they tie for
    the last places, and the third is the share of those places that each of them has.
    """

    def make(relations: Tensor) -> Tensor:
        if kind == "cosine":
            distances, typical = -relations, torch.ones_like(relations[..., :1])
        else:
            distances, typical = relations.clone(), relations.mean(-1, keepdim=True)
        distances.diagonal(dim1=-2, dim2=-1).fill_(torch.inf)
        border = distances.topk(k, largest=False).values[..., -1:]
        noise = ROUNDING * (border.abs() + typical)
        low, high = border - noise, border + noise
        inside = (distances < low).sum(-1, keepdim=True)
        tied = (distances <= high).sum(-1, keepdim=True) - inside
        return torch.cat((low, high, (k - inside).double() / tied), -1)

    return by_slice(make, _relations(z, kind))


def _members(relations: Tensor, kind: str, borders: Tensor) -> Tensor:
    """Return how far each token belongs to the neighbours of another, (..., T, T) in [0, 1].

    Args:
        relations: (..., T, T) float64.
        kind: Cosines or distances.
        borders: (..., T, 3), see `_borders`.
    """
    distances = -relations if kind == "cosine" else relations
    low, high, share = borders.unsqueeze(-2).unbind(-1)
    members = share.where(distances <= high, 0.0).masked_fill_(distances < low, 1.0)
    members.diagonal(dim1=-2, dim2=-1).zero_()
    return members
