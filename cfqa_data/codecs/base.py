"""What every codec offers: one packed plane of codes to a bitstream, and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from cfqa_data.errors import CodecError

__all__ = ["Bitstream", "Codec", "check_bitstream", "check_plane", "check_planes", "check_shape"]

Bitstream: TypeAlias = bytes | bytearray | memoryview
"""What a decoder takes, and any other buffer of bytes, such as a uint8 array."""


class Codec(ABC):
    """Encodes and decodes planes of codes; the bitstream is all that the decoder gets.

    The rate of a plane is ``8 * len(bitstream)``: headers and parameter sets are in it.
    ``encode`` is deterministic: the same plane and parameter give the same bytes.

    Attributes:
        name: the codec's name in recipes, labels and paths.
        dtype: of the planes that ``decode`` returns.
        peak: the largest code a plane may hold.
        slow: whether encoding takes so long that a build keeps each level as soon as it is there.
    """

    name: str
    dtype: np.dtype
    peak: int
    slow: bool = False

    @abstractmethod
    def encode(self, plane: np.ndarray, parameter: float) -> bytes:
        """Return the bitstream of one plane.

        Args:
            plane: integers (rows, cols) in 0..``peak``.
            parameter: what sets the rate: a QP, or a lambda.

        Raises:
            CodecError: the plane or the parameter is not one this codec can encode.
        """

    @abstractmethod
    def decode(self, bitstream: Bitstream, shape: tuple[int, int]) -> np.ndarray:
        """Return the plane that ``bitstream`` holds.

        Args:
            bitstream: what :meth:`encode` returned, in any buffer of bytes.
            shape: (rows, cols) that the plane must have.

        Raises:
            CodecError: the bytes are damaged, cut short, or hold something else.
        """

    @abstractmethod
    def version(self) -> dict[str, str]:
        """Return what produced the bitstreams: names of programs and libraries to versions."""

    def encode_many(self, planes: Sequence[np.ndarray], parameter: float) -> list[bytes]:
        """Return the bitstreams of planes of one shape; each equals what :meth:`encode` gives."""
        return [self.encode(plane, parameter) for plane in planes]

    def decode_many(
        self, bitstreams: Sequence[Bitstream], shape: tuple[int, int]
    ) -> list[np.ndarray]:
        """Return the planes of bitstreams that all have one shape."""
        return [self.decode(bitstream, shape) for bitstream in bitstreams]


def check_shape(name: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """Return ``shape`` as two positive integers of at most 65535.

    Raises:
        CodecError: it is not that.
    """
    if len(shape) != 2 or not all(1 <= int(side) <= 65535 for side in shape):
        raise CodecError(f"{name}: a plane has two sides of 1 to 65535, not shape {tuple(shape)}")
    return int(shape[0]), int(shape[1])


def check_bitstream(name: str, bitstream: Bitstream) -> bytes:
    """Return ``bitstream`` as bytes.

    Raises:
        CodecError: it is no buffer of bytes.
    """
    if isinstance(bitstream, bytes):
        return bitstream
    try:
        view = memoryview(bitstream)
    except TypeError:
        kind = type(bitstream).__name__
        raise CodecError(f"{name}: a bitstream is bytes, not {kind}") from None
    if view.itemsize != 1:
        raise CodecError(f"{name}: a bitstream is bytes, not items of {view.itemsize} bytes")
    return view.tobytes()


def check_plane(name: str, plane: np.ndarray, peak: int, dtype: np.dtype) -> np.ndarray:
    """Return ``plane`` as a C-contiguous array of ``dtype``.

    Raises:
        CodecError: it is not a 2-D array of integers in 0..``peak``.
    """
    plane = np.asarray(plane)
    check_shape(name, plane.shape)
    if plane.dtype.kind not in "ui":
        raise CodecError(f"{name}: planes hold integer codes, not {plane.dtype}")
    low, high = int(plane.min()), int(plane.max())
    if low < 0 or high > peak:
        raise CodecError(f"{name}: codes must be within 0..{peak}, found {low}..{high}")
    return np.ascontiguousarray(plane, dtype=dtype)


def check_planes(
    name: str, planes: Sequence[np.ndarray], peak: int, dtype: np.dtype
) -> list[np.ndarray]:
    """Return every plane as :func:`check_plane` does, all of one shape.

    Raises:
        CodecError: one of them cannot be encoded, or their shapes differ.
    """
    checked = [check_plane(name, plane, peak, dtype) for plane in planes]
    shapes = {plane.shape for plane in checked}
    if len(shapes) > 1:
        raise CodecError(f"{name}: planes of one call must share a shape, got {sorted(shapes)}")
    return checked
