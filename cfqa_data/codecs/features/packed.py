"""Base classes of codecs on features whose bitstreams are packed arrays of codes.

A bitstream consists of the parameter as 16 bits, arrays of codes, each zero-padded to a whole byte,
and a CRC-32 of all this and the feature's shape. The rate excludes the checksum.
"""

from __future__ import annotations

import itertools
import math
import struct
import zlib
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from cfqa_data.codecs.base import Bitstream, FeatureCodec, check_bitstream, check_feature
from cfqa_data.codecs.features.formats import Format, Layout, Shape
from cfqa_data.errors import CodecError

__all__ = [
    "FittedCodec",
    "FormatCodec",
    "PackedCodec",
    "exact_product",
    "pack_bits",
    "rounded",
    "unpack_bits",
]

CHECKSUM_BYTES = 4
MAX_TOKENS = 256
"""Evenly spaced tokens per view of a training feature to which tables are fitted."""

LARGEST = float(np.finfo(np.float32).max)


def pack_bits(codes: np.ndarray, bits: int) -> bytes:
    """Return the lowest ``bits`` bits of each code, most significant bit first."""
    word = _word_dtype(bits)
    octets = np.ascontiguousarray(codes, word).reshape(-1, 1).view(np.uint8)
    return np.packbits(np.unpackbits(octets, axis=1)[:, 8 * word.itemsize - bits :]).tobytes()


def unpack_bits(data: bytes, count: int, bits: int) -> np.ndarray:
    """Return ``count`` codes of ``bits`` bits each; the inverse of :func:`pack_bits`."""
    word = _word_dtype(bits)
    digits = np.zeros((count, 8 * word.itemsize), np.uint8)
    unpacked = np.unpackbits(np.frombuffer(data, np.uint8), count=count * bits)
    digits[:, 8 * word.itemsize - bits :] = unpacked.reshape(count, bits)
    return np.packbits(digits, axis=1).view(word)[:, 0].astype(np.uint32)


def _word_dtype(bits: int) -> np.dtype:
    """Return the big-endian dtype that holds codes of ``bits`` bits."""
    return np.dtype(">u1" if bits <= 8 else ">u2" if bits <= 16 else ">u4")


