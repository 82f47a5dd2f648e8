"""A metric: how far the mean token has moved."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["mean_token"]


def mean_token(x: Tensor, y: Tensor) -> Tensor:
    """Relative distance between the mean tokens of x and y, (B, N, C, T, D) -> (B,)."""
    mine, theirs = x.double().mean(dim=3), y.double().mean(dim=3)
    return ((theirs - mine).norm(dim=-1) / mine.norm(dim=-1).clamp(min=1e-12)).mean(dim=(1, 2))


mean_token.lower_better = True
mean_token.score_range = (0.0, float("inf"))
