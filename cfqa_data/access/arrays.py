"""Reading features from an array of codes or values, as `cfqa_data.format.codes` writes it.

Zarr takes several times as long for a call as decoding a chunk takes. What it does for an array of
this format is short: a shard is its chunks (n, c) of every level one after another, and then an
index: offset and length of each chunk as little-endian uint64, and the CRC-32C of those.

Only the chunks of the slices that are asked for are read. Nothing stays open between two reads, so
a reader is safe in threads and in forked processes.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cfqa_data.access.files import Blob, Files
from cfqa_data.access.selection import Selection
from cfqa_data.errors import CodecError, FormatError
from cfqa_data.format import codes
from cfqa_data.format.quantizers import Quantizer

__all__ = ["ArrayReader", "ShardReader"]

_decoded = threading.local()

NOTHING = 2**64 - 1
"""Offset and length of a chunk that was not written: all of it is the fill value, 0."""

BLOSC_HEADER = struct.Struct("<4xI4xI")
"""Bytes of the decoded and of the encoded chunk, among other things in its first 16 bytes."""

APART = {"shape", "attributes", "storage_transformers"}
"""Keys of `zarr.json` that are looked at by themselves."""

FREE = {"node_type", "typesize", "clevel", "blocksize"}
"""Those that say nothing of how chunks are read."""


@dataclass(eq=False)
class ArrayReader:
    """Reads features from an array, whose metadata is read first.

    Args:
        files: of the dataset.
        name: folder of the array in it.
        source_ids: the sources that it must have.
        levels: how many levels it must have.
        shape: the (N, C, T, D) it must have; a feature of fewer tokens is read by its own shape.
        quantizer: what its codes must stand for; None if it holds values.

    Raises:
        FormatError: the array is missing or is not what was asked for.
    """

    files: Files
    name: str
    source_ids: Sequence[str]
    levels: int
    shape: tuple[int, int, int, int]
    quantizer: Quantizer | None

    def __post_init__(self) -> None:
        self.where = self.files.where(self.name)
        dtype = self.quantizer.dtype if self.quantizer else np.dtype("f4")
        self.shards = ShardReader(self.levels, self.shape, dtype)
        self._tables = self._read_head()
        self._indices: dict[int, np.ndarray] = {}

    def read(
        self, source_index: int, level: int, part: Selection | None = None, *, values: bool = False
    ) -> codes.Codes | np.ndarray:
        """Return a compressed feature (N, C, T, D), or a part of it: codes, or float32 values.

        Args:
            source_index: place of its source.
            level: its level.
            part: which part; by default all.
            values: give the values of codes where that is faster.

        Raises:
            FormatError: the shard is missing or damaged.
        """
        part = part or Selection.of(self.shape)
        if not (0 <= source_index < len(self.source_ids) and 0 <= level < self.levels):
            raise FormatError(f"{self.where}: has no source {source_index} at level {level}")
        name = f"{self.name}/{codes.shard_name(source_index)}"
        missing = "missing shard; build or fetch the dataset again"
        with self.files.errors(name, "damaged shard", missing), self.files.open(name) as blob:
            index = self._indices.get(source_index)
            if index is None:
                index = self.shards.read_index(blob)
                if self.files.root is None:  # asking again is a request
                    self._indices[source_index] = index
            tables = self._tables[list(part.layers)] if self.quantizer else None
            # At once, of several layers: all codes of one are looked up in one table behind this.
            at_once = tables if values and len(part.layers) > 1 else None
            stored = self.shards.read(blob, index, level, part, at_once)
            if tables is None or at_once is not None:
                return stored
            try:
                return codes.Codes(stored, tables)
            except CodecError:
                raise ValueError("a code out of range") from None

    def _read_head(self) -> np.ndarray:
        """Return what the stored numbers of each layer stand for, (C, size); of values, nothing."""
        name = f"{self.name}/{codes.METADATA}"
        where = self.files.where(name)
        metadata = codes.parse_metadata(self.files.read(name), where)
        full = (len(self.source_ids), self.levels, *self.shape)
        if metadata.get("shape") != list(full):
            raise FormatError(
                f"{self.where}: shape is {metadata.get('shape')}, the manifest says {full}"
            )
        if not self.shards.fits(metadata):
            raise FormatError(
                f"{self.where}: chunks, shards, codecs or dtype do not conform to the format"
            )
        attributes = metadata.get("attributes")
        if not isinstance(attributes, dict):
            raise FormatError(f"{self.where}: has no attributes")
        if attributes.get("source_ids") != list(self.source_ids):
            raise FormatError(f"{where}: its sources differ from the manifest's")
        if attributes.get("quantizer") != (self.quantizer.to_dict() if self.quantizer else None):
            raise FormatError(f"{where}: its quantiser differs from the manifest's")
        if self.quantizer is None:
            return np.empty((0, 0), np.float32)
        orders = codes.ranked_codes(self.quantizer, attributes.get("centres"), self.where)
        values = self.quantizer.values()
        return np.stack([table[order] for table, order in zip(values, orders, strict=True)])


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
        expected = codes.array_metadata(0, self.levels, self.shape, self.dtype, {})
        return not metadata.get("storage_transformers") and _has(metadata, expected)

    def read(
        self,
        blob: Blob,
        index: np.ndarray,
        level: int,
        part: Selection,
        tables: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return the stored numbers (N, C, T, D) of a part of one level, or what they stand for.

        Args:
            blob: the shard.
            index: its index, by :meth:`read_index`.
            level: the level.
            part: which part of the feature, which may have fewer tokens than `shape`.
            tables: (C, size), the value of each number, by layer of the part.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is damaged.
        """
        tokens, channels = self.shape[2:]
        places = [(int(index[level, n, c, 0]), int(index[level, n, c, 1])) for n, c in part.slices]
        present = [place for place in places if place != (NOTHING, NOTHING)]
        chunks = iter(blob.read(present))
        views, layers, used = len(part.views), len(part.layers), part.full[2]
        dtype = self.dtype if tables is None else np.dtype(np.float32)
        whole = np.empty((views, layers, used, channels), dtype)
        for place, at in zip(places, np.ndindex(views, layers), strict=True):
            block = whole[at] if tables is None else np.empty((used, channels), self.dtype)
            if place == (NOTHING, NOTHING):
                block[:] = 0
            else:
                block[:] = self._decoded(next(chunks)).reshape(channels, tokens)[:, :used].T
            if tables is not None:
                if block.max(initial=0) >= tables.shape[1]:
                    raise ValueError("a code out of range")
                whole[at] = codes.look_up(tables[at[1]], block)
        return part.take_tokens(whole)

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
            raise ValueError(f"its {blob.size} bytes are too few for its index")
        (index,) = blob.read([(blob.size - length, length)])
        if google_crc32c.value(bytes(index[:-4])) != int.from_bytes(index[-4:], "little"):
            raise ValueError("the checksum of its index is wrong")
        return np.frombuffer(index[:-4], "<u8").reshape(self.levels, *self.shape[:2], 2)

    def _decoded(self, chunk: bytes | bytearray) -> np.ndarray:
        """Return a chunk's numbers, in memory that this thread's next chunk is decoded to."""
        from numcodecs import blosc

        # Blosc's own threads take twice as long for a chunk as none (zarr turns them off, too).
        blosc.use_threads = False
        tokens, channels = self.shape[2:]
        size = tokens * channels * self.dtype.itemsize
        if len(chunk) < 16 or BLOSC_HEADER.unpack_from(chunk) != (size, len(chunk)):
            raise ValueError("a chunk has the wrong size")
        if len(memory := getattr(_decoded, "memory", b"")) != size:
            memory = _decoded.memory = bytearray(size)
        try:
            blosc.decompress(chunk, memory)
        except RuntimeError as error:
            raise ValueError(str(error)) from None
        return np.frombuffer(memory, self.dtype)


def _has(found: Any, expected: Any) -> bool:
    """Whether JSON holds all that is expected, and where that is a list, nothing else."""
    if isinstance(expected, dict):
        needed = expected.keys() - APART - FREE
        present = isinstance(found, dict) and found.keys() >= needed
        return present and all(_has(found[key], expected[key]) for key in needed)
    if isinstance(expected, list):
        present = isinstance(found, list) and len(found) == len(expected)
        return present and all(map(_has, found, expected))
    return bool(found == expected)
