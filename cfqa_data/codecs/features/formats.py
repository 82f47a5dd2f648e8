"""Formats of arrays (N, C, T, D): number formats with the scales that go with them.

A format says in `layout` which arrays of codes it makes of an array of some shape, and of how many
bits each code is. Scales are sent with every feature, and counted.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from cfqa_data.codecs.features.numbers import FLOATS, Integer, Numbers

__all__ = ["CHANNEL", "FORMATS", "TOKEN", "Blocks", "Format", "Layout", "Micro", "Plain", "Scaled"]

Shape: TypeAlias = tuple[int, ...]
Layout: TypeAlias = list[tuple[Shape, int]]
"""Shape of each array of codes, and the bits of each code."""

FLOAT32 = FLOATS["float32"]
TOKEN, CHANNEL = (3,), (0, 2)
"""The axes whose values share a scale: those of one token, or of one channel, of a layer."""


class Format(ABC):
    """A way to write arrays of finite numbers."""

    @abstractmethod
    def layout(self, shape: Shape) -> Layout:
        """Return shapes and bits of the arrays of codes."""

    @abstractmethod
    def encode(self, values: np.ndarray) -> list[np.ndarray]:
        """Return the arrays of codes."""

    @abstractmethod
    def decode(self, codes: Sequence[np.ndarray]) -> np.ndarray:
        """Return the values, as float64; NaN where a code stands for no number."""


@dataclass(frozen=True)
class Plain(Format):
    """Numbers as they are."""

    numbers: Numbers

    def layout(self, shape: Shape) -> Layout:
        """See :meth:`Format.layout`."""
        return [(shape, self.numbers.bits)]

    def encode(self, values: np.ndarray) -> list[np.ndarray]:
        """See :meth:`Format.encode`."""
        return [self.numbers.encode(values)]

    def decode(self, codes: Sequence[np.ndarray]) -> np.ndarray:
        """See :meth:`Format.decode`."""
        return self.numbers.decode(codes[0])


@dataclass(frozen=True)
class Scaled(Format):
    """Numbers times a float32 scale, by which the largest value of a group is the largest number.

    Unsigned integers are counted from a float32 minimum of the group.

    Attributes:
        numbers: The format of the numbers.
        axes: Whose values share a scale.
    """

    numbers: Numbers
    axes: Shape = TOKEN

    @property
    def _offset(self) -> bool:
        return isinstance(self.numbers, Integer) and not self.numbers.signed

    def layout(self, shape: Shape) -> Layout:
        """See :meth:`Format.layout`."""
        group = tuple(1 if axis in self.axes else n for axis, n in enumerate(shape))
        return [(group, FLOAT32.bits)] * (1 + self._offset) + [(shape, self.numbers.bits)]

    def encode(self, values: np.ndarray) -> list[np.ndarray]:
        """See :meth:`Format.encode`."""
        values = np.asarray(values, np.float64)
        lows = []
        if self._offset:
            lows = [FLOAT32.encode(values.min(axis=self.axes, keepdims=True))]
            values = values - FLOAT32.decode(lows[0])
        peaks = np.abs(values).max(axis=self.axes, keepdims=True)
        scales = FLOAT32.encode(peaks / self.numbers.largest)
        return [*lows, scales, self.numbers.encode(_divide(values, FLOAT32.decode(scales)))]

    def decode(self, codes: Sequence[np.ndarray]) -> np.ndarray:
        """See :meth:`Format.decode`."""
        *lows, scales, numbers = codes
        values = self.numbers.decode(numbers) * FLOAT32.decode(scales)
        return values + FLOAT32.decode(lows[0]) if lows else values


@dataclass(frozen=True)
class Blocks(Format):
    """Numbers times a scale of 8 bits for each block of neighbouring channels.

    The last block may be shorter.

    Attributes:
        numbers: The format of the numbers.
        size: Channels of a block.
    """

    numbers: Numbers
    size: int

    @abstractmethod
    def scales(self, peaks: np.ndarray) -> list[np.ndarray]:
        """Return the codes of the scales of blocks, by the largest value of each."""

    @abstractmethod
    def steps(self, scales: Sequence[np.ndarray]) -> np.ndarray:
        """Return the values of the scales."""

    def layout(self, shape: Shape) -> Layout:
        """See :meth:`Format.layout`."""
        return [((*shape[:-1], -(-shape[-1] // self.size)), 8), (shape, self.numbers.bits)]

    def encode(self, values: np.ndarray) -> list[np.ndarray]:
        """See :meth:`Format.encode`."""
        values = np.asarray(values, np.float64)
        starts = range(0, values.shape[-1], self.size)
        scales = self.scales(np.maximum.reduceat(np.abs(values), starts, axis=-1))
        return [*scales, self.numbers.encode(_divide(values, self._spread(scales, values.shape)))]

    def decode(self, codes: Sequence[np.ndarray]) -> np.ndarray:
        """See :meth:`Format.decode`."""
        *scales, numbers = codes
        return self.numbers.decode(numbers) * self._spread(scales, numbers.shape)

    def _spread(self, scales: Sequence[np.ndarray], shape: Shape) -> np.ndarray:
        return np.repeat(self.steps(scales), self.size, axis=-1)[..., : shape[-1]]


@dataclass(frozen=True)
class Micro(Blocks):
    """An OCP microscaling format: the scales are powers of two (E8M0).

    Attributes:
        saturating: Whether the power is that of the block's largest value less that of the largest
            number, as in section 6.3 of the specification, so that what is still beyond the largest
            number saturates; else the least power by which nothing is.
    """

    size: int = 32
    saturating: bool = False

    def scales(self, peaks: np.ndarray) -> list[np.ndarray]:
        """See :meth:`Blocks.scales`."""
        (parts, powers), (most, power) = np.frexp(peaks), np.frexp(self.numbers.largest)
        powers = powers - power + (0 if self.saturating else parts > most)
        return [np.where(peaks > 0, np.clip(powers, -127, 127) + 127, 0).astype(np.uint32)]

    def steps(self, scales: Sequence[np.ndarray]) -> np.ndarray:
        """See :meth:`Blocks.steps`."""
        codes = scales[0].astype(np.int64)
        return np.where(codes == 255, np.nan, np.ldexp(1.0, codes - 127))


@dataclass(frozen=True)
class Nvidia(Blocks):
    """NVFP4: the scales are E4M3, times one float32 of the whole array."""

    size: int = 16

    E4M3 = FLOATS["e4m3"]

    def layout(self, shape: Shape) -> Layout:
        """See :meth:`Format.layout`."""
        return [((1,), FLOAT32.bits), *super().layout(shape)]

    def scales(self, peaks: np.ndarray) -> list[np.ndarray]:
        """See :meth:`Blocks.scales`."""
        peaks = peaks / self.numbers.largest
        whole = FLOAT32.encode(peaks.max().reshape(1) / self.E4M3.largest)
        return [whole, self.E4M3.encode(_divide(peaks, FLOAT32.decode(whole)))]

    def steps(self, scales: Sequence[np.ndarray]) -> np.ndarray:
        """See :meth:`Blocks.steps`."""
        return FLOAT32.decode(scales[0]) * self.E4M3.decode(scales[1])


def _divide(values: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Return values by scales, 0 where a scale is 0."""
    return np.divide(values, scales, out=np.zeros_like(values), where=scales != 0)


FORMATS: dict[str, Format] = {
    **{name: Plain(FLOATS[name]) for name in ("float32", "float16", "bfloat16")},
    **{name: Scaled(FLOATS[name]) for name in ("e5m2", "e4m3")},
    **{f"int{bits}": Scaled(Integer(bits, signed=True)) for bits in (8, 6, 4)},
    **{f"mxfp{n}": Micro(FLOATS[of]) for n, of in ((8, "e4m3"), (6, "e2m3"), (4, "e2m1"))},
    "nvfp4": Nvidia(FLOATS["e2m1"]),
}
"""Formats that codecs may write their values in, by name; scales are of a token, or of a block."""
