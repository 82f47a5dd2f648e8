"""Codes of compressed features as sharded Zarr v3 arrays (source, level, N, C, T, D).

One shard holds one source's levels and one chunk one (n, c) slice, so workers never share a file
and a reader fetches single features. A code is stored as its rank by distance from the layer's
centre code: common codes become small numbers that bitshuffle packs well, and no bit more is
needed than for the code itself. Reading is one lookup per layer, in the quantiser's values in
that order, and gives the exact float32 that the codec decoded to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cfqa_data.access.files import Files, LocalFiles
from cfqa_data.access.selection import Selection
from cfqa_data.errors import CfqaError, CodecError, FormatError
from cfqa_data.format.limits import parse_json
from cfqa_data.format.quantizers import Quantizer, quantizer_from_dict
from cfqa_data.format.shards import ShardReader
from cfqa_data.format.storage import write_bytes

__all__ = ["Codes", "CodesReader", "create_codes_array", "find_centres", "write_codes"]

AXES = ("source", "level", "N", "C", "T", "D")
METADATA = "zarr.json"
Shape = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class Codes:
    """A compressed feature as integers, and the values that they stand for.

    Attributes:
        indices: uint8 or uint16 (N, C, T, D), places in the layers' tables.
        tables: float32 (C, size), the values of each layer.

    Raises:
        CodecError: an index is not a place in the tables.
    """

    indices: np.ndarray
    tables: np.ndarray

    def __post_init__(self) -> None:
        if self.indices.dtype not in (np.uint8, np.uint16):
            raise CodecError(f"codes are uint8 or uint16, not {self.indices.dtype}")
        if self.indices.max(initial=0) >= self.tables.shape[1]:
            raise CodecError(f"code {self.indices.max()} in tables of {self.tables.shape[1]}")

    def dequantize(self) -> np.ndarray:
        """Return the feature, float32 (N, C, T, D)."""
        layers = [
            _look_up(table, self.indices[:, layer]) for layer, table in enumerate(self.tables)
        ]
        return layers[0][:, None] if len(layers) == 1 else np.stack(layers, axis=1)


def _look_up(table: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the values at places that are in the table, in a third of the time NumPy takes."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found = pc.take(pa.array(table), pa.array(places.reshape(-1)), boundscheck=False)
    values = np.frombuffer(found.buffers()[1], table.dtype, places.size)  # no copy, writable
    return values.reshape(places.shape)


def find_centres(codes: np.ndarray) -> tuple[int, ...]:
    """Return the median code of each layer of codes (..., C, T, D)."""
    layers = np.moveaxis(codes, -3, 0).reshape(codes.shape[-3], -1)
    return tuple(int(m) for m in np.sort(layers, axis=1)[:, layers.shape[1] // 2])


def create_codes_array(
    path: Path,
    *,
    sources: int,
    levels: int,
    shape: Shape,
    quantizer: Quantizer,
    centres: Sequence[int],
    source_ids: Sequence[str],
) -> None:
    """Create the array's metadata; an array that is there with the same metadata is kept.

    Args:
        path: folder of the array.
        sources: length of the source axis.
        levels: length of the level axis.
        shape: (N, C, T, D) of one feature.
        quantizer: what the codes stand for, kept whole in the attributes.
        centres: the code per layer that is stored as 0.
        source_ids: ids along the source axis.

    Raises:
        FormatError: there is an array of other metadata, or the arguments do not agree.
    """
    import zarr
    from zarr.codecs import BloscCodec, TransposeCodec
    from zarr.storage import MemoryStore

    if len(source_ids) != sources or not len(centres) == quantizer.layers == shape[1]:
        raise FormatError(f"{path}: source ids, centres, quantiser and shape {shape} do not agree")
    attributes: dict[str, Any] = {
        "quantizer": quantizer.to_dict(),
        "centres": list(centres),
        "source_ids": list(source_ids),
    }
    full = (sources, levels, *shape)
    if (path / METADATA).exists():
        metadata = _read_metadata(LocalFiles(path))
        if metadata.get("attributes") != attributes or metadata.get("shape") != list(full):
            raise FormatError(f"{path}: holds another array; remove it or build elsewhere")
        return
    made: dict[str, Any] = {}  # in memory: zarr's own store on disk syncs nothing
    zarr.create_array(
        MemoryStore(made),
        shape=full,
        dtype=quantizer.dtype,
        chunks=(1, 1, 1, 1, *shape[2:]),
        shards=(1, levels, *shape),
        # A channel's tokens side by side are more alike than a token's channels: a tenth smaller.
        filters=TransposeCodec(order=(0, 1, 2, 3, 5, 4)),
        compressors=BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle"),
        fill_value=0,
        dimension_names=list(AXES),
        attributes=attributes,
    )
    write_bytes(path / METADATA, made[METADATA].to_bytes())


def write_codes(path: Path, source_index: int, codes: np.ndarray) -> None:
    """Write all levels of one source as one shard, atomically.

    Args:
        path: folder of an array from :func:`create_codes_array`.
        source_index: position on the source axis.
        codes: the quantiser's codes (L, N, C, T, D).

    Raises:
        FormatError: the codes do not have the array's shape or dtype.
    """
    import zarr
    from zarr.buffer import default_buffer_prototype
    from zarr.storage import MemoryStore

    head = LocalFiles(path).read(METADATA)
    metadata = _parse_metadata(head, str(path / METADATA))
    quantizer, centres = _read_attributes(path, metadata)
    if list(codes.shape) != metadata["shape"][1:] or codes.dtype != quantizer.dtype:
        raise FormatError(f"{path}: does not take codes {codes.shape} of {codes.dtype}")
    if not 0 <= source_index < metadata["shape"][0]:
        raise FormatError(f"{path}: has no source {source_index}")
    stored = np.empty_like(codes)
    for layer, order in enumerate(_orders(quantizer, centres)):
        ranks = np.argsort(order).astype(codes.dtype)
        stored[:, :, layer] = ranks[codes[:, :, layer]]
    made: dict[str, Any] = {METADATA: default_buffer_prototype().buffer.from_bytes(head)}
    # Shards of nothing but zeros are written too, so that a missing file always means a missing
    # shard. `open_array` takes a config and, for an array that is there, passes over it.
    with zarr.config.set({"array.write_empty_chunks": True}):
        array = zarr.open_array(MemoryStore(made), mode="r+")
    array[source_index] = stored
    name = _shard_name(source_index)
    write_bytes(path / name, made[name].to_bytes())


class CodesReader:
    """Reads features from an array of codes; reads its metadata on first use, and when unpickled.

    Args:
        path: folder of the array, or its files wherever they lie.
        sources: how many sources it must have.
        levels: how many levels it must have.
        shape: the (N, C, T, D) it must have.

    Raises:
        FormatError: (on first use) the array is missing or is not what was asked for.
    """

    def __init__(self, path: Path | Files, *, sources: int, levels: int, shape: Shape) -> None:
        self.files = path if isinstance(path, Files) else LocalFiles(path)
        self.where = self.files.location
        self.full = (sources, levels, *shape)
        self._open: tuple[ShardReader, np.ndarray, list[str], Quantizer] | None = None
        self._indices: dict[int, np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": None, "_indices": {}}

    @property
    def source_ids(self) -> list[str]:
        """Ids along the source axis."""
        return list(self._opened()[2])

    @property
    def quantizer(self) -> Quantizer:
        """What the codes stand for."""
        return self._opened()[3]

    def read(self, source_index: int, level: int) -> np.ndarray:
        """Return one compressed feature, float32 (N, C, T, D).

        Raises:
            FormatError: the shard is missing or damaged.
        """
        return self.read_codes(source_index, level).dequantize()

    def read_codes(self, source_index: int, level: int, part: Selection | None = None) -> Codes:
        """Return a feature, or a part, as stored numbers and the values that they stand for."""
        part = part or Selection.of(self.full[2:])
        stored = self.read_stored(source_index, level, part)
        return Codes(stored, self._opened()[1][list(part.layers)])

    def read_stored(
        self, source_index: int, level: int, part: Selection | None = None
    ) -> np.ndarray:
        """Return the stored numbers (N, C, T, D) of one compressed feature, or of a part of it."""
        shards, tables, *_ = self._opened()
        sources, levels = self.full[:2]
        if not (0 <= source_index < sources and 0 <= level < levels):
            raise FormatError(f"{self.where}: has no source {source_index} at level {level}")
        name = _shard_name(source_index)
        shard = self.files.where(name)
        try:
            with self.files.open(name) as blob:
                index = self._indices.get(source_index)
                if index is None:
                    index = shards.read_index(blob)
                    if self.files.root is None:  # asking again is a request
                        self._indices[source_index] = index
                stored = shards.read(blob, index, level, part or Selection.of(self.full[2:]))
        except (FileNotFoundError, IsADirectoryError):
            raise FormatError(f"{shard}: missing shard; build or fetch the dataset again") from None
        except (OSError, ValueError) as error:
            raise FormatError(f"{shard}: damaged shard: {error}") from error
        if stored.max(initial=0) >= tables[0].size:
            raise FormatError(f"{shard}: damaged shard: a code out of range")
        return stored

    def _opened(self) -> tuple[ShardReader, np.ndarray, list[str], Quantizer]:
        """Return what reads the shards, the values per layer, the sources and the quantiser."""
        if self._open is None:
            self._open = self._read_head()
        return self._open

    def _read_head(self) -> tuple[ShardReader, np.ndarray, list[str], Quantizer]:
        metadata = _read_metadata(self.files)
        if metadata.get("shape") != list(self.full):
            raise FormatError(
                f"{self.where}: shape is {metadata.get('shape')}, the manifest says {self.full}"
            )
        quantizer, centres = _read_attributes(self.where, metadata)
        if quantizer.layers != self.full[3]:
            raise FormatError(f"{self.where}: the quantiser is not one for this shape")
        ids = metadata["attributes"].get("source_ids")
        if not isinstance(ids, list) or not all(isinstance(entry, str) for entry in ids):
            raise FormatError(f"{self.where}: source ids are not a list of texts")
        shards = ShardReader(self.full[1], self.full[2:], np.dtype(quantizer.dtype))
        if not shards.fits(metadata):
            raise FormatError(
                f"{self.where}: chunks, shards, codecs or dtype are not as the format has them"
            )
        orders = _orders(quantizer, centres)
        tables = [table[o] for table, o in zip(quantizer.values(), orders, strict=True)]
        return shards, np.stack(tables), ids, quantizer


def _shard_name(source_index: int) -> str:
    return f"c/{source_index}/0/0/0/0/0"


def _orders(quantizer: Quantizer, centres: Sequence[int]) -> list[np.ndarray]:
    """Return per layer the codes in the order of their stored numbers: nearest the centre first."""
    codes = np.arange(1 << quantizer.bits)
    return [np.argsort(np.abs(codes - centre), kind="stable") for centre in centres]


def _read_metadata(files: Files) -> dict[str, Any]:
    """Return an array's `zarr.json`, read as plain data before anything is made from it."""
    return _parse_metadata(files.read(METADATA), files.where(METADATA))


def _parse_metadata(data: bytes, where: str) -> dict[str, Any]:
    try:
        metadata = parse_json(data)
    except ValueError as error:
        raise FormatError(f"{where}: cannot be read: {error}") from None
    if not isinstance(metadata, dict):
        raise FormatError(f"{where}: is not Zarr metadata")
    return metadata


def _read_attributes(path: object, metadata: dict[str, Any]) -> tuple[Quantizer, list[int]]:
    attributes = metadata.get("attributes")
    if not isinstance(attributes, dict):
        raise FormatError(f"{path}: has no attributes")
    try:
        quantizer = quantizer_from_dict(attributes.get("quantizer"))
    except CfqaError as error:
        raise FormatError(f"{path}: {error}") from None
    centres = attributes.get("centres")
    if (
        not isinstance(centres, list)
        or len(centres) != quantizer.layers
        or not all(isinstance(c, int) and 0 <= c < 1 << quantizer.bits for c in centres)
    ):
        raise FormatError(f"{path}: centres are not one code per layer: {centres!r}")
    return quantizer, centres
