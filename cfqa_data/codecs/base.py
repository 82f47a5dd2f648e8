"""Base classes of codecs: on packed planes of codes, on features, and on backbone inputs.

A codec is one class, a subclass of `Codec`, `FeatureCodec` or `InputCodec`, that states its facts;
nothing else needs to know it. Of all three holds:

- `encode` is deterministic: the same item and parameter give the same bytes, whatever else is
  encoded in the same call or beside it.
- The decoder gets the bitstream, the shape, and what everybody has in advance (weights, tables):
  it is another object, in another process.
- Bytes that are damaged, cut short or something else are a `CodecError`, or give an item of the
  right shape.
- Options are keyword arguments of the constructor, checked by its annotations.

`cfqa_data.testing.codecs` tests a class for this.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, ClassVar, TypeAlias

import numpy as np

from cfqa_data.errors import CodecError, FormatError, prefixed
from cfqa_data.format.facts import Bits, CodecFacts, On, Parameter
from cfqa_data.scalars import python_value

__all__ = [
    "AnyCodec",
    "Bitstream",
    "Codec",
    "FeatureCodec",
    "InputCodec",
    "check_bitstream",
    "check_feature",
    "check_plane",
    "check_planes",
    "check_shape",
]

Bitstream: TypeAlias = bytes | bytearray | memoryview
"""What a decoder takes, and any other buffer of bytes, such as a uint8 array."""


class AnyCodec(ABC):
    """What the three contracts share.

    Attributes:
        name: In recipes, labels and paths.
        title: The codec in words.
        parameter: What sets its rate: name, direction, limits.
        on: What it compresses.
        bits: What its rate is: 8 times the bytes of a ``bitstream`` with all headers, what it has
            ``stated`` (:meth:`stated_bits`), or ``unknown``.
        cost: Core-seconds to encode and decode a million feature points, the mean over its levels.
        slow: Whether encoding takes so long that a build keeps each level as soon as it is there.
    """

    name: str
    title: str
    parameter: Parameter
    on: ClassVar[On]
    bits: Bits = "bitstream"
    cost: float = 1.0
    slow: bool = False
    declared: ClassVar[Mapping[str, Any]] = {
        "name": str,
        "title": str,
        "parameter": Parameter,
        "bits": str,
        "cost": Real,
    }

    @classmethod
    def facts(cls) -> CodecFacts:
        """Return what a manifest says of the codec."""
        return CodecFacts(cls.name, cls.title, cls.on, cls.parameter, cls.bits)

    @classmethod
    def grid(cls) -> tuple[float, ...] | None:
        """Return parameters to begin a calibration with, the best first.

        By default, nine from one limit to the other; None without limits.
        """
        ends = cls.parameter.lowest, cls.parameter.highest
        if None in ends:
            return None
        values = np.linspace(*ends, 9)  # type: ignore[arg-type]
        values = np.unique(np.rint(values) if cls.parameter.whole else values)
        return tuple((values if cls.parameter.better == "lower" else values[::-1]).tolist())

    @classmethod
    def weights(cls, options: Mapping[str, Any]) -> list[str]:
        """Return URIs of the files that decide the bytes, of a codec that is made with options."""
        return []

    @abstractmethod
    def version(self) -> dict[str, str]:
        """Return what produces the bitstreams: names of programs and libraries to versions."""

    def stated_bits(self, bitstream: bytes, what: Any) -> int:
        """Return the bits that a receiver needs, where ``bits`` is "stated".

        Args:
            bitstream: Of one item.
            what: The shape of the feature, or the inputs themselves.
        """
        raise NotImplementedError(f"{self.name}: does not report its bits")

    def rate(self, bitstream: bytes, what: Any) -> int | None:
        """Return the bits of one item as ``bits`` says; None where unknown."""
        if self.bits == "stated":
            return self.stated_bits(bitstream, what)
        return 8 * len(bitstream) if self.bits == "bitstream" else None

    def fit(self, items: Iterable[Any], seed: int) -> None:  # noqa: B027
        """Learn from training features, or inputs, what :meth:`tables` then gives."""

    def tables(self) -> Mapping[str, np.ndarray]:
        """Return what every receiver has in advance, by name; not counted in the rate.

        A codec whose constructor takes ``tables`` is given them back, for encoding and decoding.
        """
        return {}

    def check_parameter(self, value: Any) -> float:
        """Return a parameter that the codec can have.

        Raises:
            CodecError: If it cannot have it.
        """
        with prefixed(self.name, CodecError, FormatError):
            return self.parameter.check(python_value(value))


class _ArrayCodec(AnyCodec):
    """What codecs on planes and on features share."""

    @abstractmethod
    def encode(self, array: np.ndarray, parameter: float, /) -> bytes:
        """Return the bitstream of an array.

        Raises:
            CodecError: If the array or the parameter is not one that this codec can encode.
        """

    @abstractmethod
    def decode(self, bitstream: Bitstream, shape: Any) -> np.ndarray:
        """Return the array that a bitstream holds.

        Args:
            bitstream: What :meth:`encode` returned, in any buffer of bytes.
            shape: That the array must have.

        Raises:
            CodecError: If the bytes are damaged, cut short, or hold something else.
        """

    def encode_many(self, arrays: Sequence[np.ndarray], parameter: float, /) -> list[bytes]:
        """Return the bitstreams of arrays of one shape; each equals what :meth:`encode` gives."""
        return [self.encode(array, parameter) for array in arrays]

    def decode_many(self, bitstreams: Sequence[Bitstream], shape: Any) -> list[np.ndarray]:
        """Return the arrays of bitstreams that all have one shape."""
        return [self.decode(bitstream, shape) for bitstream in bitstreams]


class Codec(_ArrayCodec):
    """A codec on planes: integers (rows, cols), one row per token of a view.

    Attributes:
        dtype: Of the planes that :meth:`decode` returns.
        peak: The largest code a plane may hold; the smallest is 0.
    """

    on = "planes"
    dtype: np.dtype
    peak: int


class FeatureCodec(_ArrayCodec):
    """A codec on features: float32 (N, C, T, D) in, the same out, of any T."""

    on = "features"


class InputCodec(AnyCodec):
    """A codec on inputs: what the source gives and the backbone takes."""

    on = "inputs"

    @abstractmethod
    def encode(self, inputs: Any, parameter: float, /) -> bytes:
        """Return the bitstream of the inputs of one sample.

        Raises:
            CodecError: If the inputs or the parameter are not what this codec can encode.
        """

    @abstractmethod
    def decode(self, bitstream: Bitstream) -> Any:
        """Return the inputs that a bitstream holds.

        Raises:
            CodecError: If the bytes are damaged, cut short, or hold something else.
        """


def check_shape(name: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """Return ``shape`` as two positive integers of at most 65535.

    Raises:
        CodecError: If it is not that.
    """
    if len(shape) != 2 or not all(1 <= int(side) <= 65535 for side in shape):
        raise CodecError(
            f"{name}: a plane must have two sides of 1 to 65535, not shape {tuple(shape)}"
        )
    return int(shape[0]), int(shape[1])


def check_bitstream(name: str, bitstream: Bitstream) -> bytes:
    """Return ``bitstream`` as bytes.

    Raises:
        CodecError: If it is no buffer of bytes.
    """
    if isinstance(bitstream, bytes):
        return bitstream
    try:
        view = memoryview(bitstream)
    except TypeError:
        kind = type(bitstream).__name__
        raise CodecError(f"{name}: a bitstream must be bytes, not {kind}") from None
    if view.itemsize != 1:
        raise CodecError(f"{name}: a bitstream must be bytes, not items of {view.itemsize} bytes")
    return view.tobytes()


def check_plane(name: str, plane: np.ndarray, peak: int, dtype: np.dtype) -> np.ndarray:
    """Return ``plane`` as a C-contiguous array of ``dtype``.

    Raises:
        CodecError: If it is not a 2-D array of integers in 0..``peak``.
    """
    plane = np.asarray(plane)
    check_shape(name, plane.shape)
    if plane.dtype.kind not in "ui":
        raise CodecError(f"{name}: planes must hold integer codes, not {plane.dtype}")
    low, high = int(plane.min()), int(plane.max())
    if low < 0 or high > peak:
        raise CodecError(f"{name}: codes must be within 0..{peak}, found {low}..{high}")
    return np.ascontiguousarray(plane, dtype=dtype)


def check_feature(name: str, feature: Any) -> np.ndarray:
    """Return a feature as a C-contiguous float32 array (N, C, T, D).

    Raises:
        CodecError: If it has other axes, is empty, or holds what is no finite number.
    """
    feature = np.ascontiguousarray(feature, dtype=np.float32)
    if feature.ndim != 4 or not feature.size:
        raise CodecError(f"{name}: a feature must be (N, C, T, D), not of shape {feature.shape}")
    if not np.isfinite(feature).all():
        raise CodecError(f"{name}: the feature holds NaN or infinity")
    return feature


def check_planes(
    name: str, planes: Sequence[np.ndarray], peak: int, dtype: np.dtype
) -> list[np.ndarray]:
    """Return every plane as :func:`check_plane` does, all of one shape.

    Raises:
        CodecError: If one of them cannot be encoded, or their shapes differ.
    """
    checked = [check_plane(name, plane, peak, dtype) for plane in planes]
    shapes = {plane.shape for plane in checked}
    if len(shapes) > 1:
        raise CodecError(f"{name}: planes of one call must share a shape, got {sorted(shapes)}")
    return checked
