"""The table of originals with pictures: what `load_dataset` and the Hub's viewer show of a source.

It is a file of its own, so that the table of originals stays small, and as version 0.1.0 reads it.
Of pictures, only `datasets` reads more than the names of their columns.
"""

from __future__ import annotations

import json
from pathlib import Path

from cfqa_data.arrow import pa, pc, pq
from cfqa_data.errors import FormatError
from cfqa_data.format.limits import pointer

__all__ = [
    "ANSWERS",
    "PREVIEW_COLUMNS",
    "column_meaning",
    "drawn_columns",
    "in_order",
    "previews_table",
    "read_previews",
]

ANSWERS = "answers"

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
        originals: the table of originals.
        found: what :func:`in_order` returns.
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


def in_order(originals: pa.Table, found: pa.Table) -> pa.Table:
    """Return what was drawn, in the order of originals and of columns, without empty columns.

    Args:
        originals: the table of originals.
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


def read_previews(path: Path | str, data: bytes, most_rows: int) -> tuple[list[str], pa.Table]:
    """Return the names of the columns that are shown, and the others, of which it is a copy.

    Args:
        path: name of the file.
        data: its content.
        most_rows: refuse a table of more.

    Raises:
        FormatError: it is no such table.
    """
    from cfqa_data.format.parquet import read_parquet, read_schema

    try:
        if kind := pointer(data):
            raise FormatError(f"{path}: {kind}")
        schema, _ = read_schema(data)
        shown = [f.name for f in schema if f.type == _picture_type() or f.name == ANSWERS]
        return shown, read_parquet(data, most_rows, without=shown)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise FormatError(f"{path}: not a Parquet table that can be read: {error}") from None


def drawn_columns(data: bytes) -> pa.Table:
    """Return `source_id`, pictures as the bytes of files, and answers, of a trusted table."""
    table = pq.read_table(pa.BufferReader(data))
    names = [f.name for f in table.schema if f.type == _picture_type()]
    columns = {name: pc.struct_field(table[name], "bytes") for name in names}
    others = [name for name in (ANSWERS, "source_id") if name in table.column_names]
    return pa.table(columns | {name: table[name] for name in others})


def column_meaning(name: str) -> tuple[str, str]:
    """Return dtype and meaning of a column with pictures or answers."""
    if name in PREVIEW_COLUMNS:
        return PREVIEW_COLUMNS[name]
    codec, _, level = name.removeprefix("output_").rpartition("_")
    return "image", f"its output from the feature by {codec} at level {level}"


def _picture_type() -> pa.DataType:
    """Return the type of a picture as `datasets` has it: the bytes of a file, here without path."""
    return pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def _pictures(files: pa.ChunkedArray) -> pa.Array:
    files = files.combine_chunks()
    parts = [files, pa.nulls(len(files), pa.string())]
    return pa.StructArray.from_arrays(parts, fields=list(_picture_type()), mask=files.is_null())


def _feature(field: pa.Field) -> dict[str, str]:
    if field.type == _picture_type():
        return {"_type": "Image"}
    return {"dtype": {"double": "float64"}.get(str(field.type), str(field.type)), "_type": "Value"}
