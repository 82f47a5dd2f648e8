"""Number formats of 2 to 32 bits, floating point and integer: conversion between values and codes.

Values are rounded to the nearest representable one, ties to the even code, and saturate at the
largest finite one. Encoders never make codes of NaN or infinity; these decode to NaN.

References: IEEE 754-2019; OCP 8-bit Floating Point Specification 1.0 (E4M3, E5M2); OCP Microscaling
Formats Specification 1.0 (E3M2, E2M3, E2M1).
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
        exponent: Bits of the exponent.
        mantissa: Bits of the mantissa.
        special: How many of the largest codes of each sign encode infinity and NaN.
    """

    exponent: int
    mantissa: int
    special: int = 0

    @property
    def bits(self) -> int:
        """Bits per code."""
        return 1 + self.exponent + self.mantissa

    @property
    def largest(self) -> float:
        """The largest finite value."""
        return float(self.decode(np.array(self._largest_code)))

    @property
    def _largest_code(self) -> int:
        return (1 << self.bits - 1) - 1 - self.special

    @property
    def _min_exponent(self) -> int:
        """The exponent of the smallest normal value."""
        return 2 - (1 << self.exponent - 1)

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Return the codes of finite values, as unsigned integers."""
        values = np.asarray(values, np.float64)
        exponents = np.where(values == 0, self._min_exponent, np.frexp(values)[1] - 1)
        exponents = np.maximum(exponents, self._min_exponent)
        steps = np.rint(np.ldexp(np.abs(values), self.mantissa - exponents))
        codes = steps + np.ldexp(exponents - float(self._min_exponent), self.mantissa)
        codes = np.minimum(codes, self._largest_code).astype(np.uint32)
        return codes | np.signbit(values).astype(np.uint32) << self.bits - 1

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Return the values of codes, as float64."""
        codes = np.asarray(codes, np.int64)
        magnitudes, signs = codes & (1 << self.bits - 1) - 1, codes >> self.bits - 1
        exponents = np.maximum(magnitudes >> self.mantissa, 1) - 1
        steps = (magnitudes - (exponents << self.mantissa)).astype(np.float64)
        values = np.ldexp(steps, exponents + self._min_exponent - self.mantissa)
        return np.where(
            magnitudes > self._largest_code, np.nan, np.where(signs == 1, -values, values)
        )


@dataclass(frozen=True)
class Integer:
    """Integers: unsigned from 0, or signed in a symmetric range, which leaves one code unused."""

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