def exact_product(values: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return ``values @ matrix``, identical on every machine.

    Values are rounded to 23 bits below the largest magnitude. If :func:`rounded` returned the
    matrix, every sum is then exact in float64 in any order.
    """
    step = np.ldexp(1.0, np.frexp(np.abs(values).max())[1] - 23)
    return (np.rint(values / step) @ matrix) * step


def rounded(matrix: np.ndarray) -> np.ndarray:
    """Round a matrix of magnitudes up to 1 for :func:`exact_product`; return it as float32."""
    bits = min(23, 29 - int(np.ceil(np.log2(max(matrix.shape)))))
    return np.ldexp(np.rint(np.ldexp(matrix, bits)), -bits).astype(np.float32)


class PackedCodec(FeatureCodec):
    """Base class of codecs whose parameter and feature shape determine the arrays of codes."""

    bits = "stated"
    cost = 0.2

    @abstractmethod
    def layout(self, parameter: int, shape: Shape) -> Layout:
        """Return the shape and the bits per code of each array of codes.

        Raises:
            CodecError: If the parameter is not valid for a feature of that shape.
        """

    @abstractmethod
    def codes(self, feature: np.ndarray, parameter: int) -> Sequence[np.ndarray]:
        """Return a feature's arrays of codes."""

    @abstractmethod
    def values(self, codes: Sequence[np.ndarray], parameter: int, shape: Shape) -> np.ndarray:
        """Return the feature of arrays of codes, with NaN where they are invalid."""

    def encode(self, feature: np.ndarray, parameter: float) -> bytes:
        feature = check_feature(self.name, feature)
        number = int(self.check_parameter(parameter))
        layout = self.layout(number, feature.shape)
        codes = self.codes(feature, number)
        body = struct.pack(">H", number) + b"".join(
            pack_bits(array, bits) for array, (_, bits) in zip(codes, layout, strict=True)
        )
        return body + _checksum(body, feature.shape)

    def decode(self, bitstream: Bitstream, shape: Any) -> np.ndarray:
        data, shape = check_bitstream(self.name, bitstream), tuple(map(int, shape))
        damaged = CodecError(f"{self.name}: the bitstream is damaged, or not one of shape {shape}")
        body = data[:-CHECKSUM_BYTES]
        if len(body) < 2 or len(shape) != 4 or _checksum(body, shape) != data[-CHECKSUM_BYTES:]:
            raise damaged
        number = int(self.check_parameter(struct.unpack_from(">H", body)[0]))
        layout = self.layout(number, shape)
        sizes = [-(-math.prod(part) * bits // 8) for part, bits in layout]
        ends = list(itertools.accumulate(sizes, initial=2))
        if ends[-1] != len(body):
            raise damaged
        codes = [
            unpack_bits(body[end - size : end], math.prod(part), bits).reshape(part)
            for (part, bits), size, end in zip(layout, sizes, ends[1:], strict=True)
        ]
        with np.errstate(all="ignore"):
            values = self.values(codes, number, shape)
            feature = np.clip(values, -LARGEST, LARGEST).astype(np.float32)
        if feature.shape != shape or not np.isfinite(feature).all():
            raise damaged
        return feature

    def stated_bits(self, bitstream: bytes, what: Any) -> int:
        """Return the bits of the bitstream without the checksum."""
        return 8 * (len(bitstream) - CHECKSUM_BYTES)

    def version(self) -> dict[str, str]:
        return {"encoder": f"{self.name} 1"}

    def check_channels(self, kept: int, shape: Shape) -> int:
        """Return the number of channels to keep.

        Raises:
            CodecError: If the feature has fewer channels.
        """
        if kept > shape[-1]:
            raise CodecError(f"{self.name}: cannot keep {kept} channels of {shape[-1]}")
        return kept


class FormatCodec(PackedCodec):
    """Base class of codecs that write all values of a feature in one format."""

    @abstractmethod
    def format(self, parameter: int) -> Format:
        """Return the format for a parameter.

        Raises:
            CodecError: If there is none.
        """

    def layout(self, parameter: int, shape: Shape) -> Layout:
        return self.format(parameter).layout(shape)

    def codes(self, feature: np.ndarray, parameter: int) -> Sequence[np.ndarray]:
        return self.format(parameter).encode(feature)

    def values(self, codes: Sequence[np.ndarray], parameter: int, shape: Shape) -> np.ndarray:
        return self.format(parameter).decode(codes)


class FittedCodec(PackedCodec):
    """Base class of codecs with tables that are fitted to training features, one per layer."""

    learned: Mapping[str, np.ndarray]

    @abstractmethod
    def learn(self, tokens: np.ndarray, seed: int) -> dict[str, np.ndarray]:
        """Return the tables for training tokens, float64 (C, tokens, D); their first axis is C."""

    def fit(self, items: Iterable[np.ndarray], seed: int) -> None:
        features = [_subsample(check_feature(self.name, item)) for item in items]
        sizes = sorted({(f.shape[1], f.shape[3]) for f in features})
        if len(sizes) != 1:
            raise CodecError(f"{self.name}: training features must share C and D, got {sizes}")
        layers, channels = sizes[0]
        tokens = [f.swapaxes(0, 1).reshape(layers, -1, channels) for f in features]
        self.learned = self.learn(np.concatenate(tokens, axis=1).astype(np.float64), seed)

    def tables(self) -> Mapping[str, np.ndarray]:
        return self.learned

    def table(self, key: str, shape: Shape) -> np.ndarray:
        """Return a table after checking that it is finite and has the given shape.

        Raises:
            CodecError: If there is no such table, or it was fitted to features of other shapes.
        """
        if key not in self.learned:
            raise CodecError(f"{self.name}: has no tables: call fit(), or pass those of a dataset")
        table = self.learned[key]
        if table.shape != shape or not np.isfinite(table).all():
            detail = f"its table {key!r} is {table.shape}, not {shape}"
            raise CodecError(f"{self.name}: was fitted to different features: {detail}")
        return table


def _checksum(body: bytes, shape: Shape) -> bytes:
    return struct.pack(">I", zlib.crc32(body, zlib.crc32(repr(tuple(shape)).encode())))


def _subsample(feature: np.ndarray) -> np.ndarray:
    """Return at most ``MAX_TOKENS`` tokens of each view, evenly spaced."""
    count = feature.shape[2]
    return feature[:, :, np.linspace(0, count - 1, min(count, MAX_TOKENS)).astype(int)]
