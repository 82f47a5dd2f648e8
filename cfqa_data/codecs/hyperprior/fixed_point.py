"""Convolutions and GDN whose every sum is exact, so that no machine rounds them differently.

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

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from cfqa_data.errors import CodecError

__all__ = ["GDN", "LONG", "SHORT", "Arithmetic", "Conv", "Deconv", "relu", "snap"]

FRACTION = 14
"""Activations are multiples of 2**-FRACTION, unless an arithmetic says otherwise."""

LIMIT = 2.0**13
"""Activations saturate here, unless an arithmetic says otherwise."""

SUM_BITS = 52
STRIP = 1 << 17  # float64 elements of the work array that one strip of rows may fill


@dataclass(frozen=True)
class Arithmetic:
    """How finely a network is computed; part of what encoder and decoder share.

    Attributes:
        limit: activations saturate here.
        cuts: activations are sums of multiples of 2**-cut, one slice per cut, the coarsest first.
        square_limit: the squares inside GDN saturate here.
        square_cuts: and are sums of such multiples.
        finest: weights are multiples of 2**-finest, or coarser.
    """

    limit: float
    cuts: tuple[int, ...]
    square_limit: float
    square_cuts: tuple[int, ...]
    finest: int

    def snap(self, x: np.ndarray) -> np.ndarray:
        """Make ``x`` activations, in place; return it."""
        return snap(x, self.limit, self.cuts[-1])


def snap(x: np.ndarray, limit: float = LIMIT, fraction: int = FRACTION) -> np.ndarray:
    """Round ``x`` in place to multiples of 2**-fraction within -limit..limit; return it."""
    np.clip(x, -limit, limit, out=x)
    # Next to this number neighbouring float64 are 2**-fraction apart: the sum is the rounding.
    magic = 1.5 * 2.0 ** (52 - fraction)
    x += magic
    x -= magic
    return x


SHORT = Arithmetic(
    limit=LIMIT, cuts=(FRACTION,), square_limit=2.0**22, square_cuts=(FRACTION,), finest=24
)
LONG = Arithmetic(
    limit=2.0**16, cuts=(4, 24), square_limit=2.0**32, square_cuts=(-12, 8, 28, 44), finest=40
)


def _slices(x: np.ndarray, cuts: tuple[int, ...]) -> list[np.ndarray]:
    """Return arrays that sum to ``x``, each a multiple of 2**-cut.

    Args:
        x: multiples of 2**-cuts[-1].
        cuts: rising.
    """
    parts = []
    for cut in cuts[:-1]:
        parts.append(snap(x.copy(), np.inf, cut))
        x = x - parts[-1]
    return [*parts, x]


def relu(x: np.ndarray) -> np.ndarray:
    """Return max(x, 0), in place."""
    return np.maximum(x, 0.0, out=x)


def _fixed_weights(
    name: str,
    weight: np.ndarray,
    bias: np.ndarray,
    limit: float,
    cut: int,
    finest: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return weight (O, K) and bias (O,) on a grid that keeps ``weight @ x + bias`` exact.

    Args:
        name: of the layer, for messages.
        weight: any floats.
        bias: any floats.
        limit: largest magnitude of the inputs.
        cut: the inputs' coarsest slice, the one of most bits, has multiples of 2**-cut.
        finest: the grid has multiples of 2**-finest, or coarser.

    Raises:
        CodecError: the weights are not finite, or so large that no useful grid is left.
    """
    weight = np.rint(np.asarray(weight, np.float64) * 2.0**finest) * 2.0**-finest
    bias = np.asarray(bias, np.float64)
    total = np.abs(weight).sum(axis=1).max() + np.abs(bias).max() / limit
    if not np.isfinite(total):
        raise CodecError(f"{name}: the weights are not finite")
    input_bits = cut + int(np.log2(limit))
    used = input_bits + max(int(np.frexp(total)[1]), -16) + 1
    bits = min(finest, SUM_BITS - used)
    if bits < 8:
        raise CodecError(f"{name}: the weights are too large for exact arithmetic")
    weight = np.rint(weight * 2.0**bits) * 2.0**-bits
    grid = 2.0 ** (bits + cut)
    bias = np.rint(bias * grid) / grid
    return np.ascontiguousarray(weight), bias[:, None]


