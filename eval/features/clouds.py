"""Comparison of the centred tokens of two slices up to an orthogonal map."""

from __future__ import annotations

from typing import NamedTuple

from cfqa_data.errors import MetricError
from cfqa_data.eval.features.batch import Features, derived, own, root
from cfqa_data.eval.features.lazy_torch import Tensor, torch
from cfqa_data.eval.features.products import congruent, gram, upper_product
from cfqa_data.eval.features.relations import by_slice, distances, scaled_tokens

__all__ = ["Difference", "differences"]

NEAREST = 2.0**-40
"""Gaps up to this value are rounding errors and count as 0."""


class Difference(NamedTuple):
    """Norms and similarity of the centred tokens of two slices, float64 (B or 1, N, C) each.

    Attributes:
        before: Norm of the centred tokens of x, |Xc|.
        after: Norm of the centred tokens of y, |Yc|.
        gap: 1 - s in [0, 1], where s is the similarity; 1 where x or y does not vary over tokens.
    """

    before: Tensor
    after: Tensor
    gap: Tensor

    def squared(self) -> Tensor:
        """Return the squared distance, ``|Xc|^2 + |Yc|^2 - 2 |Xc| |Yc| s``."""
        return (self.before - self.after).square() + 2.0 * self.before * self.after * self.gap


class _Shape(NamedTuple):
    """The factor of the centred tokens of some slices, see `_shapes`.

    Attributes:
        factor: (..., m, n) float64, of tokens scaled to norm 1.
        size: (...), the norm of the centred tokens before scaling.
    """

    factor: Tensor
    size: Tensor


class _Gap(NamedTuple):
    gap: Tensor
    size: Tensor


@derived
def differences(x: Features, y: Features, channels: bool = False) -> Difference:
    """Compare the centred tokens of each slice.

    Args:
        x: Original.
        y: Compressed.
        channels: Use the similarity of channel covariances, ``s = |Xc Yc^T|_* / (|Xc| |Yc|)``,
            with the nuclear norm, instead of that of shapes, ``|Xc^T Yc|_* / (|Xc| |Yc|)``.

    Raises:
        MetricError: If the eigenvalue decomposition does not converge.
    """
    factors, before = _shapes(x, channels)
    tokens, width = y.shape[-2:]

    def from_tokens(factor: Tensor, values: Tensor) -> _Gap:
        cloud, unit = scaled_tokens(values, torch.float64)
        size = root(torch.linalg.vector_norm(cloud, dim=-1).square().sum(-1))
        crossed = upper_product(factor, cloud.mT if channels else cloud)
        return _Gap(_nuclear_gap(gram(crossed, lower=False), size), size / unit[..., 0, 0])

    def from_distances(factor: Tensor, unit: Tensor, squares: Tensor) -> _Gap:
        # The rows of the factor sum to zero: -1/2 of the squared distances can replace Yc Yc^T.
        size = root(squares.sum((-2, -1)) / (2 * tokens))
        return _Gap(_nuclear_gap(congruent(factor, squares), size, -0.5), size / unit)

    if channels or tokens > 2 * width:
        found = by_slice(from_tokens, factors, y.values)
    else:
        found = by_slice(from_distances, factors, *reversed(distances(y)))
    return Difference(before, found.size, found.gap)


@derived
def _shapes(z: Features, channels: bool) -> _Shape:
    """Return R and |Zc|, where R has min(T, D) rows, is upper triangular, and R^T R = Zc^T Zc.

    Without ``channels``, R^T R = Zc Zc^T instead. The QR decomposition without Q has no gradient;
    where gradients are recorded, Zc or its transpose replaces R.
    """

    def make(values: Tensor) -> _Shape:
        cloud, size = _cloud(values)
        cloud = cloud if channels else cloud.mT
        return _Shape(cloud if cloud.requires_grad else torch.linalg.qr(cloud, mode="r").R, size)

    return by_slice(make, z.values)


def _cloud(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the centred tokens of some slices, scaled to norm 1 or zero, and their norms."""
    tokens, unit = scaled_tokens(values, torch.float64)
    size = root(torch.linalg.vector_norm(tokens, dim=-1).square().sum(-1))
    scale = size.masked_fill(size == 0, torch.inf).reciprocal()
    return own(tokens).mul_(scale[..., None, None]), size / unit[..., 0, 0]


def _nuclear_gap(products: Tensor, size: Tensor, factor: float = 1.0) -> Tensor:
    """Return ``1 - |A|_* / size`` from the upper triangle of ``A A^T``: (...) in [0, 1].

    The singular values are the square roots of the eigenvalues, which is several times faster than
    a singular value decomposition of A. In float64 this resolves singular values down to 1e-7 of
    the largest; smaller ones are ignored.

    Args:
        products: ``A A^T / factor``, (..., m, m) float64.
        size: (...); where it is 0, the gap is 1.
        factor: Scale of the products.
    """
    try:
        # LAPACK is column-major: the transpose is passed without a transposing copy, and the lower
        # triangle that eigvalsh reads is the upper one of the products.
        squares = factor * torch.linalg.eigvalsh(products.mT)
    except torch.linalg.LinAlgError as error:
        raise MetricError("the singular values of a slice did not converge") from error
    noise = 64.0 * torch.finfo(squares.dtype).eps * squares.amax(-1, keepdim=True)
    shared = root(squares.masked_fill(squares <= noise, 0.0)).sum(-1)
    gaps = (1.0 - shared / size.masked_fill(size == 0, torch.inf)).clamp_(max=1.0)
    return gaps.masked_fill(gaps <= NEAREST, 0.0)
