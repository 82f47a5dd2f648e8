"""A codec of each kind: on planes of codes, on features, on inputs."""

from __future__ import annotations

import zlib

import numpy as np

from cfqa_data.codecs.base import (
    Bitstream,
    Codec,
    FeatureCodec,
    InputCodec,
    check_bitstream,
    check_feature,
    check_plane,
    check_shape,
)
from cfqa_data.errors import CodecError
from cfqa_data.format.facts import Parameter

__all__ = ["Deflate", "Keep", "Stems"]


def _inflate(name: str, bitstream: Bitstream, most: int) -> bytes:
    """Return what zlib packed, of at most so many bytes, without ever having more of them."""
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(check_bitstream(name, bitstream), most + 1)
    except zlib.error as error:
        raise CodecError(f"{name}: damaged bitstream: {error}") from None
    if len(data) > most or not unpacker.eof or unpacker.unused_data:
        raise CodecError(f"{name}: damaged bitstream: it does not hold one feature")
    return data


class Deflate(Codec):
    """Codes rounded to multiples of a step, packed by zlib."""

    name = "deflate"
    title = "zlib on rounded codes"
    parameter = Parameter("step", better="lower", whole=True, lowest=1, highest=128)
    dtype = np.dtype(np.uint8)
    peak = 255

    def encode(self, plane: np.ndarray, parameter: float) -> bytes:
        """Return the bitstream of a plane."""
        step = int(self.check_parameter(parameter))
        rounded = check_plane(self.name, plane, self.peak, self.dtype) // step * step + step // 2
        return zlib.compress(rounded.clip(0, self.peak).astype(np.uint8).tobytes(), 9)

    def decode(self, bitstream: Bitstream, shape: tuple[int, int]) -> np.ndarray:
        """Return the plane of a bitstream."""
        rows, columns = check_shape(self.name, shape)
        data = _inflate(self.name, bitstream, rows * columns)
        if len(data) != rows * columns:
            raise CodecError(f"{self.name}: damaged bitstream: it holds another plane")
        return np.frombuffer(data, np.uint8).reshape(rows, columns).copy()

    def version(self) -> dict[str, str]:
        """Return the version of zlib."""
        return {"zlib": zlib.ZLIB_RUNTIME_VERSION}


class Keep(FeatureCodec):
    """The channels of most energy as float16, the others as zeros."""

    name = "keep"
    title = "channels of most energy"
    parameter = Parameter("channels", better="higher", whole=True, lowest=1)

    def encode(self, feature: np.ndarray, parameter: float) -> bytes:
        """Return a bitmap of the channels, then their values."""
        feature, count = check_feature(self.name, feature), int(self.check_parameter(parameter))
        if count > feature.shape[-1]:
            raise CodecError(f"{self.name}: {count} channels of {feature.shape[-1]}")
        energy = np.square(feature, dtype=np.float64).sum(axis=(0, 1, 2))
        kept = np.zeros(feature.shape[-1], bool)
        kept[np.argsort(-energy, kind="stable")[:count]] = True
        return np.packbits(kept).tobytes() + feature[..., kept].astype("<f2").tobytes()

    def decode(self, bitstream: Bitstream, shape: tuple[int, int, int, int]) -> np.ndarray:
        """Return the feature of a bitstream."""
        data = check_bitstream(self.name, bitstream)
        head = -(-shape[-1] // 8)
        kept = np.unpackbits(np.frombuffer(data[:head], np.uint8))[: shape[-1]].astype(bool)
        if len(data) != head + 2 * int(np.prod(shape[:-1])) * int(kept.sum()):
            raise CodecError(f"{self.name}: damaged bitstream: it holds another feature")
        feature = np.zeros(shape, np.float32)
        values = np.frombuffer(data, "<f2", offset=head)
        feature[..., kept] = values.reshape(*shape[:-1], -1)
        if not np.isfinite(feature).all():
            raise CodecError(f"{self.name}: damaged bitstream: values that are no numbers")
        return feature

    def version(self) -> dict[str, str]:
        """Return the version of NumPy, which rounds to float16."""
        return {"numpy": np.__version__}


class Stems(InputCodec):
    """The first letters of every word of a text, packed by zlib."""

    name = "stems"
    title = "first letters of words"
    parameter = Parameter("letters", better="higher", whole=True, lowest=1, highest=32)

    def encode(self, inputs: str, parameter: float) -> bytes:
        """Return the bitstream of a text."""
        letters = int(self.check_parameter(parameter))
        return zlib.compress(" ".join(word[:letters] for word in inputs.split()).encode(), 9)

    def decode(self, bitstream: Bitstream) -> str:
        """Return the text of a bitstream."""
        data = _inflate(self.name, bitstream, 1 << 16)
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise CodecError(f"{self.name}: damaged bitstream: it is no text") from None

    def version(self) -> dict[str, str]:
        """Return the version of zlib."""
        return {"zlib": zlib.ZLIB_RUNTIME_VERSION}