class Conv:
    """A 2-D convolution with zero padding of half the kernel; stride 1 or 2.

    Args:
        name: of the layer, for messages.
        weight: (out, in, k, k).
        bias: (out,).
        stride: 1 or 2; sides are rounded up.
        arithmetic: of inputs and weights.
    """

    def __init__(
        self,
        name: str,
        weight: np.ndarray,
        bias: np.ndarray,
        stride: int,
        arithmetic: Arithmetic = SHORT,
    ) -> None:
        self.outputs, self.inputs, self.kernel, _ = weight.shape
        self.stride = stride
        flat = weight.transpose(0, 2, 3, 1).reshape(self.outputs, -1)
        self.arithmetic = arithmetic
        self.weight, self.bias = _fixed_weights(
            name, flat, bias, arithmetic.limit, arithmetic.cuts[0], arithmetic.finest
        )

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return (out, ceil(rows / stride), ceil(cols / stride)) for x (in, rows, cols)."""
        half, step = self.kernel // 2, self.stride
        rows, cols = -(-x.shape[1] // step), -(-x.shape[2] // step)
        margin = half + step
        padded = np.pad(x, ((0, 0), (half, margin), (half, margin)))
        # One plane per position modulo the stride, so that every tap reads whole rows.
        slices = [
            [
                [np.ascontiguousarray(part[:, y::step, x::step]) for x in range(step)]
                for y in range(step)
            ]
            for part in _slices(padded, self.arithmetic.cuts)
        ]
        del padded
        out = np.empty((self.outputs, rows, cols))
        taps = self.inputs * self.kernel**2
        height = max(1, STRIP // (taps * cols))
        for top in range(0, rows, height):
            n = min(height, rows - top)
            patches = np.empty((self.kernel, self.kernel, self.inputs, n, cols))
            total = np.zeros((self.outputs, n * cols))
            for planes in slices:
                for dy in range(self.kernel):
                    row = top + dy // step
                    for dx in range(self.kernel):
                        plane = planes[dy % step][dx % step]
                        patches[dy, dx] = plane[:, row : row + n, dx // step : dx // step + cols]
                total += self.weight @ patches.reshape(taps, -1)
            total += self.bias
            out[:, top : top + n] = self.arithmetic.snap(total).reshape(self.outputs, n, cols)
        return out


class Deconv:
    """A transposed 5x5 convolution of stride 2 that doubles both sides.

    The same as ``ConvTranspose2d(k=5, stride=2, padding=2, output_padding=1)``.  Output 2m + a
    (a = 0, 1) takes input m + 1 - j through tap 2j + a, on both axes: four ordinary convolutions
    over 3x3, 2x3, 3x2 and 2x2 neighbours.

    Args:
        name: of the layer, for messages.
        weight: (in, out, 5, 5).
        bias: (out,).
        arithmetic: of inputs and weights.
    """

    # The neighbours (dy, dx) in an order in which each phase needs a contiguous range of them.
    NEIGHBOURS: tuple[tuple[int, int], ...] = (
        (1, 0),
        (2, 0),
        (1, 1),
        (1, 2),
        (2, 1),
        (2, 2),
        (0, 1),
        (0, 2),
        (0, 0),
    )
    PHASES: Mapping[tuple[int, int], slice] = MappingProxyType(
        {(0, 0): slice(0, 9), (0, 1): slice(2, 8), (1, 0): slice(0, 6), (1, 1): slice(2, 6)}
    )

    def __init__(
        self, name: str, weight: np.ndarray, bias: np.ndarray, arithmetic: Arithmetic = SHORT
    ) -> None:
        self.arithmetic = arithmetic
        self.inputs, self.outputs = weight.shape[:2]
        self.phases = {}
        for (a, b), chosen in self.PHASES.items():
            taps = [
                weight[:, :, 2 * (2 - dy) + a, 2 * (2 - dx) + b].T
                for dy, dx in self.NEIGHBOURS[chosen]
            ]
            self.phases[a, b] = _fixed_weights(
                name,
                np.hstack(taps),
                bias,
                arithmetic.limit,
                arithmetic.cuts[0],
                arithmetic.finest,
            )

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return (out, 2 * rows, 2 * cols) for x (in, rows, cols)."""
        _, rows, cols = x.shape
        slices = _slices(np.pad(x, ((0, 0), (1, 1), (1, 1))), self.arithmetic.cuts)
        out = np.empty((self.outputs, rows, 2, cols, 2))
        height = max(1, STRIP // (9 * self.inputs * cols))
        for top in range(0, rows, height):
            n = min(height, rows - top)
            patches = np.empty((9, self.inputs, n, cols))
            totals = {phase: np.zeros((self.outputs, n * cols)) for phase in self.phases}
            for part in slices:
                for place, (dy, dx) in enumerate(self.NEIGHBOURS):
                    patches[place] = part[:, top + dy : top + dy + n, dx : dx + cols]
                for phase, (weight, _) in self.phases.items():
                    chosen = patches[self.PHASES[phase]]
                    totals[phase] += weight @ chosen.reshape(weight.shape[1], -1)
            for (a, b), (_, bias) in self.phases.items():
                total = self.arithmetic.snap(totals[a, b] + bias)
                out[:, top : top + n, a, :, b] = total.reshape(self.outputs, n, cols)
        return out.reshape(self.outputs, 2 * rows, 2 * cols)


class GDN:
    """Generalised divisive normalisation: x / sqrt(beta + gamma @ x**2), or times it.

    Balle, Laparra and Simoncelli, "Density Modeling of Images using a Generalized Normalization
    Transformation", ICLR 2016.

    Args:
        name: of the layer, for messages.
        beta: (channels,), positive.
        gamma: (channels, channels), not negative.
        inverse: multiply instead of divide.
        arithmetic: of inputs and weights.
    """

    def __init__(
        self,
        name: str,
        beta: np.ndarray,
        gamma: np.ndarray,
        inverse: bool,
        arithmetic: Arithmetic = SHORT,
    ) -> None:
        self.arithmetic = arithmetic
        self.limit, self.cuts = arithmetic.square_limit, arithmetic.square_cuts
        self.gamma, self.beta = _fixed_weights(
            name, gamma, beta, self.limit, self.cuts[0], arithmetic.finest
        )
        self.beta = np.maximum(self.beta, 2.0**-20)
        self.inverse = inverse

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return the normalised x (channels, rows, cols)."""
        flat = x.reshape(len(x), -1)
        out = np.empty_like(flat)
        width = max(1, STRIP // (4 * len(x)))
        for left in range(0, flat.shape[1], width):
            part = flat[:, left : left + width]
            squares = snap(part * part, self.limit, self.cuts[-1])
            norm = np.zeros_like(part)
            for piece in _slices(squares, self.cuts):
                norm += self.gamma @ piece
            norm += self.beta
            np.sqrt(norm, out=norm)
            combined = part * norm if self.inverse else part / norm
            out[:, left : left + width] = self.arithmetic.snap(combined)
        return out.reshape(x.shape)
