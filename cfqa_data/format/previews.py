"""The table of originals with pictures, which `load_dataset` and the Hub's viewer show.

It is separate from the table of originals, which therefore stays small and readable by version
0.1.0. Only `datasets` and functions that extend a dataset read the pictures; other readers use no
more than the names of their columns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from cfqa_data.arrow import pa, pc
from cfqa_data.errors import FormatError
from cfqa_data.format.facts import TaskEntry
from cfqa_data.format.invariants import ANSWERS, picture_type, preview_columns
from cfqa_data.format.limits import pointer
from cfqa_data.format.schema import NEW_COLUMNS, ORIGINAL_COLUMNS

__all__ = [
    "ANSWERS",
    "MAX_SIDE",
    "PREVIEW_COLUMNS",
    "column_meaning",
    "previews_table",
    "read_pictures",
    "read_previews",
    "sort_previews",
]

MAX_SIDE = 240
"""Pixels of the longer side of a picture; larger pictures are scaled down."""

PREVIEW_COLUMNS: dict[str, tuple[str, str]] = {
    "image": ("image", "what the feature was made from"),
    "truth": ("image", "the ground truth, as the task draws it"),
    "output_original": ("image", "the task's output from the original feature"),
    "output_CODEC_LEVEL": ("image", "its output from the feature by a codec at a level"),
    ANSWERS: ("string", "the same in words, of a task that draws no pictures"),
}
"""Column of `previews/originals.parquet` -> (dtype, meaning); the columns of originals follow.

Columns without any value are left out; single values may be null.
"""


def previews_table(originals: pa.Table, previews: pa.Table) -> pa.Table | None:
    """Return the table of originals with pictures, or None if there are no pictures.

    Args:
        originals: The table of originals.
        previews: The result of :func:`sort_previews`.
    """
    previews = previews.combine_chunks()
    names = previews.column_names
    if not names:
        return None
    columns = {n: previews[n] if n == ANSWERS else _to_picture_column(previews[n]) for n in names}
    columns |= dict(zip(originals.column_names, originals.columns, strict=True))
    table = pa.table(columns)
    features = {field.name: _feature_type(field) for field in table.schema}
    return table.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )


def sort_previews(originals: pa.Table, previews: pa.Table) -> pa.Table:
    """Return previews in the order of originals and of columns, without empty columns.

    Args:
        originals: The table of originals.
        previews: `source_id`, pictures as the bytes of files, and answers, by column; a row for
            each original, in any order.
    """

    def sort_key(name: str) -> tuple[int, str, int]:
        codec, _, level = name.removeprefix("output_").rpartition("_")
        known = list(PREVIEW_COLUMNS)
        if name in known:
            return known.index(name), "", 0
        return known.index("output_CODEC_LEVEL"), codec, int(level)

    order = pc.index_in(originals["source_id"], value_set=previews["source_id"].combine_chunks())
    names = [n for n in previews.column_names if previews[n].null_count < previews.num_rows]
    return previews.select(sorted((n for n in names if n != "source_id"), key=sort_key)).take(order)


def read_previews(
    path: Path | str, data: bytes, tasks: Mapping[str, TaskEntry]
) -> tuple[list[str], pa.Table]:
    """Return the names of the preview columns, and the table of the other columns.

    Args:
        path: Name of the file.
        data: Content of the file.
        tasks: Tasks of the manifest, with their sources, codecs and levels.

    Raises:
        FormatError: If it is not a valid table of previews.
    """
    return _read(path, data, tasks, pictures=False)


def read_pictures(path: Path | str, data: bytes, tasks: Mapping[str, TaskEntry]) -> pa.Table:
    """Return `source_id`, pictures as the bytes of files, and answers.

    Arguments and errors are those of :func:`read_previews`; the header of each picture is checked,
    too.
    """
    shown, table = _read(path, data, tasks, pictures=True)
    for name in shown:
        if name != ANSWERS:
            heads = pc.binary_slice(table[name], 0, 30).to_pylist()
            for row, head in enumerate(heads):
                if head is not None and not all(0 < side <= MAX_SIDE for side in _webp_size(head)):
                    raise FormatError(
                        f"{path}: {name!r} of row {row} is not a WebP file of at most {MAX_SIDE} "
                        "pixels a side; build or fetch it again"
                    )
    return table


def _read(
    path: Path | str, data: bytes, tasks: Mapping[str, TaskEntry], pictures: bool
) -> tuple[list[str], pa.Table]:
    """Return the names of the preview columns, and a table of either them or the other columns.

    With ``pictures``, the table has the preview columns and `source_id`.
    """
    from cfqa_data.format.parquet import read_parquet, read_schema

    rows = sum(len(entry.sources) for entry in tasks.values())
    known, others = preview_columns(tasks), {*ORIGINAL_COLUMNS, *NEW_COLUMNS}
    try:
        if kind := pointer(data):
            raise FormatError(f"{path}: {kind}")
        schema, _ = read_schema(data)
        for field in schema:
            if field.name not in others and known.get(field.name) != field.type:
                raise FormatError(
                    f"{path}: column {field.name!r} ({field.type}) is not of the format: pictures "
                    "are image, truth, output_original and output_CODEC_LEVEL, of its codecs and "
                    f"levels, and {ANSWERS} is of strings; build or fetch it again"
                )
        once = len({*schema.names}) == len(schema.names)
        if not once or pa.field("source_id", pa.string()) not in list(schema):
            raise FormatError(
                f"{path}: has a column twice, or no strings source_id; build or fetch it again"
            )
        shown = [name for name in schema.names if name in known]
        if not pictures:
            return shown, read_parquet(data, rows, without=shown)
        names = [name for name in shown if name != ANSWERS]
        return shown, read_parquet(data, rows, without=others - {"source_id"}, pictures=names)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise FormatError(f"{path}: not a Parquet table that can be read: {error}") from None


def _webp_size(head: bytes) -> tuple[int, int]:
    """Return width and height from the header of a single-picture WebP file; 0, 0 if invalid."""
    if (head[:4], head[8:12]) == (b"RIFF", b"WEBP"):
        if (head[12:16], head[23:26]) == (b"VP8 ", b"\x9d\x01\x2a"):
            sides = int.from_bytes(head[26:30], "little")
            return sides & 0x3FFF, sides >> 16 & 0x3FFF
        if (head[12:16], head[20:21]) == (b"VP8L", b"/"):
            sides = int.from_bytes(head[21:25], "little")
            return (sides & 0x3FFF) + 1, (sides >> 14 & 0x3FFF) + 1
    return 0, 0


def column_meaning(name: str) -> tuple[str, str]:
    """Return dtype and meaning of a column with pictures or answers."""
    if name in PREVIEW_COLUMNS:
        return PREVIEW_COLUMNS[name]
    codec, _, level = name.removeprefix("output_").rpartition("_")
    return "image", f"its output from the feature by {codec} at level {level}"


def _to_picture_column(files: pa.ChunkedArray) -> pa.Array:
    files = files.combine_chunks()
    parts = [files, pa.nulls(len(files), pa.string())]
    return pa.StructArray.from_arrays(parts, fields=list(picture_type()), mask=files.is_null())


def _feature_type(field: pa.Field) -> dict[str, str]:
    if field.type == picture_type():
        return {"_type": "Image"}
    return {"dtype": {"double": "float64"}.get(str(field.type), str(field.type)), "_type": "Value"}
