"""Read Parquet tables from untrusted files within a bounded amount of memory.

A few bytes of Parquet can expand to terabytes: a page header states any uncompressed size, a run of
one value fills billions of rows, and many cells can share one long string. The headers of all pages
are therefore read first, and only the plain and the dictionary encodings are accepted. Strings are
read as dictionaries and expanded to rows after their lengths are checked.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from cfqa_data.arrow import pa, pc, pq
from cfqa_data.format.limits import LARGEST_PAGES, LARGEST_PICTURE, LONGEST_CELL

__all__ = ["read_parquet", "read_schema"]

ENCODINGS = (0, 2, 3, 8)
"""Accepted page encodings: plain, dictionary (two codes), run length."""

SLACK = 1 << 20
"""Bytes of a column's pages that are allowed regardless of the number of rows."""

DEPTH = 8


class _Damaged(ValueError):
    """The table cannot be read."""


def read_schema(data: bytes) -> tuple[pa.Schema, int]:
    """Return the schema of a table and the number of its rows, without reading rows.

    Raises:
        OSError, ValueError, pyarrow.ArrowException: If it is not Parquet.
    """
    file = _open(data)
    return file.schema_arrow, file.metadata.num_rows


def read_parquet(
    data: bytes,
    max_rows: int,
    without: Collection[str] = (),
    within: tuple[str, Sequence[int]] | None = None,
    pictures: Collection[str] = (),
) -> pa.Table:
    """Return a table of numbers and strings, all validated.

    Memory is bounded by the uncompressed pages, at most LONGEST_CELL bytes per cell and
    LARGEST_PAGES in total, plus LONGEST_CELL bytes per string. The limit of a picture is
    LARGEST_PICTURE instead, and LARGEST_PAGES for all pictures.

    Args:
        data: Content of the file.
        max_rows: Largest number of rows; a larger table is refused.
        without: Columns that are not read; they may have any type.
        within: A column of integers, and sorted values of it. Row groups whose statistics exclude
            all these values are not read; other rows of the remaining groups are returned, too.
        pictures: Columns of structs that are replaced by their first field, `bytes`.

    Raises:
        ValueError: If it has too many rows, too large pages or strings, or a column of another
            type.
        OSError, pyarrow.ArrowException: If it is damaged.
    """
    schema, rows = read_schema(data)
    if rows > max_rows:
        raise _Damaged(f"has {rows:,} rows; at most {max_rows:,} are expected")
    kept = pa.schema(
        [
            field.with_type(pa.binary()) if field.name in pictures else field
            for field in schema
            if field.name not in without
        ],
        schema.metadata,
    )
    paths = [f"{name}.bytes" if name in pictures else name for name in kept.names]
    limits = {name: LARGEST_PICTURE if name in pictures else LONGEST_CELL for name in kept.names}
    texts = []
    for field, path in zip(kept, paths, strict=True):
        if pa.types.is_string(field.type) or field.name in pictures:
            texts.append(path)
        elif not pa.types.is_primitive(field.type):
            raise _Damaged(f"column {field.name!r} is {field.type}, neither numbers nor strings")
    widths = [field.type.num_fields or 1 for field in schema]
    starts = [sum(widths[:position]) for position in range(len(widths))]
    cell_bytes = {
        start: limits[field.name]
        for field, start in zip(schema, starts, strict=True)
        if field.name not in without
    }
    file = _open(data, read_dictionary=texts)
    groups = _check_pages(data, file.metadata, sum(widths), cell_bytes)
    if within is not None:
        groups = [n for n in groups if _may_contain(file.metadata.row_group(n), *within)]
    if not groups:
        return kept.empty_table()
    table = file.read_row_groups(groups, columns=paths if without else None, use_threads=False)
    remaining = LARGEST_PAGES
    for position, field in enumerate(kept):
        column = table.column(position)
        if field.name in pictures:
            column = pc.struct_field(column, "bytes")
        if pa.types.is_dictionary(column.type):
            for chunk in column.chunks:
                chunk.validate(full=True)
                lengths = pc.binary_length(chunk.dictionary)
                longest = pc.max(lengths).as_py() or 0
                if longest > limits[field.name]:
                    what = "picture" if field.name in pictures else "string"
                    raise _Damaged(f"a {what} of {longest:,} bytes in column {field.name!r}")
                if field.name in pictures:
                    remaining -= pc.sum(lengths.take(chunk.indices)).as_py() or 0
                    if remaining < 0:
                        raise _Damaged(f"pictures of more than {LARGEST_PAGES:,} bytes")
            plain = pa.chunked_array(
                map(_drop_empty_null_map, column.cast(field.type).chunks), field.type
            )
            table = table.set_column(position, field, plain)
    table.validate(full=True)
    return table.replace_schema_metadata(schema.metadata)


