"""Number formats of 2 to 32 bits: floating point and integers, values to codes and back.

Values are rounded to the nearest one of the format, ties to the even code, and saturate at the
largest finite one. Codes that stand for NaN or infinity are never made, and decode to NaN.

References: IEEE 754-2019; OCP 8-bit Floating Point Specification 1.0 (E4M3, E5M2); OCP
Microscaling Formats Specification 1.0 (E3M2, E2M3, E2M1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

__all__ = ["FLOATS", "Float", "Integer", "Numbers"]


@dataclass(frozen=True)
class Float:
    """A binary floating-point format with a sign, subnormals, and a bias of 2^(exponent - 1) - 1.

    Attributes:
        exponent: Its bits.
        mantissa: Its bits.
        special: How many of the largest codes of either sign stand for infinity and NaN.
    """

    exponent: int
    mantissa: int
    special: int = 0

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return 1 + self.exponent + self.mantissa

    @property
    def largest(self) -> float:
        """The largest finite value."""
        return float(self.decode(np.array(self._top)))

    @property
    def _top(self) -> int:
        return (1 << self.bits - 1) - 1 - self.special

    @property
    def _lowest(self) -> int:
        """Exponent of the smallest normal value."""
        return 2 - (1 << self.exponent - 1)

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Return the codes of finite values, as unsigned integers."""
        values = np.asarray(values, np.float64)
        exponents = np.where(values == 0, self._lowest, np.frexp(values)[1] - 1)
        exponents = np.maximum(exponents, self._lowest)
        steps = np.rint(np.ldexp(np.abs(values), self.mantissa - exponents))
        codes = steps + np.ldexp(exponents - float(self._lowest), self.mantissa)
        codes = np.minimum(codes, self._top).astype(np.uint32)
        return codes | np.signbit(values).astype(np.uint32) << self.bits - 1

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Return the values of codes, as float64."""
        codes = np.asarray(codes, np.int64)
        sizes, signs = codes & (1 << self.bits - 1) - 1, codes >> self.bits - 1
        exponents = np.maximum(sizes >> self.mantissa, 1) - 1
        steps = (sizes - (exponents << self.mantissa)).astype(np.float64)
        values = np.ldexp(steps, exponents + self._lowest - self.mantissa)
        return np.where(sizes > self._top, np.nan, np.where(signs == 1, -values, values))


@dataclass(frozen=True)
class Integer:
    """Integers: all from 0 on, or as many below 0 as above it, one code being unused then."""

    bits: int
    signed: bool

    @property
    def largest(self) -> float:
        """The largest integer."""
        return float((1 << self.bits - self.signed) - 1)

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Return the codes of finite values, as unsigned integers."""
        lowest = -self.largest if self.signed else 0.0
        return (np.clip(np.rint(values), lowest, self.largest) - lowest).astype(np.uint32)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Return the values of codes, as float64."""
        values = codes - (self.largest if self.signed else 0.0)
        return np.where(values > self.largest, np.nan, values)


Numbers: TypeAlias = Float | Integer
"""A number format."""

FLOATS = {
    "float32": Float(8, 23, special=1 << 23),
    "float16": Float(5, 10, special=1 << 10),
    "bfloat16": Float(8, 7, special=1 << 7),
    "e5m2": Float(5, 2, special=4),
    "e4m3": Float(4, 3, special=1),
    "e3m2": Float(3, 2),
    "e2m3": Float(2, 3),
    "e2m1": Float(2, 1),
}
