"""Kernel metrics: do the tokens keep their similarities to one another?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cfqa_data.eval.metrics.base import Metric

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CKA", "centre_tokens", "cka"]


def centre_tokens(z: Tensor) -> Tensor:
    """Subtract the token mean, in float64; a feature that is constant over tokens gives zeros.

    The first token is taken off before the mean: the mean of T equal numbers need not round to
    that number, and CKA would then measure the rounding.

    Args:
        z: (..., T, D).
    """
    z = z.double()
    z = z - z[..., :1, :]
    return z - z.mean(-2, keepdim=True)


def cka(x: Tensor, y: Tensor) -> Tensor:
    """Linear centred kernel alignment of each (n, c) slice, averaged over the slices.

    With Xc and Yc the token-centred T x D matrices, K = Xc Xc^T and L = Yc Yc^T, a slice scores
    <K, L> / (|K| |L|). All three terms are also Frobenius norms of D x D products
    (<K, L> = |Xc^T Yc|^2), so the smaller of T x T and D x D is formed.

    A slice where x or y does not vary over tokens (a single token included) scores 0: nothing of
    the similarity structure is there to be kept.

    This is the biased estimator: independent Gaussians at 257 x 1536 already reach 0.86.

    Args:
        x: (B or 1, N, C, T, D).
        y: (B, N, C, T, D).

    Returns:
        (B,) float64 in [0, 1].
    """
    tokens, channels = y.shape[-2:]
    x, y = centre_tokens(x), centre_tokens(y)
    if tokens <= channels:
        k, l = x @ x.mT, y @ y.mT  # noqa: E741  (the names of the formula)
        alignment = (k * l).sum((-2, -1))
    else:
        k, l = x.mT @ x, y.mT @ y  # noqa: E741
        alignment = (x.mT @ y).square().sum((-2, -1))
    norms = k.norm(dim=(-2, -1)) * l.norm(dim=(-2, -1))
    constant = norms == 0
    slices = (alignment / norms.masked_fill(constant, 1.0)).masked_fill(constant, 0.0)
    return slices.mean((1, 2)).clamp(0.0, 1.0)


CKA = Metric(
    name="cka",
    formula="mean_nc <K, L> / (|K| |L|), K = Xc Xc^T, L = Yc Yc^T",
    function=cka,
    lower_better=False,
    score_range=(0.0, 1.0),
    identity=1.0,
    invariances=frozenset({"orthogonal", "permutation", "scale", "translation"}),
    citation="Kornblith et al., Similarity of Neural Network Representations Revisited, ICML 2019",
)
