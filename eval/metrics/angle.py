"""Angle metrics: the direction of each token's vector, whatever its length."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cfqa_data.eval.metrics.base import Metric

if TYPE_CHECKING:
    from torch import Tensor

    from cfqa_data.eval.features import Features

__all__ = ["ANGLE", "cosine"]

# Added to both norms, as in the published baseline: a zero token scores 0 rather than 0/0.
NORM_OFFSET = 1e-8


def cosine(x: Tensor | Features, y: Tensor | Features) -> Tensor:
    """Mean over all tokens of the cosine between the original and the compressed token.

    Args:
        x: (B or 1, N, C, T, D).
        y: (B, N, C, T, D).

    Returns:
        (B,) float64 in [-1, 1].
    """
    import torch

    from cfqa_data.eval.features import as_features, slice_mean

    x, y = as_features(x, y)
    dots = torch.linalg.vecdot(x.values, y.values)
    norms = (x.norms + NORM_OFFSET) * (y.norms + NORM_OFFSET)
    return slice_mean(dots / norms).clamp(-1.0, 1.0)


COSINE = Metric(
    name="cosine",
    family="angle",
    formula="mean_t <x_t, y_t> / ((|x_t| + 1e-8) (|y_t| + 1e-8))",
    function=cosine,
    lower_better=False,
    score_range=(-1.0, 1.0),
    identity=1.0,
    invariances=frozenset({"scale"}),
    cost="TD",
    citation="Gao et al., Compressed Feature Quality Assessment, ACM MM 2025 (baseline)",
)

ANGLE = (COSINE,)
