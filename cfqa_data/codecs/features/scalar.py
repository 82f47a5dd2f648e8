"""Scalar quantisation: codecs that store every value of a feature in 2 to 16 bits, with scales."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from cfqa_data.codecs.features.formats import (
    CHANNEL,
    TOKEN,
    Format,
    Microscaling,
    Nvfp4Blocks,
    Plain,
    Scaled,
)
from cfqa_data.codecs.features.numbers import FLOATS, Float, Integer
from cfqa_data.codecs.features.packed import FormatCodec
from cfqa_data.errors import CodecError
from cfqa_data.format.facts import Parameter

__all__ = ["Int", "Minifloat", "Mxfp", "Nvfp4"]

Favour = Literal["precision", "range"]

NAMES: dict[Favour, dict[int, str]] = {
    "precision": {16: "float16", 8: "e4m3", 6: "e2m3", 4: "e2m1"},
    "range": {16: "bfloat16", 8: "e5m2", 6: "e3m2", 4: "e2m1"},
}
"""Format of each number of bits, with more bits of mantissa (precision) or of exponent (range)."""


class Int(FormatCodec):
    """Integers with float32 scales.

    Args:
        scale: The values that share a scale: those of a ``token`` of a layer, or of a ``channel``
            over all tokens.
        symmetric: Whether codes range from -(2^(bits-1) - 1) to 2^(bits-1) - 1 with 0 for 0;
            otherwise 2^bits codes range from the smallest value to the largest.
    """

    name = "int"
    title = "integers with scales"
    parameter = Parameter("bits", "higher", whole=True, lowest=2, highest=8)

    def __init__(
        self, scale: Literal["token", "channel"] = "token", symmetric: bool = True
    ) -> None:
        self.axes = {"token": TOKEN, "channel": CHANNEL}[scale]
        self.symmetric = symmetric

    def format(self, parameter: int) -> Format:
        return Scaled(Integer(parameter, self.symmetric), self.axes)


class _FloatCodec(FormatCodec):
    """Base class of floating-point codecs, which exist only for some numbers of bits."""

    sizes: ClassVar[tuple[int, ...]]

    def __init__(self, favour: Favour = "precision") -> None:
        self.favour = favour

    @classmethod
    def grid(cls) -> tuple[float, ...]:
        return tuple(map(float, cls.sizes))

    def check_parameter(self, value: Any) -> float:
        bits = super().check_parameter(value)
        if bits not in self.sizes:
            sizes = ", ".join(map(str, self.sizes))
            raise CodecError(f"{self.name}: no format of {bits:g} bits, only of {sizes}")
        return bits

    def numbers(self, bits: int) -> Float:
        """Return the number format of ``bits`` bits."""
        return FLOATS[NAMES[self.favour][bits]]


class Minifloat(_FloatCodec):
    """Floating point of 16, 8, 6 or 4 bits.

    Args:
        favour: ``precision`` (float16, E4M3, E2M3, E2M1) or ``range`` (bfloat16, E5M2, E3M2, E2M1).
        scale: ``token``: one float32 per token of a layer, which maps its largest magnitude to the
            format's largest value; ``none``: values are not scaled, and saturate at that value.
    """

    name = "fp"
    title = "floating point of few bits"
    sizes = (16, 8, 6, 4)
    parameter = Parameter("bits", "higher", whole=True, lowest=4, highest=16)

    def __init__(
        self, favour: Favour = "precision", scale: Literal["token", "none"] = "token"
    ) -> None:
        super().__init__(favour)
        self.scaled = scale == "token"

    def format(self, parameter: int) -> Format:
        numbers = self.numbers(parameter)
        return Scaled(numbers) if self.scaled else Plain(numbers)


class Mxfp(_FloatCodec):
    """The OCP microscaling formats MXFP8, MXFP6 and MXFP4: blocks of 32 values with 8-bit scales.

    Args:
        favour: ``precision`` (E4M3, E2M3, E2M1) or ``range`` (E5M2, E3M2, E2M1).
        scale: ``up``: the smallest power of two at which no value saturates; ``down``: the rule of
            section 6.3 of the specification, at which the largest value of a block may saturate.
    """

    name = "mxfp"
    title = "MXFP8, MXFP6 and MXFP4"
    sizes = (8, 6, 4)
    parameter = Parameter("bits", "higher", whole=True, lowest=4, highest=8)

    def __init__(self, favour: Favour = "precision", scale: Literal["up", "down"] = "up") -> None:
        super().__init__(favour)
        self.saturating = scale == "down"

    def format(self, parameter: int) -> Format:
        return Microscaling(self.numbers(parameter), saturating=self.saturating)


class Nvfp4(FormatCodec):
    """E2M1 with an E4M3 scale per block and a float32 scale per feature; NVFP4 has blocks of 16."""

    name = "nvfp4"
    title = "NVFP4 and coarser blocks"
    parameter = Parameter("block", "lower", unit="channels", whole=True, lowest=16, highest=1024)

    @classmethod
    def grid(cls) -> tuple[float, ...]:
        return (16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)

    def format(self, parameter: int) -> Format:
        return Nvfp4Blocks(FLOATS["e2m1"], parameter)
