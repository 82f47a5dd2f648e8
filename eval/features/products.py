"""Symmetric matrix products, and products with triangular matrices, without redundant operations.

On a CPU large matrices are multiplied in blocks of rows, and blocks that are zero or known by
symmetry are skipped. On a GPU, where small products are slow, and where gradients are recorded, the
whole product is computed at once.
"""

from __future__ import annotations

from cfqa_data.eval.features.lazy_torch import Tensor, torch

__all__ = ["UpperBlocks", "congruent", "gram", "product_upper", "upper_product"]

LARGE = 192
"""Number of rows from which a matrix is multiplied in blocks."""

BLOCK, BLOCKS = 256, 6
"""Target number of rows of a block, and maximum number of blocks; the minimum is 3."""


def _blocks(matrices: Tensor) -> list[slice]:
    """Return the blocks of rows in which to multiply matrices; a single one if they are small."""
    rows, cpu = matrices.shape[-2], matrices.device.type == "cpu"
    blocks = min(BLOCKS, max(3, rows // BLOCK)) if rows >= LARGE and cpu else 1
    step = -(-rows // blocks)
    return [slice(first, min(first + step, rows)) for first in range(0, rows, step)]


def gram(z: Tensor, lower: bool = True, out: Tensor | None = None) -> Tensor:
    """Return ``z @ z.mT``.

    Args:
        z: (..., m, n).
        lower: Whether to fill the blocks below the diagonal, too; they are copied from above.
        out: (..., m, m), the tensor to write the product to.

    Returns:
        (..., m, m).
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
    """The blocks of the symmetric product ``z @ z.mT`` on and above the diagonal.

    Args:
        z: (m, n), on a CPU and without gradients.
    """

    def __init__(self, z: Tensor) -> None:
        self._parts = _blocks(z)
        self._blocks = [z[part] @ z[part.start :].T for part in self._parts]

    def gap(self, units: Tensor, floor: float = 0.0, last: bool = True) -> tuple[Tensor, float]:
        """Return the squared distance of the matrix, scaled to norm 1, from another one.

        Args:
            units: (m, m), symmetric and of norm 1.
            floor: Norm up to which the matrix counts as zero.
            last: Whether the blocks may be overwritten.

        Returns:
            The squared distance, () float64, which is 2 where the matrix counts as zero, and the
            norm of the matrix.
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
        """Centre the matrix in place so that its off-diagonal rows sum to zero; zero the diagonal.

        This is the U-centring of Szekely and Rizzo 2014.
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
    """Return the sum of squares of a symmetric matrix from its blocks on and above the diagonal.

    Norms of rows are taken first: float32 sums over whole matrices had errors of 3e-5.
    """
    halves = [block.tensor_split([len(block)], dim=1) for block in blocks]
    norms = [torch.linalg.vector_norm(half, dim=-1).double() for both in halves for half in both]
    sums = torch.stack([norm.square().sum() for norm in norms])
    return sums[::2].sum() + 2.0 * sums[1::2].sum()


def upper_product(upper: Tensor, z: Tensor) -> Tensor:
    """Return ``upper @ z`` for an upper triangular matrix."""
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
    """Return ``z @ upper`` for an upper triangular matrix."""
    if z.requires_grad or len(blocks := _blocks(upper)) == 1:
        return z @ upper
    products = z.new_empty((*z.shape[:-1], upper.shape[-1]))
    uppers = upper.expand(*z.shape[:-2], -1, -1).flatten(0, -3)
    for left, right, out in zip(z.flatten(0, -3), uppers, products.flatten(0, -3), strict=True):
        for part in blocks:
            torch.mm(left[:, : part.stop], right[: part.stop, part], out=out[:, part])
    return products


def congruent(upper: Tensor, middle: Tensor) -> Tensor:
    """Return the upper triangle of ``upper @ middle @ upper.mT`` for a symmetric ``middle``.

    The elements below the diagonal are undefined.
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
