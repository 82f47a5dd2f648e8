"""Cached quantities that several metrics derive from an original and a compressed batch."""

from __future__ import annotations

from collections.abc import Callable

from cfqa_data.eval.features.batch import Features, by_rows, derived, own, saves_passes
from cfqa_data.eval.features.lazy_torch import Tensor, torch

__all__ = ["cosines", "error_energies", "of_errors", "ratio", "square_gaps"]


@derived
def error_energies(x: Features, y: Features) -> Tensor:
    """Return the sum of squares of each token's error, float64 (B, N, C, T).

    Differences are explicit, since an expansion into squares and products would cancel.
    """
    return of_errors(lambda error: own(error).square_().sum(-1), x, y)


def of_errors(function: Callable[[Tensor], Tensor], x: Features, y: Features) -> Tensor:
    """Apply a function to the error ``y - x`` of each token.

    Args:
        function: Takes errors (..., D) and returns (...); see `by_rows`.
        x: Original.
        y: Compressed.

    Returns:
        float64 (B, N, C, T).
    """
    return by_rows(lambda a, b: function(b - a).double(), x.values, y.values)


@derived
def square_gaps(x: Features, y: Features, sign: float = -1.0) -> Tensor:
    """Return the squared distance of each token's unit vectors, ``|x/|x| - y/|y||^2``.

    With a ``sign`` of 1 it is that of opposite directions, ``|x/|x| + y/|y||^2``.

    Returns:
        (B, N, C, T) float64 in [0, 4]; 2, the value at right angles, where x or y is zero.
    """
    if sign < 0 and saves_passes(y.values):
        gaps, accurate = _gaps_of_energies(x, y)
        if accurate:
            return gaps
    # y is scaled to the length of x, which saves normalising both.
    scale = ratio(x.norms, y.norms)[..., None].to(y.values.dtype)

    def length(a: Tensor, factor: Tensor, b: Tensor) -> Tensor:
        return torch.linalg.vector_norm(torch.addcmul(a, b, factor, value=sign), dim=-1).double()

    gaps = ratio(by_rows(length, x.values, scale, y.values), x.norms)
    return gaps.square().masked_fill((x.norms == 0) | (y.norms == 0), 2.0)


def _gaps_of_energies(x: Features, y: Features) -> tuple[Tensor, bool]:
    """Return `square_gaps` from ``|y - x|^2 = (|y| - |x|)^2 + |x| |y| gap``, and if it is accurate.

    It is where no token is zero and errors are neither close to rounding nor mostly changes of
    length.
    """
    change = (y.norms - x.norms).abs()
    rounding = 4.0 * torch.finfo(y.values.dtype).eps * x.norms
    gaps = error_energies(x, y) - change.square()
    lengths = x.norms * y.norms
    accurate = ((2.0 * change + rounding) * rounding < 2.0**-12 * gaps) & (lengths > 0)
    return gaps / lengths, bool(accurate.all())


def cosines(x: Features, y: Features) -> Tensor:
    """Return the cosine of each token with its original, (B, N, C, T) float64; 0 if one is zero.

    It is computed from `square_gaps`, which in float32 keeps the digits of ``1 - cosine`` that a
    quotient of products loses near 1.
    """
    return 1.0 - square_gaps(x, y) / 2.0


def ratio(part: Tensor, whole: Tensor) -> Tensor:
    """Return ``part / whole`` of numbers that are not negative.

    Where ``whole`` is zero, the ratio is 0 if ``part`` is zero, too, and 1 otherwise: any error of
    a zero original counts as much as losing all of a nonzero one.
    """
    empty = whole == 0
    return torch.where(empty, (part != 0).to(part.dtype), part / whole.masked_fill(empty, 1.0))
