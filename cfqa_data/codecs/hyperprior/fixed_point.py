"""Convolutions and GDN in exact arithmetic, so that results are identical on every machine.

A floating-point sum depends on its order: on the number of threads, the width of the vector
unit, the blocking of the matrix product.  An entropy decoder that derives its tables from such
sums falls out of step with the encoder at the first table that flips (Balle, Johnston and
Minnen, "Integer Networks for Data Compression with Latent-Variable Models", ICLR 2019).  Here
weights and activations are multiples of powers of two, kept in float64, and small enough that
every product and every partial sum is an integer below 2**53 times such a power: float64 holds
each of them exactly, and any order gives the same bits.  What is not a sum (square root,
division, rounding) is correctly rounded by IEEE 754, one element at a time.

In the arithmetic :data:`SHORT`, activations are multiples of 2**-14 and saturate at 2**13 (27
bits and a sign); the squares that GDN adds are multiples of 2**-14 and saturate at 2**22 (36
bits).  The weights of a layer get the finest step that leaves the worst-case sum below 2**52.

Models trained elsewhere were trained with float32, and rounding a latent the other way than
float32 does is a visible error.  In the arithmetic :data:`LONG`, activations are multiples of
2**-24, saturate at 2**16 and are cut into two slices of 20 bits, squares into four.  Each slice
has an exact sum of its own, and the sums are added in a fixed order (Ozaki, Ogita, Oishi and
Rump, "Error-free transformations of matrix multiplication by using fast routines of matrix
multiplication", Numerical Algorithms 59, 2012).  It takes about twice the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from cfqa_data.errors import CodecError

__all__ = ["GDN", "LONG", "SHORT", "Arithmetic", "Conv", "Deconv", "Layer", "ReLU", "snap"]

FRACTION = 14
"""Activations are multiples of 2**-FRACTION, unless an arithmetic says otherwise."""

LIMIT = 2.0**13
"""Activations saturate here, unless an arithmetic says otherwise."""

SUM_BITS = 52
STRIP = 1 << 19  # float64 elements of work arrays that one strip of rows may fill
FEW = 32  # products of fewer terms are slower than copying what they read


def snap(x: np.ndarray, limit: float = LIMIT, fraction: int = FRACTION) -> np.ndarray:
    """Round ``x`` in place to multiples of 2**-fraction within -limit..limit; return it."""
    np.clip(x, -limit, limit, out=x)
    # Next to this number neighbouring float64 are 2**-fraction apart: the sum is the rounding.
    magic = 1.5 * 2.0 ** (52 - fraction)
    x += magic
    x -= magic
    return x


@dataclass(frozen=True)
class Grid:
    """Numbers that sums are exact of.

    Attributes:
        limit: They saturate here.
        cuts: They are sums of multiples of 2**-cut, one slice per cut, the coarsest first.
        finest: Their weights are multiples of 2**-finest, or coarser.
    """

    limit: float
    cuts: tuple[int, ...]
    finest: int

    def snap(self, x: np.ndarray) -> np.ndarray:
        """Bring ``x`` onto the grid, in place; return it."""
        return snap(x, self.limit, self.cuts[-1])

    def slices(self, x: np.ndarray) -> list[np.ndarray]:
        """Return arrays that sum to ``x``, each of multiples of 2**-cut."""
        parts = []
        for cut in self.cuts[:-1]:
            parts.append(snap(x.copy(), np.inf, cut))
            x = x - parts[-1]
        return [*parts, x]

    def weights(
        self, name: str, weight: np.ndarray, bias: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return weight (O, K) and bias (O, 1) so that ``weight @ x + bias`` is exact.

        Args:
            name: Of the layer, for messages.
            weight: Any floats.
            bias: Any floats (O,).

        Raises:
            CodecError: If the weights are not finite, or so large that no useful grid is left.
        """
        weight = np.rint(np.asarray(weight, np.float64) * 2.0**self.finest) * 2.0**-self.finest
        bias = np.asarray(bias, np.float64)
        total = np.abs(weight).sum(axis=1).max() + np.abs(bias).max() / self.limit
        if not np.isfinite(total):
            raise CodecError(f"{name}: the weights are not finite")
        cut = self.cuts[0]  # the slice of most bits
        used = cut + int(np.log2(self.limit)) + max(int(np.frexp(total)[1]), -16) + 1
        bits = min(self.finest, SUM_BITS - used)
        if bits < 8:
            raise CodecError(f"{name}: the weights are too large for exact arithmetic")
        weight = np.rint(weight * 2.0**bits) * 2.0**-bits
        grid = 2.0 ** (bits + cut)
        return np.ascontiguousarray(weight), (np.rint(bias * grid) / grid)[:, None]


