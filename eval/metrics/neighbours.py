"""Neighbour metrics: how well each token's nearest neighbours are preserved.

With T tokens there are at most (T - 1) / 2 neighbours, whatever ``k``: of more than half of the
others, sets overlap of necessity. Where tokens tie for the last places among the nearest, each of
them counts as the share of the places that is left to them. So a score depends neither on the order
of the tokens nor on rounding, a feature always scores 1 against itself, and a constant
reconstruction scores what chance does.
"""

from __future__ import annotations

from cfqa_data.errors import MetricError
from cfqa_data.eval.features.batch import Features, derived
from cfqa_data.eval.features.lazy_torch import Tensor, torch
from cfqa_data.eval.features.relations import (
    ROUNDING,
    by_slice,
    squared_distances,
    token_cosines,
    with_token_cosines,
)
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
    return _kept(x, y, "cosine", k) / k


@relational_agreement(
    formula="mean_t |N_x(t) & N_y(t)| / |N_x(t) u N_y(t)|, N the k nearest by distance",
    differentiable=False,
    citation="Klabunde et al., Similarity of Neural Network Models: A Survey of Functional and "
    "Representational Measures, ACM Computing Surveys 2025",
)
def jaccard_knn(x: Features, y: Features, k: int = 10) -> Tensor:
    """Jaccard index of each token's k nearest tokens by Euclidean distance, before and after."""
    k = _neighbours("jaccard_knn", k, y.shape[-2])
    both = _kept(x, y, "distance", k)
    return both / (2 * k - both)  # |A| + |B| = 2 k


def _neighbours(name: str, k: int, tokens: int) -> int:
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise MetricError(f"{name}: k must be a whole number of neighbours, at least 1, not {k!r}")
    return min(k, max(1, (tokens - 1) // 2))


def _kept(x: Features, y: Features, kind: str, k: int) -> Tensor:
    """Return how many of each token's neighbours stay neighbours, (B, N, C, T)."""

    def make(a: Tensor, from_a: Tensor, b: Tensor) -> Tensor:
        nearest, from_b, untied = _nearest(b, kind, k)
        if _known(untied):
            return _members(a.expand_as(b).gather(-1, nearest), kind, from_a).sum(-1)
        both = _members(a, kind, from_a).minimum(_members(b, kind, from_b))
        both.diagonal(dim1=-2, dim2=-1).zero_()
        return both.sum(-1)

    others = _relations(x, kind), _borders(x, kind, k)
    if kind == "cosine":
        return with_token_cosines(make, y, *others)
    return by_slice(make, *others, squared_distances(y))


def _relations(x: Features, kind: str) -> Tensor:
    return token_cosines(x) if kind == "cosine" else squared_distances(x)


@derived
def _borders(x: Features, kind: str, k: int) -> Tensor:
    """Return the border of each token's neighbourhood, (B, N, C, T, 3), see `_nearest`."""
    return by_slice(lambda relations: _nearest(relations, kind, k)[1], _relations(x, kind))


def _nearest(relations: Tensor, kind: str, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Find the k nearest others of each token, and where its neighbourhood ends.

    Args:
        relations: (..., T, T) float64.
        kind: Cosines or distances.
        k: Number of neighbours.

    Returns:
        The places of the nearest k, (..., T, k); the border, (..., T, 3); and whether the next one
        is farther than those, (..., T, 1). Below the border's first number others are among the
        nearest k, between it and the second they tie for the last places, and the third is the
        share of those places that each of them has.
    """
    if kind == "cosine":
        distances, typical = -relations, torch.ones_like(relations[..., :1])
    else:
        distances, typical = relations.clone(), relations.mean(-1, keepdim=True)
    distances.diagonal(dim1=-2, dim2=-1).fill_(torch.inf)
    values, places = distances.topk(k + 1, largest=False)
    border = values[..., k - 1 : k]
    noise = ROUNDING * (border.abs() + typical)
    low, high = border - noise, border + noise
    inside = (values[..., :k] < low).sum(-1, keepdim=True)
    untied = values[..., k:] > high
    tied = k - inside
    if not _known(untied):
        tied = (distances <= high).sum(-1, keepdim=True) - inside
    return places[..., :k], torch.cat((low, high, (k - inside).double() / tied), -1), untied


def _known(condition: Tensor) -> bool:
    """Whether a condition holds everywhere, and a CPU has it: no other device is waited for."""
    return condition.device.type == "cpu" and bool(condition.all())


def _members(relations: Tensor, kind: str, borders: Tensor) -> Tensor:
    """Return how far others belong to the neighbours of a token, in [0, 1].

    Args:
        relations: (..., T, n) float64, to some others or all.
        kind: Cosines or distances.
        borders: (..., T, 3), see `_nearest`.
    """
    distances = -relations if kind == "cosine" else relations
    low, high, share = borders[..., :1], borders[..., 1:2], borders[..., 2:]
    return share.where(distances <= high, 0.0).masked_fill_(distances < low, 1.0)
