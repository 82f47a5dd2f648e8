"""Reading features from an array of codes or values, as `cfqa_data.format.codes` writes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cfqa_data.access.files import Files
from cfqa_data.access.selection import Selection
from cfqa_data.access.shards import ShardReader
from cfqa_data.errors import FormatError
from cfqa_data.format.codes import METADATA, Codes, parse_metadata, ranked_codes, shard_name
from cfqa_data.format.quantizers import Quantizer

__all__ = ["ArrayReader"]


class ArrayReader:
    """Reads features from an array; reads its metadata on first use, and when unpickled.

    Args:
        files: of the dataset.
        name: folder of the array in it.
        source_ids: the sources that it must have.
        levels: how many levels it must have.
        shape: the (N, C, T, D) it must have; a feature of fewer tokens is read by its own shape.
        quantizer: what its codes must stand for; None if it holds values.

    Raises:
        FormatError: (on first use) the array is missing or is not what was asked for.
    """

    def __init__(
        self,
        files: Files,
        name: str,
        *,
        source_ids: Sequence[str],
        levels: int,
        shape: tuple[int, int, int, int],
        quantizer: Quantizer | None,
    ) -> None:
        self.files, self.name, self.where = files, name, files.where(name)
        self.source_ids, self.levels, self.shape = source_ids, levels, shape
        self.quantizer = quantizer
        self.shards = ShardReader(levels, shape, quantizer.dtype if quantizer else np.dtype("f4"))
        self._tables: np.ndarray | None = None
        self._indices: dict[int, np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_tables": None, "_indices": {}}

    def read(
        self, source_index: int, level: int, part: Selection | None = None
    ) -> Codes | np.ndarray:
        """Return a compressed feature (N, C, T, D), or a part of it: codes, or float32 values.

        Raises:
            FormatError: the shard is missing or damaged.
        """
        tables, part = self.tables(), part or Selection.of(self.shape)
        if not (0 <= source_index < len(self.source_ids) and 0 <= level < self.levels):
            raise FormatError(f"{self.where}: has no source {source_index} at level {level}")
        name = f"{self.name}/{shard_name(source_index)}"
        missing = "missing shard; build or fetch the dataset again"
        with self.files.errors(name, "damaged shard", missing), self.files.open(name) as blob:
            index = self._indices.get(source_index)
            if index is None:
                index = self.shards.read_index(blob)
                if self.files.root is None:  # asking again is a request
                    self._indices[source_index] = index
            stored = self.shards.read(blob, index, level, part)
        if self.quantizer is None:
            return stored
        if stored.max(initial=0) >= tables[0].size:
            raise FormatError(f"{self.files.where(name)}: damaged shard: a code out of range")
        return Codes(stored, tables[list(part.layers)])

    def tables(self) -> np.ndarray:
        """Return what the stored numbers of each layer stand for, (C, size); of values, nothing.

        The first call sees that the array is the one that was asked for.
        """
        if self._tables is None:
            self._tables = self._read_head()
        return self._tables

    def _read_head(self) -> np.ndarray:
        name = f"{self.name}/{METADATA}"
        where = self.files.where(name)
        metadata = parse_metadata(self.files.read(name), where)
        full = (len(self.source_ids), self.levels, *self.shape)
        if metadata.get("shape") != list(full):
            raise FormatError(
                f"{self.where}: shape is {metadata.get('shape')}, the manifest says {full}"
            )
        if not self.shards.fits(metadata):
            raise FormatError(
                f"{self.where}: chunks, shards, codecs or dtype are not as the format has them"
            )
        attributes = metadata.get("attributes")
        if not isinstance(attributes, dict):
            raise FormatError(f"{self.where}: has no attributes")
        if attributes.get("source_ids") != list(self.source_ids):
            raise FormatError(f"{where}: its sources are not the manifest's")
        if attributes.get("quantizer") != (self.quantizer.to_dict() if self.quantizer else None):
            raise FormatError(f"{where}: its quantiser is not the manifest's")
        if self.quantizer is None:
            return np.empty((0, 0), np.float32)
        orders = ranked_codes(self.quantizer, attributes.get("centres"), self.where)
        values = self.quantizer.values()
        return np.stack([table[order] for table, order in zip(values, orders, strict=True)])
