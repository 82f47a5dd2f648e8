"""Products of matrices of which a part is known beforehand: symmetric ones, and of triangular ones.

A large matrix is multiplied by blocks of rows on a CPU, without that part; a GPU, for which small
products are slow, and what gradients are recorded of, multiplies all of it at once.
"""

from __future__ import annotations

from cfqa_data.eval.features.lazy_torch import Tensor, torch

__all__ = ["UpperBlocks", "congruent", "gram", "product_upper", "upper_product"]

LARGE = 192
"""Rows of a large matrix."""

BLOCK, BLOCKS = 256, 6
"""Usual rows of a block; and the largest number of blocks, of which there are at least 3."""


def _blocks(matrices: Tensor) -> list[slice]:
    """Return the blocks of rows in which to multiply matrices: all rows, unless they are large."""
    rows, cpu = matrices.shape[-2], matrices.device.type == "cpu"
    blocks = min(BLOCKS, max(3, rows // BLOCK)) if rows >= LARGE and cpu else 1
    step = -(-rows // blocks)
    return [slice(first, min(first + step, rows)) for first in range(0, rows, step)]


def gram(z: Tensor, lower: bool = True, out: Tensor | None = None) -> Tensor:
    """Return ``z @ z.mT``.

    Args:
        z: (..., m, n).
        lower: Fill the part below the diagonal, too; in a large matrix it is copied from above.
        out: (..., m, m), to write to.
    """
    products = z.new_empty((*z.shape[:-1], z.shape[-2])) if out is None else out
    if z.requires_grad or len(blocks := _blocks(z)) == 1:
        return products.copy_(z @ z.mT) if out is not None else z @ z.mT
    for one, into in zip(z.flatten(0, -3), products.flatten(0, -3), strict=True):
        for part in blocks:
            torch.mm(one[part], one[part.start :].T, out=into[part, part.start :])
            if lower:
                into[part.stop :, part] = into[part, part.stop :].T
    return products


class UpperBlocks:
    """The symmetric product ``z @ z.mT`` as blocks of rows, each from the diagonal on.

    What lies below the diagonal counts by its equal above.

    Args:
        z: (m, n), on a CPU, of which no gradient is recorded.
    """

    def __init__(self, z: Tensor) -> None:
        self._parts = _blocks(z)
        self._blocks = [z[part] @ z[part.start :].T for part in self._parts]

    def gap(self, units: Tensor, floor: float = 0.0, last: bool = True) -> tuple[Tensor, float]:
        """Return how far the matrix, made of norm 1, is from another symmetric one of norm 1.

        Args:
            units: (m, m), the other one.
            floor: A norm that counts as zero.
            last: Whether the blocks may be overwritten.

        Returns:
            The square of the distance, () float64, 2 where the norm is zero; and the norm before.
        """
        size = float(_symmetric_energy(self._blocks)) ** 0.5
        if size <= floor:
            return torch.full((), 2.0, dtype=torch.float64), size
        changes = []
        for part, block in zip(self._parts, self._blocks, strict=True):
            out = block if last else torch.empty_like(block)
            torch.sub(units[part, part.start :], block, alpha=1.0 / size, out=out)
            changes.append(out)
        return _symmetric_energy(changes), size

    def centre(self) -> None:
        """Centre the matrix such that rows sum to zero without their diagonals, which become zero.

        See Szekely and Rizzo 2014, U-centring.
        """
        tokens = self._blocks[0].shape[1]
        sums = self._blocks[0].new_zeros(tokens)
        for part, block in zip(self._parts, self._blocks, strict=True):
            block.fill_diagonal_(0.0)
            sums[part] += block.sum(1)
            sums[part.stop :] += block[:, len(block) :].sum(0)
        total = sums.sum() / ((tokens - 1) * (tokens - 2))
        sums /= tokens - 2
        for part, block in zip(self._parts, self._blocks, strict=True):
            block += (total - sums[part])[:, None]
            block -= sums[part.start :]
            block.fill_diagonal_(0.0)


def _symmetric_energy(blocks: list[Tensor]) -> Tensor:
    """Return the sum of squares of a symmetric matrix of which there are blocks from the diagonal.

    By rows first: float32 sums over whole matrices were off by 3e-5.
    """
    halves = [block.tensor_split([len(block)], dim=1) for block in blocks]
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
    """Return the upper triangle of ``upper @ middle @ upper.mT``, where the middle is symmetric.

    The part below the diagonal is not defined.
    """
    left = upper_product(upper, middle)
    if left.requires_grad or len(blocks := _blocks(upper)) == 1:
        return left @ upper.mT
    products = left.new_empty((*left.shape[:-1], upper.shape[-2]))
    uppers = upper.expand(*left.shape[:-2], -1, -1).flatten(0, -3)
    for one, right, out in zip(left.flatten(0, -3), uppers, products.flatten(0, -3), strict=True):
        for part in blocks:
            columns = right[part, part.start :].T
            torch.mm(one[: part.stop, part.start :], columns, out=out[: part.stop, part])
    return products
