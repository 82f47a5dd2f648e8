"""Cached T x T matrices of the relations among the tokens of a slice, for several metrics.

Matrices are cached in the dtype of the features, or in float64 where their differences matter.
Large temporaries are of one slice at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from itertools import product
from typing import Any, NamedTuple, TypeVar

import numpy as np

from cfqa_data.eval.features.batch import (
    CHUNK,
    Features,
    by_rows,
    derived,
    own,
    root,
    saves_passes,
    token_mean,
)
from cfqa_data.eval.features.lazy_torch import Tensor, torch
from cfqa_data.eval.features.products import gram

__all__ = [
    "ROUNDING",
    "UnitArrays",
    "alignment",
    "by_slice",
    "centred_alignment",
    "centred_tokens",
    "centred_units",
    "distances",
    "per_slice",
    "scaled_tokens",
    "squared_distances",
    "token_cosines",
    "unit",
    "upper",
    "with_token_cosines",
]

Made = TypeVar("Made")

ROUNDING = 2.0**-44
"""Relative difference of inner products up to which it is attributed to float64 rounding."""

CPU_GROUP = 2**20
GPU_GROUP = 2**25
"""Maximum number of elements of a temporary over several slices, 8 MB or 256 MB of float64; one
slice may have more."""


class UnitArrays(NamedTuple):
    """Arrays of norm 1, one for each slice.

    Attributes:
        arrays: (B, N, C, ...); zero where ``missing``.
        missing: (B, N, C), whether the norm was zero.
    """

    arrays: Tensor
    missing: Tensor


def by_slice(make: Callable[..., Made], *batches: Tensor) -> Made:
    """Apply a function to groups of slices whose temporaries are small, or to single slices.

    Args:
        make: Takes a part (b or 1, n, c, ...) of each batch and returns a tensor (b, n, c, ...) or
            a named tuple of such tensors. A part has all views and layers, or one of each.
        batches: (B, N, C, ...) tensors; all but the last may have a batch of 1.

    Returns:
        The results of ``make``, each concatenated to (B, N, C, ...) in its dtype.
    """
    whole = batches[-1]
    items, *slices = whole.shape[:3]
    room = CPU_GROUP if whole.device.type == "cpu" else GPU_GROUP
    group = max(1, room // max(whole.shape[3:]) ** 2)
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
    """Turn a function of slices into a cached function of features, see `by_slice`.

    Args:
        sources: Functions of the features, whose results the function takes, slice by slice, after
            the values.
    """

    def define(make: Callable[..., Made]) -> Callable[[Features], Made]:
        @derived
        @wraps(make)
        def cached(z: Features) -> Made:
            return by_slice(make, z.values, *(source(z) for source in sources))

        return cached

    return define


def centred_tokens(values: Tensor, dtype: Any = None) -> Tensor:
    """Return the centred tokens of some slices, scaled by a power of two, see `scaled_tokens`."""
    return scaled_tokens(values, dtype)[0]


def scaled_tokens(values: Tensor, dtype: Any = None) -> tuple[Tensor, Tensor]:
    """Return the centred tokens of some slices, scaled by a power of two, and the scales.

    The scale brings the greatest magnitude of a slice to between 1/2 and 1, so that products
    neither overflow nor underflow; a power of two does not round. The first token is subtracted
    before the mean, as in `Features.centred`. Where tokens differ by far more than the rounding of
    their mean, and are neither large nor small, the scale is 1 and only the mean is subtracted.

    Args:
        values: (..., T, D).
        dtype: The dtype to compute in; by default that of the values.

    Returns:
        (..., T, D), exactly zero where all tokens are equal, and the scales, (..., 1, 1).
    """
    if saves_passes(values):
        means = token_mean(values)[..., None, :].to(dtype or values.dtype)
        z = values - means if means.dtype == values.dtype else values.to(means.dtype).sub_(means)
        if _usual(z, means):
            return z, torch.ones_like(z[..., :1, :1])
    if dtype in (None, values.dtype):
        z = values - values[..., :1, :]
    else:
        z = values.to(dtype)
        z -= z[..., :1, :].clone()
    z -= z.mean(-2, keepdim=True)
    scale = _power_of_two(z).amin(-2, keepdim=True)
    return z.mul_(scale), scale


def _usual(z: Tensor, means: Tensor) -> bool:
    """Return whether centred tokens are far above rounding errors and their products in range."""
    sizes = torch.linalg.vector_norm(z, dim=(-2, -1), keepdim=True)
    offsets = torch.linalg.vector_norm(means, dim=-1, keepdim=True) * z.shape[-2] ** 0.5
    usual = (sizes > 2.0**-7 * offsets) & (sizes > 2.0**-20) & (sizes < 2.0**30)
    return bool(usual.all())


def _power_of_two(z: Tensor) -> Tensor:
    """Return powers of 2 that scale each token's greatest magnitude to [1/2, 1), (..., T, 1)."""
    # Maximum and minimum take a fraction of the time of a norm. The scale has no gradient.
    z = z.detach()
    sizes = z.amax(-1, keepdim=True).maximum(-z.amin(-1, keepdim=True))
    scales = torch.frexp(sizes).mantissa / sizes
    return scales.nan_to_num_(nan=2.0**100).clamp_(max=2.0**100)


