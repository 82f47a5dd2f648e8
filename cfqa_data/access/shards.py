"""Reading one feature from a shard of an array, without Zarr's machinery around it.

Zarr takes several times as long for a call as decoding a chunk takes. What it does for an array of
this format is short: a shard is its chunks (n, c) of every level one after another, and then an
index: offset and length of each chunk as little-endian uint64, and the CRC-32C of those.

Only the chunks of the slices that are asked for are read. Nothing stays open between two reads, so
a reader is safe in threads and in forked processes.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cfqa_data.access.files import Blob
from cfqa_data.access.selection import Selection

__all__ = ["ShardReader"]

NOTHING = 2**64 - 1
"""Offset and length of a chunk that was not written: all of it is the fill value, 0."""

BLOSC_HEADER = struct.Struct("<4xI4xI")
"""Bytes of the decoded and of the encoded chunk, among other things in its first 16 bytes."""


@dataclass(frozen=True)
class ShardReader:
    """Reads shards of arrays with the chunks and codecs that the format has.

    Attributes:
        levels: features in a shard.
        shape: (N, C, T, D) of a feature.
        dtype: of the stored numbers: uint8, uint16 or float32.
    """

    levels: int
    shape: tuple[int, int, int, int]
    dtype: np.dtype[Any]

    def fits(self, metadata: Mapping[str, Any]) -> bool:
        """Whether an array's `zarr.json` says that it is laid out as this reads it."""
        little = _named("bytes", endian="little")
        inside = [
            _named("transpose", order=[0, 1, 2, 3, 5, 4]),
            little if self.dtype.itemsize > 1 else {"name": "bytes"},
            _named("blosc", cname="zstd", shuffle="bitshuffle"),
        ]
        sharding = _named(
            "sharding_indexed",
            chunk_shape=[1, 1, 1, 1, *self.shape[2:]],
            codecs=inside,
            index_codecs=[little, {"name": "crc32c"}],
            index_location="end",
        )
        expected = {
            "zarr_format": 3,
            "dimension_names": ["source", "level", "N", "C", "T", "D"],
            "data_type": self.dtype.name,
            "fill_value": 0,
            "chunk_grid": _named("regular", chunk_shape=[1, self.levels, *self.shape]),
            "chunk_key_encoding": _named("default", separator="/"),
            "codecs": [sharding],
        }
        return not metadata.get("storage_transformers") and _has(metadata, expected)

    def read(self, blob: Blob, index: np.ndarray, level: int, part: Selection) -> np.ndarray:
        """Return the stored numbers (N, C, T, D) of a part of one level.

        Args:
            blob: the shard.
            index: its index, by :meth:`read_index`.
            level: the level.
            part: which part of the feature, which may have fewer tokens than `shape`.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is damaged.
        """
        tokens, channels = self.shape[2:]
        places = [(int(index[level, n, c, 0]), int(index[level, n, c, 1])) for n, c in part.slices]
        present = [place for place in places if place != (NOTHING, NOTHING)]
        chunks = iter(blob.read(present))
        stored = np.zeros((len(part.views), len(part.layers), tokens, channels), self.dtype)
        for block, place in zip(stored.reshape(-1, tokens, channels), places, strict=True):
            if place != (NOTHING, NOTHING):
                values = np.frombuffer(self._decoded(next(chunks)), self.dtype)
                block[:] = values.reshape(channels, tokens).T
        return part.take_tokens(stored[:, :, : part.full[2]])

    def read_index(self, blob: Blob) -> np.ndarray:
        """Return offset and length of each chunk of a shard, uint64 (levels, N, C, 2).

        Raises:
            OSError: the file cannot be read.
            ValueError: it is damaged.
        """
        import google_crc32c

        count = self.levels * self.shape[0] * self.shape[1]
        length = 16 * count + 4
        if blob.size < length:
            raise ValueError(f"its {blob.size} bytes are fewer than its index takes")
        (index,) = blob.read([(blob.size - length, length)])
        if google_crc32c.value(bytes(index[:-4])) != int.from_bytes(index[-4:], "little"):
            raise ValueError("its index does not have its checksum")
        return np.frombuffer(index[:-4], "<u8").reshape(self.levels, *self.shape[:2], 2)

    def _decoded(self, chunk: bytes | bytearray) -> bytes:
        from numcodecs import blosc

        # Blosc's own threads take twice as long for a chunk as none (zarr turns them off, too).
        blosc.use_threads = False
        tokens, channels = self.shape[2:]
        expected = tokens * channels * self.dtype.itemsize, len(chunk)
        if len(chunk) < 16 or BLOSC_HEADER.unpack_from(chunk) != expected:
            raise ValueError("a chunk is not of the size it should have")
        try:
            decoded: bytes = blosc.Blosc().decode(chunk)
        except RuntimeError as error:
            raise ValueError(str(error)) from None
        return decoded


def _named(name: str, **configuration: Any) -> dict[str, Any]:
    return {"name": name, "configuration": configuration}


def _has(found: Any, expected: Any) -> bool:
    """Whether JSON holds all that is expected, and where that is a list, nothing else."""
    if isinstance(expected, dict):
        present = isinstance(found, dict) and found.keys() >= expected.keys()
        return present and all(_has(found[key], value) for key, value in expected.items())
    if isinstance(expected, list):
        present = isinstance(found, list) and len(found) == len(expected)
        return present and all(map(_has, found, expected))
    return bool(found == expected)
