"""Products of matrices of which a part is known beforehand: symmetric ones, and of triangular ones.

A large matrix is multiplied by blocks of rows on a CPU, without that part; a GPU, for which small
products are slow, and what gradients are recorded of, multiplies all of it at once.
"""

from __future__ import annotations

from cfqa_data.eval.features.lazy_torch import Tensor, torch

__all__ = ["LARGE", "congruent", "gram", "gram_gap", "product_upper", "upper_product"]

LARGE = 512
"""Rows of a large matrix."""

BLOCK, BLOCKS = 256, 6
"""Rows of a block at least, and blocks of a matrix at most."""


def _blocks(matrices: Tensor) -> list[slice]:
    """Return the blocks of rows in which to multiply matrices: all rows, unless they are large."""
    rows, cpu = matrices.shape[-2], matrices.device.type == "cpu"
    step = max(BLOCK, -(-rows // BLOCKS)) if rows >= LARGE and cpu else rows
    return [slice(first, min(first + step, rows)) for first in range(0, rows, step)]


def gram(z: Tensor) -> Tensor:
    """Return ``z @ z.mT``, of which a large one's blocks below the diagonal are copies."""
    if z.requires_grad or len(blocks := _blocks(z)) == 1:
        return z @ z.mT
    products = z.new_empty((*z.shape[:-1], z.shape[-2]))
    for one, out in zip(z.flatten(0, -3), products.flatten(0, -3), strict=True):
        for part in blocks:
            torch.mm(one[part], one[part.start :].T, out=out[part, part.start :])
            out[part.stop :, part] = out[part, part.stop :].T
    return products


def gram_gap(units: Tensor, z: Tensor) -> Tensor:
    """Return how far ``z @ z.mT``, of norm 1, is from a symmetric matrix of norm 1: the square.

    Of a large matrix the blocks below the diagonal count by those above; the product is not kept.

    Args:
        units: (m, m).
        z: (m, n), on a CPU, of which no gradient is recorded.

    Returns:
        () float64; 2 where z is zero.
    """
    blocks = _blocks(z)
    parts = [z[part] @ z[part.start :].T for part in blocks]
    size = float(_symmetric_energy(parts)) ** 0.5
    if size == 0:
        return torch.full((), 2.0, dtype=torch.float64)
    for part, made in zip(blocks, parts, strict=True):
        torch.sub(units[part, part.start :], made, alpha=1.0 / size, out=made)
    return _symmetric_energy(parts)


def _symmetric_energy(parts: list[Tensor]) -> Tensor:
    """Return the sum of squares of a symmetric matrix of which there are blocks from the diagonal.

    By rows first: float32 sums over whole matrices were off by 3e-5.
    """
    halves = [part.tensor_split([len(part)], dim=1) for part in parts]
    norms = [torch.linalg.vector_norm(half, dim=-1).double() for both in halves for half in both]
    sums = torch.stack([norm.square().sum() for norm in norms])
    return sums[::2].sum() + 2.0 * sums[1::2].sum()


def upper_product(upper: Tensor, z: Tensor) -> Tensor:
    """Return ``upper @ z``, without the zeros below the diagonal of a large upper matrix."""
    recorded = upper.requires_grad or z.requires_grad
    if recorded or len(blocks := _blocks(upper)) == 1:
        return upper @ z
    products = z.new_empty((*z.shape[:-2], upper.shape[-2], z.shape[-1]))
    uppers = upper.expand(*z.shape[:-2], -1, -1).flatten(0, -3)
    for left, right, out in zip(uppers, z.flatten(0, -3), products.flatten(0, -3), strict=True):
        for part in blocks:
            torch.mm(left[part, part.start :], right[part.start :], out=out[part])
    return products


def product_upper(z: Tensor, upper: Tensor) -> Tensor:
    """Return ``z @ upper``, without the zeros below the diagonal of a large upper matrix."""
    if z.requires_grad or len(blocks := _blocks(upper)) == 1:
        return z @ upper
    products = z.new_empty((*z.shape[:-1], upper.shape[-1]))
    uppers = upper.expand(*z.shape[:-2], -1, -1).flatten(0, -3)
    for left, right, out in zip(z.flatten(0, -3), uppers, products.flatten(0, -3), strict=True):
        for part in blocks:
            torch.mm(left[:, : part.stop], right[: part.stop, part], out=out[:, part])
    return products


def congruent(upper: Tensor, middle: Tensor) -> Tensor:
    """Return ``upper @ middle @ upper.mT``, symmetric as the one in the middle is."""
    left = upper_product(upper, middle)
    if left.requires_grad or len(blocks := _blocks(upper)) == 1:
        return left @ upper.mT
    products = left.new_empty((*left.shape[:-1], upper.shape[-2]))
    uppers = upper.expand(*left.shape[:-2], -1, -1).flatten(0, -3)
    for one, right, out in zip(left.flatten(0, -3), uppers, products.flatten(0, -3), strict=True):
        for part in blocks:
            columns = right[part, part.start :].T
            torch.mm(one[: part.stop, part.start :], columns, out=out[: part.stop, part])
            out[part, : part.start] = out[: part.start, part].T
    return products
