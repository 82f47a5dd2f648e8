"""Base classes of codecs: on planes of integer codes, on features, and on backbone inputs.

A codec is a subclass of `Codec`, `FeatureCodec` or `InputCodec`; its class attributes describe it.
Every codec satisfies these rules:

- `encode` is deterministic: the same item and parameter give the same bytes, whatever else is
  encoded in the same call or at the same time.
- The decoder runs in another process and has only the bitstream, the shape, and what every receiver
  has in advance (weights, tables).
- Damaged, truncated or unrelated bytes raise `CodecError` or decode to an item of the right shape.
- Options are keyword arguments of the constructor; their values are checked against its
  annotations.

The test suite in `cfqa_data.testing.codecs` checks these rules for a class.
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
"""Types that decoders accept; any other buffer of bytes, such as a uint8 array, works too."""


class AnyCodec(ABC):
    """Base class of the three kinds of codecs.

    Attributes:
        name: The codec's name in recipes, labels and paths.
        title: A short description of the codec.
        parameter: The parameter that controls the rate: its name, direction and limits.
        on: What the codec compresses: planes, features or inputs.
        bits: How the rate is measured: ``bitstream`` is 8 times its bytes, with all headers;
            ``stated`` is the value of :meth:`stated_bits`; or ``unknown``.
        cost: Core-seconds to encode and decode a million feature points, the mean over its levels.
        slow: Whether encoding is so slow that a build saves each level as soon as it is complete.
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
        """Return the codec's entry of a manifest."""
        return CodecFacts(cls.name, cls.title, cls.on, cls.parameter, cls.bits)

    @classmethod
    def grid(cls) -> tuple[float, ...] | None:
        """Return the parameters at which a calibration starts, the best quality first.

        By default, these are nine values from one limit to the other, or None without limits.
        """
        ends = cls.parameter.lowest, cls.parameter.highest
        if None in ends:
            return None
        values = np.linspace(*ends, 9)  # type: ignore[arg-type]
        values = np.unique(np.rint(values) if cls.parameter.whole else values)
        return tuple((values if cls.parameter.better == "lower" else values[::-1]).tolist())

    @classmethod
    def weights(cls, options: Mapping[str, Any]) -> list[str]:
        """Return the URIs of the files that determine the bitstreams, for given options."""
        return []

    @abstractmethod
    def version(self) -> dict[str, str]:
        """Return the versions of the programs and libraries that produce the bitstreams."""

    def stated_bits(self, bitstream: bytes, what: Any) -> int:
        """Return the number of bits that a receiver needs; required where ``bits`` is "stated".

        Args:
            bitstream: The bitstream of one item.
            what: The shape of the feature, or the inputs themselves.
        """
        raise NotImplementedError(f"{self.name}: does not report its bits")

    def rate(self, bitstream: bytes, what: Any) -> int | None:
        """Return the bits of one item, measured as ``bits`` says; None where unknown."""
        if self.bits == "stated":
            return self.stated_bits(bitstream, what)
        return 8 * len(bitstream) if self.bits == "bitstream" else None

    def fit(self, items: Iterable[Any], seed: int) -> None:  # noqa: B027
        """Fit the tables that :meth:`tables` returns to training features or inputs."""

    def tables(self) -> Mapping[str, np.ndarray]:
        """Return what every receiver has in advance, by name; it does not count towards the rate.

        A codec whose constructor takes ``tables`` receives them there for encoding and decoding.
        """
        return {}

    def check_parameter(self, value: Any) -> float:
        """Return a value as a valid parameter of the codec.

        Raises:
            CodecError: If the value is not valid.
        """
        with prefixed(self.name, CodecError, FormatError):
            return self.parameter.check(python_value(value))


class _ArrayCodec(AnyCodec):
    """Base class of codecs on arrays, that is on planes and on features."""

    @abstractmethod
    def encode(self, array: np.ndarray, parameter: float, /) -> bytes:
        """Return the bitstream of an array.

        Raises:
            CodecError: If the codec cannot encode this array, or not with this parameter.
        """

    @abstractmethod
    def decode(self, bitstream: Bitstream, shape: Any) -> np.ndarray:
        """Return the array that a bitstream holds.

        Args:
            bitstream: The result of :meth:`encode`, in any buffer of bytes.
            shape: The shape of the array.

        Raises:
            CodecError: If the bytes are damaged, truncated, or not a bitstream of that shape.
        """

    def encode_many(self, arrays: Sequence[np.ndarray], parameter: float, /) -> list[bytes]:
        """Return the bitstreams of arrays of one shape, each as :meth:`encode` returns it."""
        return [self.encode(array, parameter) for array in arrays]

    def decode_many(self, bitstreams: Sequence[Bitstream], shape: Any) -> list[np.ndarray]:
        """Return the arrays of several bitstreams that share one shape."""
        return [self.decode(bitstream, shape) for bitstream in bitstreams]


class Codec(_ArrayCodec):
    """Base class of codecs on planes: integers (rows, cols), one row per token of a view.

    Attributes:
        dtype: The data type of the planes that :meth:`decode` returns.
        peak: The largest code of a plane; the smallest is 0.
    """

    on = "planes"
    dtype: np.dtype
    peak: int


class FeatureCodec(_ArrayCodec):
    """Base class of codecs on features: float32 (N, C, T, D) with any number of tokens T."""

    on = "features"


class InputCodec(AnyCodec):
    """Base class of codecs on inputs: what a source yields and a backbone takes."""

    on = "inputs"

    @abstractmethod
    def encode(self, inputs: Any, parameter: float, /) -> bytes:
        """Return the bitstream of the inputs of one sample.

        Raises:
            CodecError: If the codec cannot encode these inputs, or not with this parameter.
        """

    @abstractmethod
    def decode(self, bitstream: Bitstream) -> Any:
        """Return the inputs that a bitstream holds.

        Raises:
            CodecError: If the bytes are damaged, truncated, or not a bitstream of this codec.
        """


def check_shape(name: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """Return ``shape`` as two integers of 1 to 65535.

    Raises:
        CodecError: If it has another length or a side out of that range.
    """
    if len(shape) != 2 or not all(1 <= int(side) <= 65535 for side in shape):
        raise CodecError(
            f"{name}: a plane must have two sides of 1 to 65535, not shape {tuple(shape)}"
        )
    return int(shape[0]), int(shape[1])


def check_bitstream(name: str, bitstream: Bitstream) -> bytes:
    """Return ``bitstream`` as bytes.

    Raises:
        CodecError: If it is not a buffer of bytes.
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
        CodecError: If it has other axes, is empty, or holds NaN or infinity.
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
    """Return each plane as :func:`check_plane` does.

    Raises:
        CodecError: If a plane is invalid, or their shapes differ.
    """
    checked = [check_plane(name, plane, peak, dtype) for plane in planes]
    shapes = {plane.shape for plane in checked}
    if len(shapes) > 1:
        raise CodecError(f"{name}: planes of one call must share a shape, got {sorted(shapes)}")
    return checked
