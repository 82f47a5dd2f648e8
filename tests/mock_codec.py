"""A codec without dependencies, which deflates planes."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from cfqa_data.codecs.sandbox.isolated import IsolatedCodec
from cfqa_data.errors import CodecError

__all__ = ["MockCodec", "mock_codec"]


class MockCodec:
    """A codec whose bitstream is the deflated plane."""

    def __init__(self, quantizer_dtype: np.dtype) -> None:
        self.dtype = quantizer_dtype
        self.peak = int(np.iinfo(quantizer_dtype).max)

    def encode(self, plane: np.ndarray) -> bytes:
        return zlib.compress(plane.astype(self.dtype).tobytes())

    def decode(self, bitstream: bytes, shape: tuple[int, int]) -> np.ndarray:
        try:
            plane = np.frombuffer(zlib.decompress(bitstream), self.dtype)
        except zlib.error as error:
            raise CodecError(f"bad bytes: {error}") from None
        return plane.reshape(shape)


def mock_codec(name: str, untrusted: bool = False, **_: Any) -> MockCodec | IsolatedCodec:
    """Create a mock codec, as `get_codec` creates others."""
    if untrusted:
        return IsolatedCodec(name, factory=f"{__name__}:mock_codec")
    return MockCodec(np.dtype(np.uint8 if "hyperprior" in name else np.uint16))
