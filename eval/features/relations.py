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
"""Differences of inner products in float64 up to this, relative to the products, are rounding."""

CPU_GROUP = 2**20
GPU_GROUP = 2**25
"""Numbers of a temporary over several slices, unless one slice has more: 8 MB of float64, as a
CPU's cache holds, or 256 MB."""


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


def centred_tokens(values: Tensor, dtype: Any = None) -> Tensor:
    """Return the centred tokens of some slices in units of a power of two, see `scaled_tokens`."""
    return scaled_tokens(values, dtype)[0]


def scaled_tokens(values: Tensor, dtype: Any = None) -> tuple[Tensor, Tensor]:
    """Return the centred tokens of some slices in units of a power of two, and these units.

    The unit brings the greatest magnitude of a slice to between 1/2 and 1, so that no product
    overflows or vanishes; a power of two, so that nothing is rounded. The first token is subtracted
    before the mean, as in `Features.centred`. Where tokens differ by much more than their mean is
    rounded, and are neither large nor small, the unit is 1 and the mean is subtracted at once.

    Args:
        values: (..., T, D).
        dtype: To compute in; by default that of the values.

    Returns:
        (..., T, D), exactly zero where all tokens are equal, and what they were multiplied by,
        (..., 1, 1).
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
    """Whether tokens less their means are well above rounding, and their products in range."""
    sizes = torch.linalg.vector_norm(z, dim=(-2, -1), keepdim=True)
    offsets = torch.linalg.vector_norm(means, dim=-1, keepdim=True) * z.shape[-2] ** 0.5
    usual = (sizes > 2.0**-7 * offsets) & (sizes > 2.0**-20) & (sizes < 2.0**30)
    return bool(usual.all())


def _power_of_two(z: Tensor) -> Tensor:
    """Return what brings each token's greatest magnitude to between 1/2 and 1, (..., T, 1)."""
    # A maximum and a minimum take a fraction of the time of the norm. Steps have no gradient.
    z = z.detach()
    sizes = z.amax(-1, keepdim=True).maximum(-z.amin(-1, keepdim=True))
    scales = torch.frexp(sizes).mantissa / sizes
    return scales.nan_to_num_(nan=2.0**100).clamp_(max=2.0**100)


class Distances(NamedTuple):
    """Squared Euclidean distances between the tokens of each slice, in units of its own.

    Attributes:
        squares: (B, N, C, T, T) float64.
        unit: (B, N, C) what tokens were multiplied by, a power of two.
    """

    squares: Tensor
    unit: Tensor


@derived
def distances(z: Features) -> Distances:
    """Compute the distances between the tokens of each slice.

    Expanded, but in float64 and of centred tokens, so that what cancels is far below the rounding
    of float32 features; what could be rounding alone is 0, as it is for equal tokens.
    """
    squares = z.values.new_empty((*z.shape[:-1], z.shape[-2]), dtype=torch.float64)
    return Distances(squares, by_slice(_write_distances, squares, z.values))


def _write_distances(squares: Tensor, values: Tensor) -> Tensor:
    """Write the squared distances of some slices and return their units."""
    tokens, unit = scaled_tokens(values, torch.float64)
    gram(tokens, out=squares)
    lengths = squares.diagonal(dim1=-2, dim2=-1).clone()
    for part in _rows_in_cache(squares):
        both = lengths[..., part, None] + lengths[..., None, :]
        rows = squares[..., part, :].mul_(-2.0).add_(both)
        rows.masked_fill_(rows <= both.mul_(ROUNDING), 0.0)
    return unit[..., 0, 0]


def _rows_in_cache(matrices: Tensor) -> list[slice]:
    """Return groups of rows of (..., m, n) matrices that stay in a CPU's cache."""
    step = rows = matrices.shape[-2]
    if matrices.device.type == "cpu" and not matrices.requires_grad:
        step = max(1, CHUNK * rows // matrices.numel())
    return [slice(first, first + step) for first in range(0, rows, step)]


def squared_distances(z: Features) -> Tensor:
    """Squared Euclidean distances between tokens, (B, N, C, T, T), see `distances`."""
    return distances(z).squares


@derived
def token_cosines(z: Features) -> Tensor:
    """Cosines between the tokens of a slice, not centred; 0 with a zero token.

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
    """Apply a function to slices, by `by_slice`, of other tensors and of `token_cosines`.

    Of many values on a CPU the cosines are not kept, but computed from the distances, which other
    metrics need, too. They have the same digits.

    Args:
        make: Takes the slices of the others, then the cosines.
        z: Features.
        others: (B or 1, N, C, ...) tensors.
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
    """Return the cosines of some slices by the law of cosines, in a third of the time.

    Where the lengths of tokens are so different that rounding would show, they are products.
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
    """Return what is above the diagonal, (..., T, T) to (..., T (T - 1) / 2)."""
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


def centred_units(make: Callable[[Tensor], Tensor], relations: Tensor) -> UnitArrays:
    """Return matrices made of relations, centred by rows and columns and of norm 1.

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
    """Cosine of the angle between two symmetric matrices that are centred by rows and columns.

    Those of y are not centred: of matrices that are centred, the inner product with others is that
    with them as they are, and their norm is known from the sums of their rows. It is for float64,
    whose digits near 1 are enough.

    Args:
        x: Of the original, by `centred_units`.
        make: See there.
        relations: Of y.

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
    """Subtract the first entry of matrices that may be overwritten: equal ones become zero."""
    first = matrices[..., :1, :1].clone()
    return own(matrices).sub_(first)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner products of matrices (..., m, n), (...)."""
    if a.numel() == b.numel() == a.shape[-2] * a.shape[-1]:
        return torch.dot(a.flatten(), b.flatten()).expand(a.shape[:-2])
    return (a * b).sum((-2, -1))
