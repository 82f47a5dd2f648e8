"""Neighbour metrics: how well the nearest neighbours of each token are preserved.

``k`` is limited to (T - 1) / 2 for T tokens, since larger sets of neighbours would necessarily
overlap. Tokens that tie for the last places among the neighbours have a membership below 1: the
number of these places over the number of ties. So a score depends neither on the order of the
tokens nor on rounding, a feature scores 1 against itself, and a constant reconstruction has the
overlap expected of random neighbours.
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
    """Share of the k nearest tokens of each token, by cosine, that remain among its nearest.

    The cosine with a zero token is 0.
    """
    k = _neighbours("mutual_knn", k, y.shape[-2])
    return _shared(x, y, "cosine", k) / k


@relational_agreement(
    formula="mean_t |N_x(t) & N_y(t)| / |N_x(t) u N_y(t)|, N the k nearest by distance",
    differentiable=False,
    citation="Klabunde et al., Similarity of Neural Network Models: A Survey of Functional and "
    "Representational Measures, ACM Computing Surveys 2025",
)
def jaccard_knn(x: Features, y: Features, k: int = 10) -> Tensor:
    """Jaccard index of the k nearest tokens, by Euclidean distance, in x and in y."""
    k = _neighbours("jaccard_knn", k, y.shape[-2])
    both = _shared(x, y, "distance", k)
    return both / (2 * k - both)  # |A| + |B| = 2 k


def _neighbours(name: str, k: int, tokens: int) -> int:
    """Return k, limited to half of the other tokens."""
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise MetricError(f"{name}: k must be a whole number of neighbours, at least 1, not {k!r}")
    return min(k, max(1, (tokens - 1) // 2))


def _shared(x: Features, y: Features, kind: str, k: int) -> Tensor:
    """Return the number of neighbours of each token that x and y share, (B, N, C, T)."""

    def make(a: Tensor, border_a: Tensor, b: Tensor) -> Tensor:
        nearest, border_b, untied = _nearest(b, kind, k)
        if _all_on_cpu(untied):
            return _memberships(a.expand_as(b).gather(-1, nearest), kind, border_a).sum(-1)
        both = _memberships(a, kind, border_a).minimum(_memberships(b, kind, border_b))
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
    """Find the k nearest neighbours of each token and the border of its neighbourhood.

    Args:
        relations: (..., T, T) float64.
        kind: ``cosine`` or ``distance``.
        k: Number of neighbours.

    Returns:
        The indices of the k nearest tokens, (..., T, k); the border, (..., T, 3); and whether all
        other tokens are farther than the border, (..., T, 1). The border consists of two distances
        and a membership: tokens below the first distance are neighbours, and tokens from the first
        to the second tie for the last places and have this membership in the neighbours.
    """
    if kind == "cosine":
        distances, typical = -relations, torch.ones_like(relations[..., :1])
    else:
        distances, typical = relations.clone(), relations.mean(-1, keepdim=True)
    distances.diagonal(dim1=-2, dim2=-1).fill_(torch.inf)
    values, indices = distances.topk(k + 1, largest=False)
    border = values[..., k - 1 : k]
    noise = ROUNDING * (border.abs() + typical)
    low, high = border - noise, border + noise
    inside = (values[..., :k] < low).sum(-1, keepdim=True)
    untied = values[..., k:] > high
    tied = k - inside
    if not _all_on_cpu(untied):
        tied = (distances <= high).sum(-1, keepdim=True) - inside
    return indices[..., :k], torch.cat((low, high, (k - inside).double() / tied), -1), untied


def _all_on_cpu(condition: Tensor) -> bool:
    """Return whether a condition holds everywhere, or False on devices that would synchronise."""
    return condition.device.type == "cpu" and bool(condition.all())


def _memberships(relations: Tensor, kind: str, borders: Tensor) -> Tensor:
    """Return the membership of other tokens in the neighbours of each token, in [0, 1].

    Args:
        relations: (..., T, n) float64, to n other tokens.
        kind: ``cosine`` or ``distance``.
        borders: (..., T, 3), see `_nearest`.
    """
    distances = -relations if kind == "cosine" else relations
    low, high, tied = borders[..., :1], borders[..., 1:2], borders[..., 2:]
    return tied.where(distances <= high, 0.0).masked_fill_(distances < low, 1.0)
