"""Convolutions and GDN in exact arithmetic, so that results are identical on every machine.

A floating-point sum depends on its order: on the number of threads, the width of the vector unit,
the blocking of the matrix product. An entropy decoder that derives its tables from such sums falls
out of step with the encoder at the first table that differs (Balle, Johnston and Minnen, "Integer
Networks for Data Compression with Latent-Variable Models", ICLR 2019). Here weights and activations
are multiples of powers of two, kept in float64, and small enough that every product and every
partial sum is an integer below 2**53 times such a power. float64 represents each of them exactly,
and any order gives the same bits. The other operations (square root, division, rounding) work on
one element at a time, and IEEE 754 defines their rounding.

In the arithmetic :data:`SHORT`, activations are multiples of 2**-14 and saturate at 2**13 (27 bits
and a sign); the squares that GDN adds are multiples of 2**-14 and saturate at 2**22 (36 bits). The
weights of a layer get the finest step that keeps the worst-case sum below 2**52.

Models trained elsewhere were trained in float32, and a latent that is rounded differently than in
float32 is a visible error. In the arithmetic :data:`LONG`, activations are multiples of 2**-24,
saturate at 2**16 and are split into two slices of 20 bits, squares into four. The sum of each slice
is exact, and the sums are added in a fixed order (Ozaki, Ogita, Oishi and Rump, "Error-free
transformations of matrix multiplication by using fast routines of matrix multiplication", Numerical
Algorithms 59, 2012). It takes about twice the time.
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
"""Fractional bits of activations in :data:`SHORT`: they are multiples of 2**-FRACTION."""

LIMIT = 2.0**13
"""Magnitude at which activations saturate in :data:`SHORT`."""

SUM_BITS = 52
STRIP = 1 << 19  # float64 elements of the work arrays of one strip of rows
MIN_TERMS = 32  # products of at most so many terms are slower than copying their input


def snap(x: np.ndarray, limit: float = LIMIT, fraction: int = FRACTION) -> np.ndarray:
    """Round ``x`` in place to multiples of 2**-fraction within -limit..limit; return it."""
    np.clip(x, -limit, limit, out=x)
    # float64 numbers around this one are 2**-fraction apart, so that adding it rounds x.
    magic = 1.5 * 2.0 ** (52 - fraction)
    x += magic
    x -= magic
    return x


@dataclass(frozen=True)
class Grid:
    """A set of numbers whose weighted sums are exact.

    Attributes:
        limit: Magnitude at which numbers saturate.
        cuts: Fractional bits of each slice, the coarsest first: a number is a sum of multiples of
            2**-cut, one per slice.
        finest: Largest number of fractional bits of weights.
    """

    limit: float
    cuts: tuple[int, ...]
    finest: int

    def snap(self, x: np.ndarray) -> np.ndarray:
        """Round ``x`` to the grid, in place; return it."""
        return snap(x, self.limit, self.cuts[-1])

    def slices(self, x: np.ndarray) -> list[np.ndarray]:
        """Return arrays with sum ``x``, one per cut, of multiples of 2**-cut."""
        parts = []
        for cut in self.cuts[:-1]:
            parts.append(snap(x.copy(), np.inf, cut))
            x = x - parts[-1]
        return [*parts, x]

    def weights(
        self, name: str, weight: np.ndarray, bias: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return weight (O, K) and bias (O, 1), rounded so that ``weight @ x + bias`` is exact.

        Args:
            name: The layer's name, for messages.
            weight: Weights as floats (O, K).
            bias: Biases as floats (O,).

        Raises:
            CodecError: If the weights are not finite, or too large for a useful grid.
        """
        weight = np.rint(np.asarray(weight, np.float64) * 2.0**self.finest) * 2.0**-self.finest
        bias = np.asarray(bias, np.float64)
        total = np.abs(weight).sum(axis=1).max() + np.abs(bias).max() / self.limit
        if not np.isfinite(total):
            raise CodecError(f"{name}: the weights are not finite")
        cut = self.cuts[0]  # the slice with the most bits
        used = cut + int(np.log2(self.limit)) + max(int(np.frexp(total)[1]), -16) + 1
        bits = min(self.finest, SUM_BITS - used)
        if bits < 8:
            raise CodecError(f"{name}: the weights are too large for exact arithmetic")
        weight = np.rint(weight * 2.0**bits) * 2.0**-bits
        grid = 2.0 ** (bits + cut)
        return np.ascontiguousarray(weight), (np.rint(bias * grid) / grid)[:, None]


class Arithmetic(NamedTuple):
    """The precision of a network's arithmetic, which encoder and decoder share.

    Attributes:
        values: Grid of activations.
        squares: Grid of the squares inside GDN.
    """

    values: Grid
    squares: Grid


SHORT = Arithmetic(Grid(LIMIT, (FRACTION,), 24), Grid(2.0**22, (FRACTION,), 24))
LONG = Arithmetic(Grid(2.0**16, (4, 24), 40), Grid(2.0**32, (-12, 8, 28, 44), 40))


class Layer:
    """Base class of layers whose output rows depend on nearby input rows.

    Attributes:
        outputs: Channels of the output; None if as many as of the input.
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
        """Return the output shape for an input shape."""
        rows, cols = (-(-side * self.up // self.stride) for side in shape[1:])
        return self.outputs or shape[0], rows, cols


class ReLU(Layer):
    """max(x, 0)."""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return max(x, 0)."""
        return np.maximum(x, 0.0)