class Distances(NamedTuple):
    """Squared Euclidean distances between the scaled tokens of each slice.

    Attributes:
        squares: (B, N, C, T, T) float64.
        unit: (B, N, C), the scale of the tokens, a power of two.
    """

    squares: Tensor
    unit: Tensor


@derived
def distances(z: Features) -> Distances:
    """Return the distances between the tokens of each slice.

    They are expanded into inner products, but of centred tokens in float64, whose cancellation is
    far below the rounding of float32 features. Distances within rounding errors of 0 are 0.
    """
    squares = z.values.new_empty((*z.shape[:-1], z.shape[-2]), dtype=torch.float64)
    return Distances(squares, by_slice(_write_distances, squares, z.values))


def _write_distances(squares: Tensor, values: Tensor) -> Tensor:
    """Write the squared distances of some slices and return the scales, see `Distances`."""
    tokens, unit = scaled_tokens(values, torch.float64)
    gram(tokens, out=squares)
    lengths = squares.diagonal(dim1=-2, dim2=-1).clone()
    for part in _rows_in_cache(squares):
        both = lengths[..., part, None] + lengths[..., None, :]
        rows = squares[..., part, :].mul_(-2.0).add_(both)
        rows.masked_fill_(rows <= both.mul_(ROUNDING), 0.0)
    return unit[..., 0, 0]