def _may_contain(group: pq.RowGroupMetaData, name: str, values: Sequence[int]) -> bool:
    """Return whether the statistics of a row group allow any of the sorted values."""
    columns = [group.column(position) for position in range(group.num_columns)]
    statistics = next((c.statistics for c in columns if c.path_in_schema == name), None)
    if statistics is None or not statistics.has_min_max:
        return True
    return bisect_left(values, statistics.min) < bisect_right(values, statistics.max)


def _drop_empty_null_map(texts: pa.Array) -> pa.Array:
    """Return strings without a null bitmap if they have no nulls, as Arrow's own reader does.

    The dataset card states the size of the tables in memory, so the bitmap would change its bytes.
    """
    if texts.null_count:
        return texts
    buffers = [None, *texts.buffers()[1:]]
    return pa.Array.from_buffers(texts.type, len(texts), buffers, offset=texts.offset)


def _open(data: bytes, **options: Any) -> pq.ParquetFile:
    limits = {"thrift_string_size_limit": 1 << 26, "thrift_container_size_limit": 1 << 18}
    return pq.ParquetFile(pa.BufferReader(data), **limits, **options)


def _check_pages(
    data: bytes, metadata: pq.FileMetaData, columns: int, cell_bytes: Mapping[int, int]
) -> list[int]:
    """Check that the pages of some columns hold as many values as there are rows.

    Args:
        data: Content of the file.
        metadata: Footer of the file.
        columns: Number of columns, counting each field of a struct.
        cell_bytes: Position of each column that is read -> limit of the bytes per cell.

    Returns:
        The numbers of the row groups with rows.

    Raises:
        ValueError: If they do not, or need too much memory.
    """
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    if metadata.num_columns != columns:
        raise _Damaged("its columns are nested")
    if any(group.num_rows < 0 for group in groups) or metadata.num_rows != sum(
        group.num_rows for group in groups
    ):
        raise _Damaged("its row groups do not add up to its number of rows")
    remaining = LARGEST_PAGES
    filled = [number for number, group in enumerate(groups) if group.num_rows]
    for group in (groups[number] for number in filled):
        if group.num_columns != columns:
            raise _Damaged("a row group has different columns")
        for position, limit in cell_bytes.items():
            column = group.column(position)
            start = column.data_page_offset
            if column.has_dictionary_page and 0 < column.dictionary_page_offset < start:
                start = column.dictionary_page_offset
            stop = start + column.total_compressed_size
            if not 0 <= start <= stop <= len(data) or column.num_values != group.num_rows:
                raise _Damaged(f"column {column.path_in_schema!r} is not at its stated offset")
            size = _check_column(data, start, stop, group.num_rows)
            remaining -= size
            if size > SLACK + group.num_rows * limit or remaining < 0:
                raise _Damaged(f"column {column.path_in_schema!r} unpacks to {size:,} bytes")
    return filled


def _check_column(data: bytes, start: int, stop: int, rows: int) -> int:
    """Return the uncompressed size of a column's pages.

    Raises:
        ValueError: If a page is invalid or has an unsupported encoding, or the number of rows is
            wrong.
    """
    size = count = 0
    while start < stop:
        try:
            page, at = _struct(data, start, DEPTH)
            unpacked, packed = page[2], page[3]
            if 5 in page or 8 in page:
                header, encoding = (page[5], 2) if 5 in page else (page[8], 4)
                count += header[1]
                known = header[1] >= 0 and header[encoding] in ENCODINGS
            else:
                known = 7 in page and page[7][2] in ENCODINGS
        except (KeyError, IndexError, TypeError):
            raise _Damaged("a page header is damaged") from None
        if not known or unpacked < 0 or packed < 0:
            raise _Damaged("a page has an unsupported type or encoding")
        size += unpacked
        start = at + packed
    if count != rows:
        raise _Damaged(f"the pages of a column contain {count:,} values in {rows:,} rows")
    return size


# Thrift's compact protocol, as far as page headers use it.


def _struct(data: bytes, at: int, depth: int) -> tuple[dict[int, Any], int]:
    """Return the fields of a struct by number, with None for other than numbers, and its end."""
    if not depth:
        raise KeyError
    fields: dict[int, Any] = {}
    number = 0
    while kind := data[at]:
        at += 1
        if kind >> 4:
            number += kind >> 4
        else:
            number, at = _number(data, at)
        fields[number], at = _value(data, at, kind & 15, depth)
    return fields, at + 1


def _value(data: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (1, 2):  # the type codes of true and false
        return kind == 1, at
    if kind in (4, 5, 6):
        return _number(data, at)
    if kind == 8:
        length, at = _varint(data, at)
        return None, at + length
    if kind == 12:
        return _struct(data, at, depth - 1)
    raise KeyError  # page headers contain no bytes, doubles, lists or maps


def _number(data: bytes, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return value >> 1 ^ -(value & 1), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 64:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise KeyError
