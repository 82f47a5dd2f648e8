"""Quantities that several metrics derive from the relations among a slice's tokens, cached.

T x T matrices: what stays is kept in the dtype of the features, or in float64 where differences of
it matter, and temporaries are of one slice at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from itertools import product
from typing import Any, NamedTuple, TypeVar

from cfqa_data.errors import MetricError
from cfqa_data.eval.features.batch import Features, by_rows, derived, own, root
from cfqa_data.eval.features.lazy_torch import Tensor, torch

__all__ = [
    "ROUNDING",
    "UnitArrays",
    "alignment",
    "by_slice",
    "centred_tokens",
    "per_slice",
    "squared_distances",
    "token_cosines",
    "unit",
    "upper",
]

Made = TypeVar("Made")

ROUNDING = 2.0**-44
"""Differences of inner products in float64 up to this, relative to the products, are rounding."""

NEAREST = 2.0**-40
"""Clouds whose similarity is within this of 1 are the same: the rest is rounding."""

LARGE = 512
"""Rows of a matrix from which on a CPU multiplies blocks of it, to leave out what is known."""

BLOCKS = 4

GROUP = 2**23
"""Numbers of a temporary over several slices, unless one slice has more: 64 MB of float64."""


class UnitArrays(NamedTuple):
    """Arrays of norm 1, one for each slice.

    Attributes:
        arrays: (B, N, C, ...); zero where ``missing``.
        missing: (B, N, C): there was nothing to normalise.
    """

    arrays: Tensor
    missing: Tensor


def by_slice(make: Callable[..., Made], *batches: Tensor) -> Made:
    """Apply a function to as many slices at once as fit a temporary, be it one.

    Args:
        make: Takes a part (b or 1, n, c, ...) of each batch and returns a tensor (b, n, c, ...), or
            a named tuple of them. A part has all views and layers, or one.
        batches: (B, N, C, ...) tensors; all but the last may have a batch of 1.

    Returns:
        What ``make`` returns, each as (B, N, C, ...) and in its dtype.
    """
    whole = batches[-1]
    items, *slices = whole.shape[:3]
    group = max(1, GROUP // max(whole.shape[3:]) ** 2)
    together = group >= math.prod(slices)
    sizes = (group // math.prod(slices), *slices) if together else (group, 1, 1)
    starts = (range(0, n, size) for n, size in zip((items, *slices), sizes, strict=True))
    places = [
        tuple(slice(first, first + size) for first, size in zip(at, sizes, strict=True))
        for at in product(*starts)
    ]
    outs: list[Tensor] = []
    for part in places:
        made: Any = make(*(z[part if len(z) > 1 else (slice(1), *part[1:])] for z in batches))
        if len(places) == 1:
            whole_made: Made = made
            return whole_made
        tensors = made if isinstance(made, tuple) else (made,)
        if not outs:
            outs = [one.new_empty((*whole.shape[:3], *one.shape[3:])) for one in tensors]
        for out, one in zip(outs, tensors, strict=True):
            out[part] = one
    found: Any = type(made)(*outs) if isinstance(made, tuple) else outs[0]
    return found


def per_slice(
    *sources: Callable[[Features], Tensor],
) -> Callable[[Callable[..., Made]], Callable[[Features], Made]]:
    """Derive from features, by `by_slice`, what the function below makes of their slices.

    Args:
        sources: Derive more tensors, whose slices the function takes after those of the values.
    """

    def define(make: Callable[..., Made]) -> Callable[[Features], Made]:
        @derived
        @wraps(make)
        def cached(z: Features) -> Made:
            return by_slice(make, z.values, *(source(z) for source in sources))

        return cached

    return define


def centred_tokens(values: Tensor) -> Tensor:
    """Return the centred tokens of some slices in units of a power of two.

    The unit brings the greatest magnitude of a slice to between 1/2 and 1, so that no product
    overflows or vanishes; a power of two, so that nothing is rounded. The first token is subtracted
    before the mean, as in `Features.centred`.

    Args:
        values: (..., T, D).

    Returns:
        (..., T, D); exactly zero where all tokens are equal.
    """
    z = values - values[..., :1, :]
    z -= z.mean(-2, keepdim=True)
    return z.mul_(_power_of_two(z).amin(-2, keepdim=True))


def _blocks(matrix: Tensor) -> list[slice]:
    """Return the blocks of rows in which to multiply a matrix: all at once but for a large one."""
    rows, cpu = matrix.shape[-2], matrix.device.type == "cpu"
    step = -(-rows // BLOCKS) if rows >= LARGE and cpu and not matrix.requires_grad else rows
    return [slice(first, min(first + step, rows)) for first in range(0, rows, step)]


def gram(z: Tensor) -> Tensor:
    """Return ``z @ z.mT``, of which a large one's blocks below the diagonal are copies."""
    if len(blocks := _blocks(z)) == 1:
        return z @ z.mT
    products = z.new_empty((*z.shape[:-1], z.shape[-2]))
    for part in blocks:
        right = z[..., part, :] @ z[..., part.start :, :].mT
        products[..., part, part.start :] = right
        products[..., part.stop :, part] = right[..., part.stop - part.start :].mT
    return products


