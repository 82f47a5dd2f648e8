"""The file formats of an export: how features are grouped into files, and how one is written.

Every writer takes features one at a time, so that memory holds one of them, and gives the same
bytes for the same features. What they write opens with the format's own library.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cfqa_data.format.storage import PARTIAL, atomic_path, make_folder, sync_folder, sync_folders

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["FORMATS", "ExportFile", "Format"]

ORIGINAL = "original"
"""Stands where a codec's name does."""


@dataclass(frozen=True)
class ExportFile:
    """One file (for Zarr, one array) of an export.

    Attributes:
        name: its path in the folder.
        shape: (N, C, T, D) of the longest feature that it may hold.
        rows: the facts of every feature in it, in order: for compressed features the columns of
            the labels, for originals those that say something of them.
    """

    name: str
    shape: tuple[int, int, int, int]
    rows: pa.Table

    @property
    def sources(self) -> list[str]:
        """The ids of the sources, in order."""
        return list(dict.fromkeys(self.rows["source_id"].to_pylist()))

    @property
    def shapes(self) -> list[tuple[int, int, int, int]]:
        """The shape of every feature, in order; they differ in T alone."""
        n, c, _, d = self.shape
        if "tokens" not in self.rows.column_names:
            return [self.shape] * self.rows.num_rows
        return [(n, c, tokens, d) for tokens in self.rows["tokens"].to_pylist()]

    @property
    def levels(self) -> list[int]:
        """The levels, in order; none for originals."""
        if "level" not in self.rows.column_names:
            return []
        return sorted(set(self.rows["level"].to_pylist()))


@dataclass(frozen=True)
class Format:
    """A format of an export.

    Attributes:
        suffix: of its files.
        shared: what has a file of its own: every combination of these columns.
        write: writes a part's features to a path, given in the order of its rows.
        places: columns of the index, beside the file: where in it each row's feature is.
    """

    suffix: str
    shared: tuple[str, ...]
    write: Callable[[Path, ExportFile, Iterable[np.ndarray]], None]
    places: Callable[[ExportFile], dict[str, list[Any]]]

    def split(
        self, rows: pa.Table, shape: tuple[int, int, int, int], numbers: dict[str, int]
    ) -> Iterator[ExportFile]:
        """Divide one task's rows of one codec, or its originals, into parts.

        Args:
            rows: by source and level.
            shape: (N, C, T, D).
            numbers: the position of each source among the task's.
        """
        import pyarrow as pa

        members: dict[str, list[int]] = {}
        axes = [axis for axis in self.shared if axis in rows.column_names]
        for position, row in enumerate(rows.select(axes).to_pylist()):
            name = "/".join(filter(None, (_step(row, axis, numbers) for axis in self.shared)))
            members.setdefault(name, []).append(position)
        for name, positions in members.items():
            yield ExportFile(f"{name}{self.suffix}", shape, rows.take(pa.array(positions)))


def _step(row: dict[str, Any], axis: str, numbers: dict[str, int]) -> str:
    """Return one step of a path; a source, whose name may be anything, is a number in it."""
    if axis == "source_id":
        return f"{numbers[row[axis]]:05d}"
    if axis == "level":
        return f"level-{row[axis]}" if axis in row else ""
    return str(row.get(axis, ORIGINAL))


def _write_npy(path: Path, part: ExportFile, features: Iterable[np.ndarray]) -> None:
    (feature,) = features
    with atomic_path(path) as partial, partial.open("wb") as file:
        np.save(file, feature, allow_pickle=False)


def _write_safetensors(path: Path, part: ExportFile, features: Iterable[np.ndarray]) -> None:
    """Write the header and then each tensor: the library's own writer wants them all at once."""
    header, end = {}, 0
    for source, shape in zip(part.sources, part.shapes, strict=True):
        start, end = end, end + 4 * math.prod(shape)
        header[source] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
    with atomic_path(path) as partial, partial.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for feature in features:
            file.write(np.ascontiguousarray(feature, "<f4").data)


def _write_parquet(path: Path, part: ExportFile, features: Iterable[np.ndarray]) -> None:
    """Write a row group per row: the facts, and the feature as a list, of fixed size if it may."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    shapes = pa.array(part.shapes, pa.list_(pa.int32(), 4))
    size = math.prod(part.shape) if set(part.shapes) == {part.shape} else -1
    schema = part.rows.schema.append(pa.field("shape", shapes.type))
    schema = schema.append(pa.field("feature", pa.list_(pa.float32(), size)))
    facts = part.rows.column_names
    with (
        atomic_path(path) as partial,
        partial.open("wb") as file,
        # A dictionary of floats may take two NaNs for one: the features are written as they are.
        pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=facts) as writer,
    ):
        for index, feature in enumerate(features):
            values = pa.array([feature.ravel()], schema.field("feature").type)
            columns = [column.combine_chunks() for column in part.rows.slice(index, 1).columns]
            arrays = [*columns, shapes.slice(index, 1), values]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def _write_zarr(path: Path, part: ExportFile, features: Iterable[np.ndarray]) -> None:
    """Write an array (source, level, N, C, T, D), or (source, N, C, T, D), a chunk per feature.

    Shorter features have zeros behind their last token; `tokens` says how many each source has.
    """
    import zarr
    from zarr.codecs import ZstdCodec

    outer = [len(part.sources), *([len(part.levels)] if part.levels else [])]
    attributes: dict[str, Any] = {"source_ids": part.sources}
    if part.levels:
        attributes["levels"] = part.levels
    if "tokens" in part.rows.column_names:
        counts = dict(zip(part.rows["source_id"].to_pylist(), part.shapes, strict=True))
        attributes["tokens"] = [counts[source][2] for source in part.sources]
    with _atomic_folder(path) as partial, zarr.config.set({"array.write_empty_chunks": True}):
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
        for place, feature in zip(np.ndindex(*outer), features, strict=True):
            array[(*place, ..., slice(feature.shape[2]), slice(None))] = feature


@contextmanager
def _atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a folder beside ``path`` that becomes ``path`` on success and else is removed."""
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    make_folder(partial)
    try:
        yield partial
        for file in partial.rglob("*"):
            if file.is_file():
                with file.open("rb") as written:
                    os.fsync(written.fileno())
        sync_folders(partial)
        partial.replace(path)
        sync_folder(path.parent)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            error.filename = str(path)
        raise


def _in_file(part: ExportFile) -> dict[str, list[Any]]:
    return {}


def _by_key(part: ExportFile) -> dict[str, list[Any]]:
    return {"key": part.rows["source_id"].to_pylist()}


def _by_row(part: ExportFile) -> dict[str, list[Any]]:
    return {"row": list(range(part.rows.num_rows))}


def _by_position(part: ExportFile) -> dict[str, list[Any]]:
    first = {source: index for index, source in enumerate(part.sources)}
    places: dict[str, list[Any]] = {
        "source_index": [first[source] for source in part.rows["source_id"].to_pylist()]
    }
    if part.levels:
        second = {level: index for index, level in enumerate(part.levels)}
        places["level_index"] = [second[level] for level in part.rows["level"].to_pylist()]
    return places


FORMATS = {
    "safetensors": Format(".safetensors", ("task", "codec", "level"), _write_safetensors, _by_key),
    "zarr": Format(".zarr", ("task", "codec"), _write_zarr, _by_position),
    "npy": Format(".npy", ("task", "codec", "level", "source_id"), _write_npy, _in_file),
    "parquet": Format(".parquet", ("task", "codec"), _write_parquet, _by_row),
}
"""Formats by name."""
