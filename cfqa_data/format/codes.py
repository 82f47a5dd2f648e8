"""Compressed features as sharded Zarr v3 arrays (source, level, N, C, T, D) of codes or values.

One shard holds all levels of one source and one chunk one (n, c) slice, so workers never share a
file and a reader fetches single features. A code is stored as its rank by distance from the centre
code of its layer: common codes become small numbers that bitshuffle compresses well, and a rank
needs no more bits than a code. Reading is one lookup per layer in the quantiser's values, sorted by
rank, and returns exactly the float32 values that the codec decoded. Without a quantiser, the array
holds the float32 values. Shorter features are padded with zero tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cfqa_data.arrow import pa, pc
from cfqa_data.errors import CodecError, FormatError, prefixed
from cfqa_data.format.limits import LARGEST_JSON, parse_json, read_limited
from cfqa_data.format.quantizers import Quantizer, quantizer_from_dict
from cfqa_data.format.storage import write_bytes, write_text

__all__ = [
    "METADATA",
    "Codes",
    "array_metadata",
    "create_codes_array",
    "find_centres",
    "look_up",
    "parse_metadata",
    "ranked_codes",
    "shard_name",
    "write_codes",
]

AXES = ("source", "level", "N", "C", "T", "D")
METADATA = "zarr.json"
ZSTD_LEVEL = 5
Shape = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class Codes:
    """A compressed feature as integer indices into tables of values.

    Attributes:
        indices: uint8 or uint16 (N, C, T, D), indices into the layers' tables.
        tables: float32 (C, size), the values of each layer.

    Raises:
        CodecError: If an index is out of range.
    """

    indices: np.ndarray
    tables: np.ndarray

    def __post_init__(self) -> None:
        if self.indices.dtype not in (np.uint8, np.uint16):
            raise CodecError(f"codes must be uint8 or uint16, not {self.indices.dtype}")
        if self.indices.max(initial=0) >= self.tables.shape[1]:
            raise CodecError(f"code {self.indices.max()} in tables of {self.tables.shape[1]}")

    def dequantize(self) -> np.ndarray:
        """Return the feature, float32 (N, C, T, D)."""
        layers = [look_up(table, self.indices[:, layer]) for layer, table in enumerate(self.tables)]
        return layers[0][:, None] if len(layers) == 1 else np.stack(layers, axis=1)


def look_up(table: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Return ``table[indices]`` for valid indices, in a third of the time that NumPy takes."""
    taken = pc.take(pa.array(table), pa.array(indices.reshape(-1)), boundscheck=False)
    values = np.frombuffer(taken.buffers()[1], table.dtype, indices.size)  # no copy, writable
    return values.reshape(indices.shape)


