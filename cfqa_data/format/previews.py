"""The table of originals with pictures: what `load_dataset` and the Hub's viewer show of a source.

It is a file of its own, so that the table of originals stays small, and as version 0.1.0 reads it.
Of pictures, only `datasets` reads more than the names of their columns, and what extends a dataset.
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
"""Pixels of the longer side of a picture; a larger one is made smaller."""

PREVIEW_COLUMNS: dict[str, tuple[str, str]] = {
    "image": ("image", "what the feature was made from"),
    "truth": ("image", "the ground truth, as the task draws it"),
    "output_original": ("image", "the task's output from the original feature"),
    "output_CODEC_LEVEL": ("image", "its output from the feature by a codec at a level"),
    ANSWERS: ("string", "the same in words, of a task that draws no pictures"),
}
"""Column of `previews/originals.parquet` -> (dtype, meaning); those of originals follow.

A column that no source has a value of is not there, and a value may be null.
"""


def previews_table(originals: pa.Table, found: pa.Table) -> pa.Table | None:
    """Return the table of originals with pictures; None where there are none.

    Args:
        originals: The table of originals.
        found: What :func:`sort_previews` returns.
    """
    found = found.combine_chunks()
    names = found.column_names
    if not names:
        return None
    columns = {n: found[n] if n == ANSWERS else _pictures(found[n]) for n in names}
    columns |= dict(zip(originals.column_names, originals.columns, strict=True))
    table = pa.table(columns)
    features = {field.name: _feature(field) for field in table.schema}
    return table.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )


def sort_previews(originals: pa.Table, found: pa.Table) -> pa.Table:
    """Return what was drawn, in the order of originals and of columns, without empty columns.

    Args:
        originals: The table of originals.
        found: `source_id`, and pictures as the bytes of files, and answers, by column; of all
            originals, in any order.
    """

    def place(name: str) -> tuple[int, str, int]:
        codec, _, level = name.removeprefix("output_").rpartition("_")
        known = list(PREVIEW_COLUMNS)
        if name in known:
            return known.index(name), "", 0
        return known.index("output_CODEC_LEVEL"), codec, int(level)

    order = pc.index_in(originals["source_id"], value_set=found["source_id"].combine_chunks())
    held = [n for n in found.column_names if found[n].null_count < found.num_rows]
    return found.select(sorted((n for n in held if n != "source_id"), key=place)).take(order)


def read_previews(
    path: Path | str, data: bytes, tasks: Mapping[str, TaskEntry]
) -> tuple[list[str], pa.Table]:
    """Return the names of the columns that are shown, and the others, of which it is a copy.

    Args:
        path: Name of the file.
        data: Its content.
        tasks: What the manifest says of them: their sources, codecs and levels.

    Raises:
        FormatError: If it is no such table.
    """
    return _read(path, data, tasks, pictures=False)


def read_pictures(path: Path | str, data: bytes, tasks: Mapping[str, TaskEntry]) -> pa.Table:
    """Return `source_id`, pictures as the bytes of files, and answers.

    See :func:`read_previews`, whose checks it makes, and of each picture those of its head.
    """
    shown, table = _read(path, data, tasks, pictures=True)
    for name in shown:
        if name != ANSWERS:
            heads = pc.binary_slice(table[name], 0, 30).to_pylist()
            for row, head in enumerate(heads):
                if head is not None and not all(0 < side <= MAX_SIDE for side in _sides(head)):
                    raise FormatError(
                        f"{path}: {name!r} of row {row} is not a WebP file of at most {MAX_SIDE} "
                        "pixels a side; build or fetch it again"
                    )
    return table


def _read(
    path: Path | str, data: bytes, tasks: Mapping[str, TaskEntry], pictures: bool
) -> tuple[list[str], pa.Table]:
    """Return the columns that are shown, and either them and `source_id`, or the others."""
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
        found = [name for name in shown if name != ANSWERS]
        return shown, read_parquet(data, rows, without=others - {"source_id"}, pictures=found)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise FormatError(f"{path}: not a Parquet table that can be read: {error}") from None


def _sides(head: bytes) -> tuple[int, int]:
    """Return width and height by the head of a WebP file of one picture; 0, 0 if it is none."""
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


def _pictures(files: pa.ChunkedArray) -> pa.Array:
    files = files.combine_chunks()
    parts = [files, pa.nulls(len(files), pa.string())]
    return pa.StructArray.from_arrays(parts, fields=list(picture_type()), mask=files.is_null())


def _feature(field: pa.Field) -> dict[str, str]:
    if field.type == picture_type():
        return {"_type": "Image"}
    return {"dtype": {"double": "float64"}.get(str(field.type), str(field.type)), "_type": "Value"}
