"""Formats of arrays (N, C, T, D): a number format and the scales that go with it.

The `layout` of a format lists the arrays of codes that it makes from an array of some shape, and
the bits of each code. Scales are part of every bitstream and count towards the rate.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from cfqa_data.codecs.features.numbers import FLOATS, Integer, Numbers

__all__ = [
    "CHANNEL",
    "FORMATS",
    "TOKEN",
    "Blocks",
    "Format",
    "Layout",
    "Microscaling",
    "Plain",
    "Scaled",
]

Shape: TypeAlias = tuple[int, ...]
Layout: TypeAlias = list[tuple[Shape, int]]
"""Shape of each array of codes, and the number of bits of each of its codes."""

FLOAT32 = FLOATS["float32"]
TOKEN, CHANNEL = (3,), (0, 2)
"""The axes over which values share a scale: one scale per token, or per channel, of a layer."""


class Format(ABC):
    """Base class: a way to encode arrays of finite numbers as arrays of codes."""

    @abstractmethod
    def layout(self, shape: Shape) -> Layout:
        """Return the shape and the bits per code of each array of codes."""

    @abstractmethod
    def encode(self, values: np.ndarray) -> list[np.ndarray]:
        """Return the arrays of codes."""

    @abstractmethod
    def decode(self, codes: Sequence[np.ndarray]) -> np.ndarray:
        """Return the values as float64, with NaN where a code is invalid."""


@dataclass(frozen=True)
class Plain(Format):
    """Numbers without scales."""

    numbers: Numbers

    def layout(self, shape: Shape) -> Layout:
        return [(shape, self.numbers.bits)]

    def encode(self, values: np.ndarray) -> list[np.ndarray]:
        return [self.numbers.encode(values)]

    def decode(self, codes: Sequence[np.ndarray]) -> np.ndarray:
        return self.numbers.decode(codes[0])


@dataclass(frozen=True)
class Scaled(Format):
    """Numbers with one float32 scale per group of values.

    The scale maps the group's largest magnitude to the largest number. Unsigned integers are
    offsets from a float32 minimum of the group.

    Attributes:
        numbers: The format of the numbers.
        axes: The axes over which values share a scale.
    """

    numbers: Numbers
    axes: Shape = TOKEN

    @property
    def _has_offset(self) -> bool:
        return isinstance(self.numbers, Integer) and not self.numbers.signed

    def layout(self, shape: Shape) -> Layout:
        group = tuple(1 if axis in self.axes else n for axis, n in enumerate(shape))
        return [(group, FLOAT32.bits)] * (1 + self._has_offset) + [(shape, self.numbers.bits)]

    def encode(self, values: np.ndarray) -> list[np.ndarray]:
        values = np.asarray(values, np.float64)
        lows = []
        if self._has_offset:
            lows = [FLOAT32.encode(values.min(axis=self.axes, keepdims=True))]
            values = values - FLOAT32.decode(lows[0])
        peaks = np.abs(values).max(axis=self.axes, keepdims=True)
        scales = FLOAT32.encode(peaks / self.numbers.largest)
        return [*lows, scales, self.numbers.encode(_divide(values, FLOAT32.decode(scales)))]

    def decode(self, codes: Sequence[np.ndarray]) -> np.ndarray:
        *lows, scales, numbers = codes
        values = self.numbers.decode(numbers) * FLOAT32.decode(scales)
        return values + FLOAT32.decode(lows[0]) if lows else values


@dataclass(frozen=True)
class Blocks(Format):
    """Numbers with an 8-bit scale for each block of neighbouring channels.

    The last block may be shorter.

    Attributes:
        numbers: The format of the numbers.
        size: Channels per block.
    """

    numbers: Numbers
    size: int

    @abstractmethod
    def scales(self, peaks: np.ndarray) -> list[np.ndarray]:
        """Return the codes of the blocks' scales for the largest magnitude of each block."""

    @abstractmethod
    def steps(self, scales: Sequence[np.ndarray]) -> np.ndarray:
        """Return the values of the scales."""

    def layout(self, shape: Shape) -> Layout:
        return [((*shape[:-1], -(-shape[-1] // self.size)), 8), (shape, self.numbers.bits)]

    def encode(self, values: np.ndarray) -> list[np.ndarray]:
        values = np.asarray(values, np.float64)
        starts = range(0, values.shape[-1], self.size)
        scales = self.scales(np.maximum.reduceat(np.abs(values), starts, axis=-1))
        return [*scales, self.numbers.encode(_divide(values, self._spread(scales, values.shape)))]

    def decode(self, codes: Sequence[np.ndarray]) -> np.ndarray:
        *scales, numbers = codes
        return self.numbers.decode(numbers) * self._spread(scales, numbers.shape)

    def _spread(self, scales: Sequence[np.ndarray], shape: Shape) -> np.ndarray:
        return np.repeat(self.steps(scales), self.size, axis=-1)[..., : shape[-1]]


@dataclass(frozen=True)
class Microscaling(Blocks):
    """An OCP microscaling format: the scales are powers of two (E8M0).

    Attributes:
        saturating: Whether the exponent of a scale is that of the block's largest magnitude less
            that of the largest number, as in section 6.3 of the specification; values that are then
            still too large saturate. Otherwise it is the smallest exponent at which no value
            saturates.
    """

    size: int = 32
    saturating: bool = False

    def scales(self, peaks: np.ndarray) -> list[np.ndarray]:
        (fractions, exponents), (most, top) = np.frexp(peaks), np.frexp(self.numbers.largest)
        exponents = exponents - top + (0 if self.saturating else fractions > most)
        return [np.where(peaks > 0, np.clip(exponents, -127, 127) + 127, 0).astype(np.uint32)]

    def steps(self, scales: Sequence[np.ndarray]) -> np.ndarray:
        codes = scales[0].astype(np.int64)
        return np.where(codes == 255, np.nan, np.ldexp(1.0, codes - 127))


@dataclass(frozen=True)
class Nvfp4Blocks(Blocks):
    """NVFP4: the scales are E4M3 numbers times one float32 scale of the whole array."""

    size: int = 16

    E4M3 = FLOATS["e4m3"]

    def layout(self, shape: Shape) -> Layout:
        return [((1,), FLOAT32.bits), *super().layout(shape)]

    def scales(self, peaks: np.ndarray) -> list[np.ndarray]:
        peaks = peaks / self.numbers.largest
        scale = FLOAT32.encode(peaks.max().reshape(1) / self.E4M3.largest)
        return [scale, self.E4M3.encode(_divide(peaks, FLOAT32.decode(scale)))]

    def steps(self, scales: Sequence[np.ndarray]) -> np.ndarray:
        return FLOAT32.decode(scales[0]) * self.E4M3.decode(scales[1])


def _divide(values: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Return values divided by scales, 0 where a scale is 0."""
    return np.divide(values, scales, out=np.zeros_like(values), where=scales != 0)


FORMATS: dict[str, Format] = {
    **{name: Plain(FLOATS[name]) for name in ("float32", "float16", "bfloat16")},
    **{name: Scaled(FLOATS[name]) for name in ("e5m2", "e4m3")},
    **{f"int{bits}": Scaled(Integer(bits, signed=True)) for bits in (8, 6, 4)},
    **{f"mxfp{n}": Microscaling(FLOATS[of]) for n, of in ((8, "e4m3"), (6, "e2m3"), (4, "e2m1"))},
    "nvfp4": Nvfp4Blocks(FLOATS["e2m1"]),
}
"""Formats in which codecs can write values, by name, with one scale per token or per block."""
