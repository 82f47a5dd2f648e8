"""Quantities that several metrics derive from an original and a compressed batch, cached."""

from __future__ import annotations

from collections.abc import Callable

from cfqa_data.eval.features.batch import Features, by_rows, derived, own, saves_passes
from cfqa_data.eval.features.lazy_torch import Tensor, torch

__all__ = ["cosines", "error_energies", "of_errors", "ratio", "square_gaps"]


@derived
def error_energies(x: Features, y: Features) -> Tensor:
    """Return the sum of squares of each token's error, float64 (B, N, C, T).

    Of explicit differences, not by an expansion, which would cancel.
    """
    return of_errors(lambda error: own(error).square_().sum(-1), x, y)


def of_errors(function: Callable[[Tensor], Tensor], x: Features, y: Features) -> Tensor:
    """Return what a function gives of each token's error, float64 (B, N, C, T).

    Args:
        function: (..., D) to (...), of ``y - x``.
        x: Original.
        y: Compressed.
    """
    return by_rows(lambda a, b: function(b - a).double(), x.values, y.values)


@derived
def square_gaps(x: Features, y: Features, sign: float = -1.0) -> Tensor:
    """Squared distance of each token's direction from its original's, ``|x/|x| - y/|y||^2``.

    With a sign of 1 from the opposite direction, ``|x/|x| + y/|y||^2``.

    Returns:
        (B, N, C, T) float64 in [0, 4]; 2 where one of the two tokens is zero, as if they were at
        right angles.
    """
    if sign < 0 and saves_passes(y.values):
        gaps, told = _gaps_of_energies(x, y)
        if told:
            return gaps
    # Neither batch is normalised: y is scaled to the length of x.
    scale = ratio(x.norms, y.norms)[..., None].to(y.values.dtype)

    def length(a: Tensor, factor: Tensor, b: Tensor) -> Tensor:
        return torch.linalg.vector_norm(torch.addcmul(a, b, factor, value=sign), dim=-1).double()

    gaps = ratio(by_rows(length, x.values, scale, y.values), x.norms)
    return gaps.square().masked_fill((x.norms == 0) | (y.norms == 0), 2.0)


def _gaps_of_energies(x: Features, y: Features) -> tuple[Tensor, bool]:
    """Return `square_gaps` from ``|y - x|^2 = (|y| - |x|)^2 + |x| |y| gap``, and if it has digits.

    That is where no token is zero, and errors are neither close to rounding nor mostly changes of
    length.
    """
    change = (y.norms - x.norms).abs()
    rounding = 4.0 * torch.finfo(y.values.dtype).eps * x.norms
    gaps = error_energies(x, y) - change.square()
    lengths = x.norms * y.norms
    told = ((2.0 * change + rounding) * rounding < 2.0**-12 * gaps) & (lengths > 0)
    return gaps / lengths, bool(told.all())


def cosines(x: Features, y: Features) -> Tensor:
    """Cosine of each token with its original, (B, N, C, T) float64; 0 where one is zero.

    From the gap: near 1, float32 keeps the digits of ``1 - cosine``, which a quotient of products
    loses.
    """
    return 1.0 - square_gaps(x, y) / 2.0


def ratio(part: Tensor, whole: Tensor) -> Tensor:
    """Return ``part / whole`` of numbers that are not negative.

    Where ``whole`` is zero it is 0 if ``part`` is zero too, and 1 otherwise: any error of an
    original that is zero counts as much as the loss of all of it.
    """
    empty = whole == 0
    return torch.where(empty, (part != 0).to(part.dtype), part / whole.masked_fill(empty, 1.0))