class Arithmetic(NamedTuple):
    """How finely a network is computed; part of what encoder and decoder share.

    Attributes:
        values: Activations.
        squares: The squares inside GDN.
    """

    values: Grid
    squares: Grid


SHORT = Arithmetic(Grid(LIMIT, (FRACTION,), 24), Grid(2.0**22, (FRACTION,), 24))
LONG = Arithmetic(Grid(2.0**16, (4, 24), 40), Grid(2.0**32, (-12, 8, 28, 44), 40))


class Layer:
    """What a network is made of; rows of its output depend on rows of its input nearby.

    Attributes:
        outputs: Channels of the output; as many as of the input if not given.
        up: Rows of the output per row of the input.
        stride: Rows of the input per row of the output.
        half: Rows of the input that a row of the output needs on each side.
    """

    outputs: int | None = None
    up = stride = 1
    half = 0

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return the layer's output for x (channels, rows, cols)."""
        raise NotImplementedError

    def shape(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Return the shape of the output for an input's."""
        rows, cols = (-(-side * self.up // self.stride) for side in shape[1:])
        return self.outputs or shape[0], rows, cols


class ReLU(Layer):
    """max(x, 0)."""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return max(x, 0)."""
        return np.maximum(x, 0.0)


class _Convolution(Layer):
    """Sums over neighbours, by matrix products that read the input where it lies.

    Memory holds row after row, all channels of each: what the neighbours in one column add to a row
    of the output then lies at equal distances, the matrix of a product for each of these columns.

    Attributes:
        values: Grid of inputs and outputs.
        kernel: Neighbours on each axis.
        wide: Whether the neighbours of all columns are copied together and summed in one product,
            where the input has few channels.
        phases: Of the output's rows and columns, each with the first neighbour (row, column),
            weight (out, columns * rows * in; rows * columns * in if wide) and bias (out, 1).
    """

    outputs: int
    values: Grid
    kernel: int
    wide = False
    phases: Sequence[tuple[tuple[int, int], np.ndarray, np.ndarray]]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return (out, ceil(rows * up / stride), ...) for x (in, rows, cols), in strips of rows."""
        step, up = self.stride, self.up
        edges = self.half, self.half + step
        padded = np.pad(x.transpose(1, 0, 2), (edges, (0, 0), edges))
        _, height, width = self.shape(x.shape)
        rows, cols = height // up, width // up
        slices = [self._planes(part, cols) for part in self.values.slices(padded)]
        del padded
        out = np.empty((height, self.outputs, width))
        most = max(1, STRIP // (2 * self.outputs * cols))
        for top in range(0, rows, most):
            n = min(most, rows - top)
            for place, ((a, b), weight, bias) in enumerate(self.phases):
                columns = np.split(weight, 1 if self.wide else self.kernel - b, axis=1)
                first = top * step + a, b
                total, *rest = (self._sum(planes, columns, first, n, cols) for planes in slices)
                for other in rest:
                    total += other
                total += bias
                row, column = divmod(place, up)
                output = out[top * up + row : (top + n) * up : up, :, column::up]
                output[...] = self.values.snap(total)
        return out.transpose(1, 0, 2)

    def _planes(self, x: np.ndarray, cols: int) -> list[np.ndarray]:
        """Return what products read of (rows, in, cols), whose columns are next to each other."""
        step = self.stride
        if not self.wide:
            return [np.ascontiguousarray(x[..., column::step]) for column in range(step)]
        ends = ((column, column + step * (cols - 1) + 1) for column in range(self.kernel))
        return [np.concatenate([x[..., first:end:step] for first, end in ends], axis=1)]

    def _sum(
        self,
        planes: Sequence[np.ndarray],
        weights: Sequence[np.ndarray],
        first: tuple[int, int],
        rows: int,
        cols: int,
    ) -> np.ndarray:
        """Return what one slice of the input adds to some rows (rows, out, cols) of the output.

        Args:
            planes: As :meth:`_planes` gives them.
            weights: Of each column of neighbours, (out, rows * in).
            first: Row and column of the first neighbour of the first value.
            rows, cols: Of the result.
        """
        total = np.empty((rows, self.outputs, cols))
        top, left = first
        for place, weight in enumerate(weights):
            skipped, plane = divmod(left + place, self.stride)
            read = planes[plane][top:, :, skipped:]
            row, *within = read.strides
            near = as_strided(read, (rows, weight.shape[1], cols), (self.stride * row, *within))
            if place:
                total += weight @ near
            else:
                np.matmul(weight, near, out=total)
        return total


class Conv(_Convolution):
    """A 2-D convolution with zero padding of half the kernel; stride 1 or 2.

    Args:
        name: Of the layer, for messages.
        weight: (out, in, k, k).
        bias: (out,).
        stride: 1 or 2; sides are rounded up.
        arithmetic: Of inputs and weights.
    """

    def __init__(
        self,
        name: str,
        weight: np.ndarray,
        bias: np.ndarray,
        stride: int,
        arithmetic: Arithmetic = SHORT,
    ) -> None:
        self.values, self.stride = arithmetic.values, stride
        self.outputs, self.kernel = len(weight), weight.shape[2]
        self.half = self.kernel // 2
        self.wide = weight.shape[1] * self.kernel <= FEW
        order = (0, 2, 3, 1) if self.wide else (0, 3, 2, 1)
        flat = weight.transpose(order).reshape(self.outputs, -1)
        self.phases = [((0, 0), *self.values.weights(name, flat, bias))]


class Deconv(_Convolution):
    """A transposed 5x5 convolution of stride 2 that doubles both sides.

    The same as ``ConvTranspose2d(k=5, stride=2, padding=2, output_padding=1)``.  Output 2m + a
    (a = 0, 1) takes input m + 1 - j through tap 2j + a, on both axes: four ordinary convolutions
    over 3x3, 2x3, 3x2 and 2x2 neighbours.

    Args:
        name: Of the layer, for messages.
        weight: (in, out, 5, 5).
        bias: (out,).
        arithmetic: Of inputs and weights.
    """

    up, half, kernel = 2, 1, 3

    def __init__(
        self, name: str, weight: np.ndarray, bias: np.ndarray, arithmetic: Arithmetic = SHORT
    ) -> None:
        self.values = arithmetic.values
        self.outputs = weight.shape[1]
        taps = weight.transpose(1, 3, 2, 0)[:, ::-1, ::-1]
        self.phases = []
        for a in (0, 1):
            for b in (0, 1):
                flat = taps[:, b::2, a::2].reshape(self.outputs, -1)
                self.phases.append(((a, b), *self.values.weights(name, flat, bias)))


class GDN(Layer):
    """Generalised divisive normalisation: x / sqrt(beta + gamma @ x**2), or times it.

    Balle, Laparra and Simoncelli, "Density Modeling of Images using a Generalized Normalization
    Transformation", ICLR 2016.

    Args:
        name: Of the layer, for messages.
        beta: (channels,), positive.
        gamma: (channels, channels), not negative.
        inverse: Multiply instead of divide.
        arithmetic: Of inputs and weights.
    """

    def __init__(
        self,
        name: str,
        beta: np.ndarray,
        gamma: np.ndarray,
        inverse: bool,
        arithmetic: Arithmetic = SHORT,
    ) -> None:
        self.values, self.squares = arithmetic
        self.gamma, self.beta = self.squares.weights(name, gamma, beta)
        self.beta = np.maximum(self.beta, 2.0**-20)
        self.inverse = inverse

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return the normalised x (channels, rows, cols)."""
        given = x.transpose(1, 0, 2)
        out = np.empty(given.shape)
        most = max(1, STRIP // (4 * given[0].size))
        for top in range(0, len(given), most):
            part = given[top : top + most]
            slices = self.squares.slices(self.squares.snap(part * part))
            norm = self.gamma @ slices[0]
            for piece in slices[1:]:
                norm += self.gamma @ piece
            norm += self.beta
            np.sqrt(norm, out=norm)
            combine = np.multiply if self.inverse else np.divide
            self.values.snap(combine(part, norm, out=out[top : top + most]))
        return out.transpose(1, 0, 2)