def find_centres(codes: np.ndarray) -> tuple[int, ...]:
    """Return the median code of each layer of codes (..., C, T, D)."""
    layers = np.moveaxis(codes, -3, 0).reshape(codes.shape[-3], -1)
    return tuple(int(m) for m in np.sort(layers, axis=1)[:, layers.shape[1] // 2])


def shard_name(source_index: int) -> str:
    """Return the file name of a source's shard, relative to the array's folder."""
    return f"c/{source_index}/0/0/0/0/0"


def create_codes_array(
    path: Path,
    *,
    sources: int,
    levels: int,
    shape: Shape,
    quantizer: Quantizer | None,
    centres: Sequence[int],
    source_ids: Sequence[str],
) -> None:
    """Write the metadata of an array; existing equal metadata is kept.

    Args:
        path: Folder of the array.
        sources: Length of the source axis.
        levels: Length of the level axis.
        shape: (N, C, T, D) of the longest feature.
        quantizer: Quantiser of the codes, stored in the attributes; None for values.
        centres: The code of each layer that is stored as 0; empty for values.
        source_ids: Ids along the source axis.

    Raises:
        FormatError: If there is an array with other metadata, or the arguments are inconsistent.
    """
    layers = quantizer.layers if quantizer else 0
    counts = {len(centres), layers, shape[1] if quantizer else 0}
    if len(source_ids) != sources or len(counts) > 1:
        raise FormatError(f"{path}: source ids, centres, quantiser and shape {shape} do not agree")
    attributes: dict[str, Any] = {"source_ids": list(source_ids)}
    if quantizer:
        attributes = {"quantizer": quantizer.to_dict(), "centres": list(centres), **attributes}
    dtype = quantizer.dtype if quantizer else np.dtype(np.float32)
    metadata = array_metadata(sources, levels, shape, dtype, attributes)
    if (path / METADATA).exists():
        existing = _read_metadata(path)
        if any(existing.get(key) != metadata[key] for key in ("attributes", "shape")):
            raise FormatError(f"{path}: contains a different array; remove it or build elsewhere")
        return
    write_text(path / METADATA, json.dumps(metadata, indent=2))


def array_metadata(
    sources: int, levels: int, shape: Shape, dtype: np.dtype, attributes: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the `zarr.json` of an array, as Zarr itself writes it.

    Args:
        sources: Length of the source axis.
        levels: Length of the level axis.
        shape: (N, C, T, D) of the longest feature.
        dtype: Type of the stored numbers: uint8, uint16 or float32.
        attributes: The array's attributes.
    """
    little_endian = _named("bytes", endian="little")
    blosc = {
        "typesize": dtype.itemsize,
        "cname": "zstd",
        "clevel": ZSTD_LEVEL,
        "shuffle": "bitshuffle",
    }
    chunk_codecs = [
        # Contiguous tokens of one channel compress better than channels of one token, by a tenth.
        _named("transpose", order=[0, 1, 2, 3, 5, 4]),
        little_endian if dtype.itemsize > 1 else {"name": "bytes"},
        _named("blosc", **blosc, blocksize=0),
    ]
    sharding = _named(
        "sharding_indexed",
        chunk_shape=[1, 1, 1, 1, *shape[2:]],
        codecs=chunk_codecs,
        index_codecs=[little_endian, {"name": "crc32c"}],
        index_location="end",
    )
    return {
        "shape": [sources, levels, *shape],
        "data_type": dtype.name,
        "chunk_grid": _named("regular", chunk_shape=[1, levels, *shape]),
        "chunk_key_encoding": _named("default", separator="/"),
        "fill_value": dtype.type(0).item(),
        "codecs": [sharding],
        "attributes": attributes,
        "dimension_names": list(AXES),
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }


def _named(name: str, **configuration: Any) -> dict[str, Any]:
    return {"name": name, "configuration": configuration}


def write_codes(path: Path, source_index: int, codes: np.ndarray) -> None:
    """Write all levels of one source as one shard, atomically.

    Args:
        path: Folder of an array from :func:`create_codes_array`.
        source_index: Position on the source axis.
        codes: The quantiser's codes, or float32 values, (L, N, C, T, D), with at most the array's T
            tokens.

    Raises:
        FormatError: If the codes do not have the array's shape or dtype.
    """
    metadata = _read_metadata(path)
    attributes = metadata["attributes"]
    quantizer = quantizer_from_dict(attributes["quantizer"]) if "quantizer" in attributes else None
    shape, dtype = metadata["shape"][1:], quantizer.dtype if quantizer else np.dtype(np.float32)
    tokens = codes.shape[3] if codes.ndim == 5 else 0
    expected = [*shape[:3], tokens, *shape[4:]]
    if list(codes.shape) != expected or not 0 < tokens <= shape[3] or codes.dtype != dtype:
        raise FormatError(f"{path}: does not accept codes {codes.shape} of {codes.dtype}")
    if not 0 <= source_index < metadata["shape"][0]:
        raise FormatError(f"{path}: has no source {source_index}")
    stored = np.zeros(shape, dtype)
    target = stored[:, :, :, :tokens]
    if quantizer is None:
        target[...] = codes
    else:
        orders = ranked_codes(quantizer, attributes.get("centres"), path)
        for layer, order in enumerate(orders):
            ranks = np.argsort(order).astype(dtype)
            target[:, :, layer] = look_up(ranks, codes[:, :, layer])
    write_bytes(path / shard_name(source_index), _encode_shard(stored))


def _encode_shard(stored: np.ndarray) -> bytes:
    """Return the bytes of a shard as Zarr writes it, without Zarr's overhead per shard.

    Chunks (n, c) of all levels are stored in Morton order, followed by the index: the offset and
    length of each chunk as little-endian uint64, in C order, and the CRC-32C of these.

    Args:
        stored: (L, N, C, T, D).
    """
    import google_crc32c
    from numcodecs import blosc

    blosc.use_threads = False
    compressor = blosc.Blosc(cname="zstd", clevel=ZSTD_LEVEL, shuffle=blosc.BITSHUFFLE)
    index, chunks, end = np.zeros((*stored.shape[:3], 2), "<u8"), [], 0
    for chunk in sorted(np.ndindex(stored.shape[:3]), key=_morton_key):
        chunks.append(compressor.encode(np.ascontiguousarray(stored[chunk].T)))
        index[chunk] = end, len(chunks[-1])
        end += len(chunks[-1])
    chunks.append(index.tobytes())
    return b"".join([*chunks, google_crc32c.value(chunks[-1]).to_bytes(4, "little")])


def _morton_key(index: Sequence[int]) -> list[int]:
    """Return the sort key of a chunk index in Morton order."""
    bits = max(index).bit_length()
    return [bits, *((x >> bit) & 1 for bit in reversed(range(bits)) for x in reversed(index))]


def ranked_codes(quantizer: Quantizer, centres: object, where: object) -> list[np.ndarray]:
    """Return per layer the codes sorted by rank: nearest to the centre first.

    Args:
        quantizer: Quantiser of the codes.
        centres: The attribute of the array.
        where: Name of the array in messages.

    Raises:
        FormatError: If the centres are not one code per layer.
    """
    size = 1 << quantizer.bits
    if (
        not isinstance(centres, list)
        or len(centres) != quantizer.layers
        or not all(type(centre) is int and 0 <= centre < size for centre in centres)
    ):
        raise FormatError(f"{where}: centres are not one code per layer: {centres!r}")
    codes = np.arange(size)
    return [np.argsort(np.abs(codes - centre), kind="stable") for centre in centres]


def parse_metadata(data: bytes, where: str) -> dict[str, Any]:
    """Return the content of an array's `zarr.json` as plain data.

    Raises:
        FormatError: If it is not a JSON object.
    """
    with prefixed(f"{where}: cannot be read", FormatError, ValueError):
        metadata = parse_json(data)
    if not isinstance(metadata, dict):
        raise FormatError(f"{where}: is not Zarr metadata")
    return metadata


def _read_metadata(path: Path) -> dict[str, Any]:
    with prefixed(f"{path / METADATA}: cannot be read", FormatError, OSError, ValueError):
        data = read_limited(path / METADATA, LARGEST_JSON)
    return parse_metadata(data, str(path / METADATA))
