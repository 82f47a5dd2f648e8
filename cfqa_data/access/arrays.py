"""Read features from the Zarr arrays of codes or values that `cfqa_data.format.codes` writes.

This reader replaces zarr-python, whose overhead per call is several times the time to decode a
chunk. A shard holds the chunks (n, c) of every level one after another, followed by an index: the
offset and length of each chunk as little-endian uint64, and the CRC-32C of the index.

Only the chunks of the selected slices are read. No file stays open between reads, so a reader is
safe in threads and in forked processes.
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

_local = threading.local()

MISSING = 2**64 - 1
"""Offset and length of a chunk that was not written: its values are the fill value, 0."""

BLOSC_HEADER = struct.Struct("<4xI4xI")
"""Sizes of the decoded and encoded chunk in bytes, within the 16-byte header of Blosc."""

CHECKED_SEPARATELY = {"shape", "attributes", "storage_transformers"}
"""Keys of `zarr.json` with checks of their own."""

IGNORED = {"node_type", "typesize", "clevel", "blocksize"}
"""Keys of `zarr.json` that do not affect how chunks are read."""


@dataclass(eq=False)
class ArrayReader:
    """Reads features from an array whose metadata matches the manifest.

    Args:
        files: Files of the dataset.
        name: Folder of the array in the dataset.
        source_ids: Expected sources.
        levels: Expected number of levels.
        shape: Expected (N, C, T, D). T is the largest number of tokens; a :class:`Selection` of a
            feature with fewer tokens states its own shape.
        quantizer: Expected quantiser; None if the array holds float32 values.

    Raises:
        FormatError: If the array is missing, or its metadata differs from the expected.
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
        self._tables = self._read_tables()
        self._indices: dict[int, np.ndarray] = {}

    def read(
        self, source_index: int, level: int, part: Selection | None = None, *, values: bool = False
    ) -> codes.Codes | np.ndarray:
        """Return a compressed feature (N, C, T, D), or a part of it: codes, or float32 values.

        Args:
            source_index: Index of the source in `source_ids`.
            level: Level of the feature.
            part: Part to read; the whole feature by default.
            values: Return float32 values instead of codes if that is faster.

        Raises:
            FormatError: If the shard is missing or damaged.
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
                if self.files.root is None:  # reading it again would be another request
                    self._indices[source_index] = index
            tables = self._tables[list(part.layers)] if self.quantizer else None
            # Looking up each chunk while it is in the cache is faster for several layers. For one
            # layer, `Codes.dequantize` looks up all codes in a single call.
            per_chunk = tables if values and len(part.layers) > 1 else None
            stored = self.shards.read(blob, index, level, part, per_chunk)
            if tables is None or per_chunk is not None:
                return stored
            try:
                return codes.Codes(stored, tables)
            except CodecError:
                raise ValueError("a code out of range") from None

    def _read_tables(self) -> np.ndarray:
        """Check the metadata and return the values of the codes by layer, (C, size).

        The result is empty if the array holds values.
        """
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
        tables = self.quantizer.values()
        return np.stack([table[order] for table, order in zip(tables, orders, strict=True)])


@dataclass(frozen=True)
class ShardReader:
    """Reads shards of arrays that have the chunks and codecs of the format.

    Attributes:
        levels: Number of features in a shard.
        shape: Shape (N, C, T, D) of a feature.
        dtype: Stored dtype: uint8, uint16 or float32.
    """

    levels: int
    shape: tuple[int, int, int, int]
    dtype: np.dtype[Any]

    def fits(self, metadata: Mapping[str, Any]) -> bool:
        """Return whether the `zarr.json` of an array describes the layout of the format."""
        expected = codes.array_metadata(0, self.levels, self.shape, self.dtype, {})
        return not metadata.get("storage_transformers") and _matches(metadata, expected)

    def read(
        self,
        blob: Blob,
        index: np.ndarray,
        level: int,
        part: Selection,
        tables: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return a part of the feature (N, C, T, D) at a level: stored numbers, or their values.

        Args:
            blob: The shard.
            index: Index of the shard, from :meth:`read_index`.
            level: Level of the feature.
            part: Part to read of a feature with at most the tokens of `shape`.
            tables: Values of the codes by selected layer, (C, size); None to return the codes.

        Raises:
            OSError: If the file cannot be read.
            ValueError: If the shard is damaged.
        """
        tokens, channels = self.shape[2:]
        ranges = [(int(index[level, n, c, 0]), int(index[level, n, c, 1])) for n, c in part.slices]
        chunks = iter(blob.read([one for one in ranges if one != (MISSING, MISSING)]))
        views, layers, used = len(part.views), len(part.layers), part.full[2]
        dtype = self.dtype if tables is None else np.dtype(np.float32)
        feature = np.empty((views, layers, used, channels), dtype)
        for chunk_range, at in zip(ranges, np.ndindex(views, layers), strict=True):
            block = feature[at] if tables is None else np.empty((used, channels), self.dtype)
            if chunk_range == (MISSING, MISSING):
                block[:] = 0
            else:
                block[:] = self._decode(next(chunks)).reshape(channels, tokens)[:, :used].T
            if tables is not None:
                if block.max(initial=0) >= tables.shape[1]:
                    raise ValueError("a code out of range")
                feature[at] = codes.look_up(tables[at[1]], block)
        return part.take_tokens(feature)

    def read_index(self, blob: Blob) -> np.ndarray:
        """Return the offset and length of each chunk of a shard, uint64 (levels, N, C, 2).

        Raises:
            OSError: If the file cannot be read.
            ValueError: If the index is damaged.
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

    def _decode(self, chunk: bytes | bytearray) -> np.ndarray:
        """Return the numbers of a chunk, in a buffer that the next call in this thread reuses."""
        from numcodecs import blosc

        # With Blosc's own threads, decoding a chunk takes twice as long; zarr disables them too.
        blosc.use_threads = False
        tokens, channels = self.shape[2:]
        size = tokens * channels * self.dtype.itemsize
        if len(chunk) < 16 or BLOSC_HEADER.unpack_from(chunk) != (size, len(chunk)):
            raise ValueError("a chunk has the wrong size")
        if len(buffer := getattr(_local, "buffer", b"")) != size:
            buffer = _local.buffer = bytearray(size)
        try:
            blosc.decompress(chunk, buffer)
        except RuntimeError as error:
            raise ValueError(str(error)) from None
        return np.frombuffer(buffer, self.dtype)


def _matches(value: Any, expected: Any) -> bool:
    """Return whether JSON has all expected keys of each table, and exactly the expected lists."""
    if isinstance(expected, dict):
        keys = expected.keys() - CHECKED_SEPARATELY - IGNORED
        present = isinstance(value, dict) and value.keys() >= keys
        return present and all(_matches(value[key], expected[key]) for key in keys)
    if isinstance(expected, list):
        present = isinstance(value, list) and len(value) == len(expected)
        return present and all(map(_matches, value, expected))
    return bool(value == expected)
