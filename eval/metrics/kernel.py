"""Kernel metrics: do the tokens keep their similarities to one another?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cfqa_data.eval.metrics.base import Metric

if TYPE_CHECKING:
    from torch import Tensor

    from cfqa_data.eval.features import Features

__all__ = ["KERNEL", "cka"]


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
    import torch

    from cfqa_data.eval.features import as_features, slice_mean

    x, y = as_features(x, y)
    # cos(K, L) = 1 - |K/|K| - L/|L||^2 / 2: in float32 the quotient loses what is near 1.
    gaps = torch.linalg.matrix_norm(x.unit_gram - y.unit_gram).double()
    alignment = 1.0 - gaps.square() / 2.0
    return slice_mean(alignment.masked_fill(x.constant | y.constant, 0.0)).clamp(0.0, 1.0)


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

KERNEL = (CKA,)