def _rows_in_cache(matrices: Tensor) -> list[slice]:
    """Return groups of rows of (..., m, n) matrices that fit a CPU's cache."""
    step = rows = matrices.shape[-2]
    if matrices.device.type == "cpu" and not matrices.requires_grad:
        step = max(1, CHUNK * rows // matrices.numel())
    return [slice(first, first + step) for first in range(0, rows, step)]


def squared_distances(z: Features) -> Tensor:
    """Return squared Euclidean distances between tokens, (B, N, C, T, T), see `distances`."""
    return distances(z).squares


@derived
def token_cosines(z: Features) -> Tensor:
    """Return the cosines between the tokens of each slice, not centred; 0 for zero tokens.

    Returns:
        (B, N, C, T, T) float64.
    """

    def make(values: Tensor) -> Tensor:
        if not saves_passes(z.values):
            return _cosines(values)
        squares = values.new_empty((*values.shape[:-1], values.shape[-2]), dtype=torch.float64)
        return _cosines_of_distances(squares, _write_distances(squares, values), values)

    return by_slice(make, z.values)


def with_token_cosines(make: Callable[..., Made], z: Features, *others: Tensor) -> Made:
    """Apply a function to slices of other tensors and of `token_cosines`, see `by_slice`.

    For many values on a CPU, the cosines are not cached but computed from the cached distances,
    which other metrics need, too. They equal those of `token_cosines` up to float64 rounding.

    Args:
        make: Takes the slices of the others, then the cosines.
        z: Features.
        others: (B or 1, N, C, ...) tensors.

    Returns:
        The results of ``make``, see `by_slice`.
    """
    if not saves_passes(z.values):
        return by_slice(make, *others, token_cosines(z))

    def from_distances(*parts: Tensor) -> Made:
        return make(*parts[:-3], _cosines_of_distances(*parts[-3:]))

    return by_slice(from_distances, *others, *distances(z), z.values)


def _cosines(values: Tensor) -> Tensor:
    tokens = values.double() * _power_of_two(values).double()
    norms = torch.linalg.vector_norm(tokens, dim=-1, keepdim=True)
    tokens = own(tokens).div_(norms.masked_fill(norms == 0, 1.0))
    return gram(tokens)


def _cosines_of_distances(squares: Tensor, units: Tensor, values: Tensor) -> Tensor:
    """Return the cosines of some slices by the law of cosines, which is faster than products.

    Where the lengths of tokens differ so much that rounding would matter, use products.
    """
    norms = torch.linalg.vector_norm(values.double(), dim=-1).mul_(units[..., None])
    least, most = norms.aminmax(dim=-1)
    if bool(((64.0 * least <= most) | (7.0 * least <= norms.mean(-1))).any()):
        return _cosines(values)
    halves, inverse = norms.square().mul_(0.5), norms.reciprocal()
    cosines = torch.empty_like(squares)
    for part in _rows_in_cache(squares):
        rows = torch.mul(squares[..., part, :], -0.5, out=cosines[..., part, :])
        rows.add_(halves[..., part, None]).add_(halves[..., None, :])
        rows.mul_(inverse[..., part, None]).mul_(inverse[..., None, :])
    return cosines


def upper(matrices: Tensor) -> Tensor:
    """Return the elements above the diagonal, row by row, (..., T, T) to (..., T (T - 1) / 2)."""
    tokens = matrices.shape[-1]
    plain = matrices.device.type == "cpu" and not matrices.requires_grad
    if plain and matrices.numel() == tokens**2 > 0:
        whole = matrices.reshape(tokens, tokens).numpy()
        found = np.concatenate([row[n:] for n, row in enumerate(whole, start=1)])
        return torch.from_numpy(found).expand(*matrices.shape[:-2], -1)
    rows, columns = torch.triu_indices(tokens, tokens, 1, device=matrices.device)
    return matrices.flatten(-2)[..., rows * tokens + columns]


def unit(matrices: Tensor, floor: float = 0.0) -> UnitArrays:
    """Divide (..., m, n) matrices by their norms, in place; zeros where the norm is <= ``floor``.

    Norms of rows are taken first: float32 sums over whole matrices had errors of 3e-5.
    """
    norms = root(torch.linalg.vector_norm(matrices, dim=-1).double().square().sum(-1))
    missing = norms <= floor
    scales = norms.masked_fill(missing, math.inf).reciprocal().to(matrices.dtype)
    return UnitArrays(own(matrices).mul_(scales[..., None, None]), missing)


def alignment(x: UnitArrays, y: UnitArrays) -> Tensor:
    """Return the cosine of the angle between two matrices of each slice; 0 where one is missing.

    It is computed as ``1 - |x - y|^2 / 2``, which keeps the digits that a sum of products loses
    near 1.

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


def centred_units(make: Callable[[Tensor], Tensor], relations: Tensor) -> UnitArrays:
    """Return functions of relations, centred by rows and columns and scaled to norm 1.

    Args:
        make: Takes (b, n, c, T, T) float64 and returns new symmetric matrices of that shape.
        relations: (B, N, C, T, T) float64.
    """

    def centred(matrices: Tensor) -> UnitArrays:
        made = _from_first(make(matrices))
        means = made.mean(-1)
        made -= means[..., :, None]
        made -= means[..., None, :]
        made += means.mean(-1)[..., None, None]
        return unit(made)

    return by_slice(centred, relations)


def centred_alignment(x: UnitArrays, make: Callable[[Tensor], Tensor], relations: Tensor) -> Tensor:
    """Return the cosine of the angle between two symmetric matrices, centred by rows and columns.

    The matrices of y are not centred explicitly: the inner product with a centred matrix does not
    change by centring, and the norm after centring follows from the sums of rows. The sums of
    products are float64, which has enough digits near 1.

    Args:
        x: Matrices of the original, from `centred_units`.
        make: See `centred_units`.
        relations: (B, N, C, T, T) float64, of y.

    Returns:
        (B, N, C) float64 in [-1, 1]; 0 where a matrix of x or y is constant.
    """

    def cosine(units: Tensor, matrices: Tensor) -> Tensor:
        made = _from_first(make(matrices))
        rows, tokens = made.sum(-1), made.shape[-1]
        squares = _inner(made, made) - rows.square().sum(-1) * (2.0 / tokens)
        squares = squares + rows.sum(-1).square() / tokens**2
        constant = squares <= 0
        norms = squares.masked_fill(constant, math.inf).sqrt()
        return _inner(units, made) / norms

    cosines = by_slice(cosine, x.arrays, relations)
    return cosines.clamp(-1.0, 1.0).masked_fill(x.missing, 0.0)


def _from_first(matrices: Tensor) -> Tensor:
    """Subtract the first element of each matrix, in place: constant matrices become zero."""
    first = matrices[..., :1, :1].clone()
    return own(matrices).sub_(first)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner products of matrices (..., m, n), (...)."""
    if a.numel() == b.numel() == a.shape[-2] * a.shape[-1]:
        return torch.dot(a.flatten(), b.flatten()).expand(a.shape[:-2])
    return (a * b).sum((-2, -1))