class _Convolution(Layer):
    """Sums over neighbours, as matrix products that read the input in place.

    Rows are contiguous in memory, each with all its channels. The neighbours in one column that
    contribute to a row of the output then lie at equal distances, so that each of these columns is
    the matrix of a product.

    Attributes:
        values: Grid of inputs and outputs.
        kernel: Neighbours on each axis.
        copied: Whether the neighbours of all columns are copied and summed in one product, which is
            faster for few input channels.
        phases: For each phase of the output's rows and columns, the first neighbour (row, column),
            the weight (out, columns * rows * in; rows * columns * in if copied) and the bias
            (out, 1).
    """

    outputs: int
    values: Grid
    kernel: int
    copied = False
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
        count = max(1, STRIP // (2 * self.outputs * cols))
        for top in range(0, rows, count):
            n = min(count, rows - top)
            for phase, ((a, b), weight, bias) in enumerate(self.phases):
                columns = np.split(weight, 1 if self.copied else self.kernel - b, axis=1)
                first = top * step + a, b
                total, *rest = (
                    self._slice_sum(planes, columns, first, n, cols) for planes in slices
                )
                for other in rest:
                    total += other
                total += bias
                row, column = divmod(phase, up)
                output = out[top * up + row : (top + n) * up : up, :, column::up]
                output[...] = self.values.snap(total)
        return out.transpose(1, 0, 2)

    def _planes(self, x: np.ndarray, cols: int) -> list[np.ndarray]:
        """Return the operands of the products for (rows, in, cols), with contiguous columns."""
        step = self.stride
        if not self.copied:
            return [np.ascontiguousarray(x[..., column::step]) for column in range(step)]
        ends = ((column, column + step * (cols - 1) + 1) for column in range(self.kernel))
        return [np.concatenate([x[..., first:end:step] for first, end in ends], axis=1)]

    def _slice_sum(
        self,
        planes: Sequence[np.ndarray],
        weights: Sequence[np.ndarray],
        first: tuple[int, int],
        rows: int,
        cols: int,
    ) -> np.ndarray:
        """Return the contribution of one slice of the input to some output rows (rows, out, cols).

        Args:
            planes: The result of :meth:`_planes`.
            weights: The weights of each column of neighbours, (out, rows * in).
            first: Row and column of the first neighbour of the first value.
            rows, cols: Size of the result.
        """
        total = np.empty((rows, self.outputs, cols))
        top, left = first
        for column, weight in enumerate(weights):
            skipped, plane = divmod(left + column, self.stride)
            read = planes[plane][top:, :, skipped:]
            row, *within = read.strides
            neighbours = as_strided(
                read, (rows, weight.shape[1], cols), (self.stride * row, *within)
            )
            if column:
                total += weight @ neighbours
            else:
                np.matmul(weight, neighbours, out=total)
        return total


class Conv(_Convolution):
    """A 2-D convolution of stride 1 or 2 with zero padding of half the kernel.

    Args:
        name: The layer's name, for messages.
        weight: (out, in, k, k).
        bias: (out,).
        stride: 1 or 2; output sides are rounded up.
        arithmetic: Precision of inputs and weights.
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
        self.copied = weight.shape[1] * self.kernel <= MIN_TERMS
        order = (0, 2, 3, 1) if self.copied else (0, 3, 2, 1)
        flat = weight.transpose(order).reshape(self.outputs, -1)
        self.phases = [((0, 0), *self.values.weights(name, flat, bias))]


class Deconv(_Convolution):
    """A transposed 5x5 convolution of stride 2 that doubles both sides.

    It equals ``ConvTranspose2d(k=5, stride=2, padding=2, output_padding=1)``. Output 2m + a (a = 0,
    1) takes input m + 1 - j through tap 2j + a, on both axes: four ordinary convolutions over 3x3,
    2x3, 3x2 and 2x2 neighbours.

    Args:
        name: The layer's name, for messages.
        weight: (in, out, 5, 5).
        bias: (out,).
        arithmetic: Precision of inputs and weights.
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
    """Generalised divisive normalisation: x / sqrt(beta + gamma @ x**2), or x times the root.

    Balle, Laparra and Simoncelli, "Density Modeling of Images using a Generalized Normalization
    Transformation", ICLR 2016.

    Args:
        name: The layer's name, for messages.
        beta: (channels,), positive.
        gamma: (channels, channels), non-negative.
        inverse: Whether to multiply instead of divide.
        arithmetic: Precision of inputs and weights.
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
        rows_first = x.transpose(1, 0, 2)
        out = np.empty(rows_first.shape)
        count = max(1, STRIP // (4 * rows_first[0].size))
        for top in range(0, len(rows_first), count):
            strip = rows_first[top : top + count]
            first, *others = self.squares.slices(self.squares.snap(strip * strip))
            norm = self.gamma @ first
            for squares in others:
                norm += self.gamma @ squares
            norm += self.beta
            np.sqrt(norm, out=norm)
            combine = np.multiply if self.inverse else np.divide
            self.values.snap(combine(strip, norm, out=out[top : top + count]))
        return out.transpose(1, 0, 2)
