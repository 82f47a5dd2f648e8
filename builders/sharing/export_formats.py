"""The file formats of an export: how features are grouped into files, and how files are written.

Every writer takes features one at a time, so that only one is in memory, and writes the same bytes
for the same features. The format's own library can read the files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cfqa_data.arrow import pa, pq
from cfqa_data.format.storage import atomic_path

__all__ = ["FORMATS", "ExportFile", "Format"]


@dataclass(frozen=True)
class ExportFile:
    """One file (for Zarr, one array) of an export.

    Attributes:
        name: Path of the file in the folder.
        shape: Shape (N, C, T, D) of the task's longest feature.
        rows: A row per feature in the file, in order: the columns of labels for compressed
            features, those that describe originals for originals.
    """

    name: str
    shape: tuple[int, int, int, int]
    rows: pa.Table

    @property
    def sources(self) -> list[str]:
        """Ids of the sources, in order."""
        return list(dict.fromkeys(self.rows["source_id"].to_pylist()))

    @property
    def shapes(self) -> list[tuple[int, int, int, int]]:
        """Shape of every feature, in order; shapes differ in T only."""
        n, c, _, d = self.shape
        if "tokens" not in self.rows.column_names:
            return [self.shape] * self.rows.num_rows
        return [(n, c, tokens, d) for tokens in self.rows["tokens"].to_pylist()]

    @property
    def levels(self) -> list[int]:
        """Levels in ascending order; empty for originals."""
        if "level" not in self.rows.column_names:
            return []
        return sorted(set(self.rows["level"].to_pylist()))


@dataclass(frozen=True)
class Format:
    """A format of an export.

    Attributes:
        suffix: Suffix of the files.
        write: Function that writes features, in the order of a file's rows, to a path.
        locations: Function that returns columns of the index which locate the features in a file.
        by_level: Whether each level has its own file.
        by_source: Whether each source has its own file.
    """

    suffix: str
    write: Callable[[Path, ExportFile, Iterable[np.ndarray]], None]
    locations: Callable[[ExportFile], dict[str, Any]]
    by_level: bool = False
    by_source: bool = False

    def name(self, task: str, codec: str, level: int | None, number: int) -> str:
        """Return the path of a feature's file, with the source's number: ids are arbitrary."""
        steps = [task, codec]
        if self.by_level and level is not None:
            steps.append(f"level-{level}")
        if self.by_source:
            steps.append(f"{number:05d}")
        return "/".join(steps) + self.suffix


def _write_npy(path: Path, part: ExportFile, features: Iterable[np.ndarray]) -> None:
    (feature,) = features
    with atomic_path(path) as partial, partial.open("wb") as file:
        np.save(file, feature, allow_pickle=False)


def _write_safetensors(path: Path, part: ExportFile, features: Iterable[np.ndarray]) -> None:
    """Write the header, then tensor by tensor: the library's writer needs all of them at once."""
    header, end = {}, 0
    for source, shape in zip(part.sources, part.shapes, strict=True):
        start, end = end, end + 4 * math.prod(shape)
        header[source] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors are aligned to 8 bytes
    with atomic_path(path) as partial, partial.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for feature in features:
            file.write(np.ascontiguousarray(feature, "<f4").data)


def _write_parquet(path: Path, part: ExportFile, features: Iterable[np.ndarray]) -> None:
    """Write a row group per row: its columns, and the feature as a list, of fixed size if equal."""
    shapes = pa.array(part.shapes, pa.list_(pa.int32(), 4))
    size = math.prod(part.shape) if set(part.shapes) == {part.shape} else -1
    schema = part.rows.schema.append(pa.field("shape", shapes.type))
    schema = schema.append(pa.field("feature", pa.list_(pa.float32(), size)))
    facts = part.rows.column_names
    with (
        atomic_path(path) as partial,
        partial.open("wb") as file,
        # Features have no dictionary, which might merge NaNs that have different bits.
        pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=facts) as writer,
    ):
        for index, feature in enumerate(features):
            values = pa.array([feature.ravel()], schema.field("feature").type)
            columns = [column.combine_chunks() for column in part.rows.slice(index, 1).columns]
            arrays = [*columns, shapes.slice(index, 1), values]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def _write_zarr(path: Path, part: ExportFile, features: Iterable[np.ndarray]) -> None:
    """Write an array (source, level, N, C, T, D), or (source, N, C, T, D), in chunks of a feature.

    Shorter features are padded with zeros; the attribute `tokens` has the tokens of each source.
    """
    import zarr
    from zarr.codecs import ZstdCodec

    outer = [len(part.sources), *([len(part.levels)] if part.levels else [])]
    attributes: dict[str, Any] = {"source_ids": part.sources}
    if part.levels:
        attributes["levels"] = part.levels
    if "tokens" in part.rows.column_names:
        columns = part.rows.select(["source_id", "tokens"]).to_pydict().values()
        attributes["tokens"] = list(dict(zip(*columns, strict=True)).values())
    with atomic_path(path) as partial, zarr.config.set({"array.write_empty_chunks": True}):
        array = zarr.create_array(
            str(partial),
            shape=(*outer, *part.shape),
            dtype="float32",
            chunks=(*([1] * len(outer)), *part.shape),
            compressors=ZstdCodec(level=3),
            fill_value=0,
            dimension_names=["source", *(["level"] if part.levels else []), "N", "C", "T", "D"],
            attributes=attributes,
        )
        for index, feature in zip(np.ndindex(*outer), features, strict=True):
            array[(*index, ..., slice(feature.shape[2]), slice(None))] = feature


def _indices(part: ExportFile) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    axes: list[tuple[str, list[Any]]] = [("source_id", part.sources), ("level", part.levels)]
    for column, labels in axes if part.levels else axes[:1]:
        position = {label: index for index, label in enumerate(labels)}
        name = f"{column.removesuffix('_id')}_index"
        columns[name] = [position[value] for value in part.rows[column].to_pylist()]
    return columns


FORMATS = {
    "safetensors": Format(
        ".safetensors",
        _write_safetensors,
        lambda part: {"key": part.rows["source_id"].to_pylist()},
        by_level=True,
    ),
    "zarr": Format(".zarr", _write_zarr, _indices),
    "npy": Format(".npy", _write_npy, lambda part: {}, by_level=True, by_source=True),
    "parquet": Format(".parquet", _write_parquet, lambda part: {"row": range(len(part.rows))}),
}
"""Formats by name."""