def upper_product(upper: Tensor, z: Tensor) -> Tensor:
    """Return ``upper @ z``, where a large matrix's zeros below the diagonal are left out."""
    if len(blocks := _blocks(upper)) == 1:
        return upper @ z
    parts = [upper[..., part, part.start :] @ z[..., part.start :, :] for part in blocks]
    return torch.cat(parts, -2)


def triangular(z: Tensor) -> Tensor:
    """Return R, upper triangular of min(m, n) rows, with R^T R = Z^T Z of an m x n matrix.

    If a gradient is recorded it is Z itself, for R alone has none.
    """
    return z if z.requires_grad else torch.linalg.qr(z, mode="r").R


def nuclear_gap(crossed: Tensor) -> Tensor:
    """Return 1 - |A|_*, with the nuclear norm, the sum of singular values, up to 1.

    The singular values are the roots of the eigenvalues of a symmetric matrix of as many rows as A:
    several times faster than a singular value decomposition. In float64 this resolves singular
    values down to 1e-7 of the largest; smaller ones are left out.

    Args:
        crossed: (..., m, n) float64, of which m is no more than n or both are large.

    Returns:
        (...) float64 in [0, 1].

    Raises:
        MetricError: The decomposition did not converge.
    """
    try:
        squares = torch.linalg.eigvalsh(gram(crossed))
    except torch.linalg.LinAlgError as error:
        raise MetricError("the singular values of a slice did not converge") from error
    noise = 64.0 * torch.finfo(squares.dtype).eps * squares[..., -1:]
    shared = root(squares.masked_fill(squares <= noise, 0.0)).sum(-1)
    gaps = (1.0 - shared).clamp_(max=1.0)
    return gaps.masked_fill(gaps <= NEAREST, 0.0)


@per_slice()
def sizes(values: Tensor) -> Tensor:
    """Return |Zc|, the norm of each slice's centred tokens, (B, N, C) float64."""
    cloud = values.double()
    cloud = cloud - cloud[..., :1, :]
    return torch.linalg.matrix_norm(cloud - cloud.mean(-2, keepdim=True))


def _power_of_two(z: Tensor) -> Tensor:
    """Return what brings each token's greatest magnitude to between 1/2 and 1, (..., T, 1)."""
    # A maximum and a minimum take a fraction of the time of the norm. Steps have no gradient.
    z = z.detach()
    sizes = z.amax(-1, keepdim=True).maximum(-z.amin(-1, keepdim=True))
    scales = torch.frexp(sizes).mantissa / sizes
    return scales.nan_to_num_(nan=2.0**100).clamp_(max=2.0**100)


@per_slice()
def squared_distances(values: Tensor) -> Tensor:
    """Squared Euclidean distances between tokens, in units of each slice's own.

    Expanded, but in float64 and of centred tokens, so that what cancels is far below the rounding
    of float32 features; what could be rounding alone is 0, as it is for equal tokens.

    Returns:
        (B, N, C, T, T) float64.
    """
    tokens = centred_tokens(values.double())
    products = gram(tokens)
    lengths = products.diagonal(dim1=-2, dim2=-1)
    both = lengths[..., :, None] + lengths[..., None, :]
    squares = products.mul_(-2.0).add_(both)
    return squares.masked_fill_(squares <= both.mul_(ROUNDING), 0.0)


@per_slice()
def token_cosines(values: Tensor) -> Tensor:
    """Cosines between the tokens of a slice, not centred; 0 with a zero token.

    Returns:
        (B, N, C, T, T) float64.
    """
    tokens = values.double()
    tokens = tokens * _power_of_two(tokens)
    norms = torch.linalg.vector_norm(tokens, dim=-1, keepdim=True)
    tokens = own(tokens).div_(norms.masked_fill(norms == 0, 1.0))
    return gram(tokens)


def upper(matrices: Tensor) -> Tensor:
    """Return what is above the diagonal, (..., T, T) to (..., T (T - 1) / 2)."""
    tokens = matrices.shape[-1]
    rows, columns = torch.triu_indices(tokens, tokens, 1, device=matrices.device)
    return matrices.flatten(-2)[..., rows * tokens + columns]


def unit(matrices: Tensor, floor: float = 0.0) -> UnitArrays:
    """Divide (..., m, n) matrices by their norms, in place; zeros where the norm is <= ``floor``.

    The norm is taken by rows first: float32 sums over whole matrices were off by 3e-5.
    """
    norms = root(torch.linalg.vector_norm(matrices, dim=-1).double().square().sum(-1))
    missing = norms <= floor
    scales = norms.masked_fill(missing, math.inf).reciprocal().to(matrices.dtype)
    return UnitArrays(own(matrices).mul_(scales[..., None, None]), missing)


def alignment(x: UnitArrays, y: UnitArrays) -> Tensor:
    """Cosine of the angle between two matrices, per slice; 0 where one of the two is missing.

    ``1 - |x - y|^2 / 2`` keeps the digits that a sum of products loses near 1.

    Args:
        x: Matrices, (B or 1, N, C, m, n).
        y: Matrices, (B, N, C, m, n).

    Returns:
        (B, N, C) float64 in [-1, 1].
    """

    def gap(a: Tensor, b: Tensor) -> Tensor:
        return torch.linalg.vector_norm(a - b, dim=-1).double()

    gaps = by_rows(gap, x.arrays, y.arrays).square().sum(-1)
    return (1.0 - gaps / 2.0).clamp_(-1.0, 1.0).masked_fill_(x.missing | y.missing, 0.0)
