"""Cosine and CKA as the published code computes and prints them, including its faults.

They exist to reproduce its numbers (Gao et al., arXiv 2506.07412; `machines/dinov2/` of its code).
They are neither defaults nor in the list of metrics; use `cosine` and `cka` instead. The published
MSE has no fault: it is `mse`, printed with eight decimals.
"""

from __future__ import annotations

from cfqa_data.eval.features.batch import Features
from cfqa_data.eval.features.lazy_torch import Tensor
from cfqa_data.eval.metrics.angle import cosine
from cfqa_data.eval.metrics.base import agreement

__all__ = ["paper_cka", "paper_cosine"]

DECIMALS = 4
"""Decimals to which the published code rounds scores before it correlates them."""

OFFSET = 1e-8
"""Added to the denominator of CKA by the published code."""

PUBLISHED = "Gao et al., Compressed Feature Quality Assessment, ACM MM 2025 (published code)"


@agreement(
    family="angle",
    formula="round(cosine, 4)",
    differentiable=False,
    citation=PUBLISHED,
)
def paper_cosine(x: Features, y: Features) -> Tensor:
    """Mean over all tokens of the token cosine, rounded to four decimals.

    The rounding causes ties, and constant scores for sources that are compressed little.
    """
    return cosine.function(x, y).round(decimals=DECIMALS)


@agreement(
    family="kernel",
    formula="round(|Xc Yc^T|^2 / (|Xc Xc^T| |Yc Yc^T| + 1e-8) / (N C), 4), of the last slice",
    score_range=(0.0, 1.0),
    identity=None,
    differentiable=False,
    citation=PUBLISHED,
)
def paper_cka(x: Features, y: Features) -> Tensor:
    """The published CKA of the last slice, divided by the number of slices, to four decimals.

    It has two faults. The sum over the N*C slices is written with ``=``, so that only the last one
    (n = N - 1, c = C - 1) counts and is then divided by N*C. And the numerator is |Xc Yc^T|^2, of
    T x T, instead of |Yc^T Xc|^2 (Kornblith et al.). It equals <Xc^T Xc, Yc^T Yc> and compares the
    covariances of channels, while the denominators |Xc Xc^T| and |Yc Yc^T| are the standard ones,
    so the score depends on rotations of the channels. A single token scores 0 due to the offset.
    """
    views, layers, tokens, channels = y.shape[1:]
    a, b = x.centred[:, -1, -1].double(), y.centred[:, -1, -1].double()
    if tokens <= channels:
        numerator = (a @ b.mT).square().sum((-2, -1))
        norms = (a @ a.mT).norm(dim=(-2, -1)) * (b @ b.mT).norm(dim=(-2, -1))
    else:  # the same numerator and norms from the smaller products
        k, l = a.mT @ a, b.mT @ b  # noqa: E741  (the names of the formula)
        numerator = (k * l).sum((-2, -1))
        norms = k.norm(dim=(-2, -1)) * l.norm(dim=(-2, -1))
    last = (numerator / (norms + OFFSET)).clamp(0.0, 1.0)
    return (last / (views * layers)).round(decimals=DECIMALS)
