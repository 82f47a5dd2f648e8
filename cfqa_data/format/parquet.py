"""Read Parquet tables from untrusted files within a bounded amount of memory.

A few bytes of Parquet can stand for terabytes: a page unpacks to whatever its header says, a run of
one word fills billions of rows, and a long text is stored once for many cells. So the heads of all
pages are read first, and only the plain and the dictionary encodings are taken; texts are read by
their dictionary, and spread over the rows once they are known to be short.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from cfqa_data.arrow import pa, pc, pq
from cfqa_data.format.limits import LARGEST_PAGES, LARGEST_PICTURE, LONGEST_CELL

__all__ = ["read_parquet", "read_schema"]

ENCODINGS = (0, 2, 3, 8)
"""Of a page: plain, dictionary (its two names), run length."""

SLACK = 1 << 20
"""Bytes that the pages of a column may take, however few rows it has."""

DEPTH = 8


class _Damaged(ValueError):
    """A table cannot be read."""


def read_schema(data: bytes) -> tuple[pa.Schema, int]:
    """Return the columns of a table and the number of its rows; no row is read.

    Raises:
        OSError: If it is not Parquet. ValueError, pyarrow.ArrowException: neither.
    """
    file = _opened(data)
    return file.schema_arrow, file.metadata.num_rows


def read_parquet(
    data: bytes,
    max_rows: int,
    without: Collection[str] = (),
    within: tuple[str, Sequence[int]] | None = None,
    pictures: Collection[str] = (),
) -> pa.Table:
    """Return a table of numbers and texts, all valid.

    Memory goes up to the pages as they are unpacked, of which there are at most LONGEST_CELL bytes
    for each cell and LARGEST_PAGES in all, and LONGEST_CELL bytes for each text. A picture may have
    LARGEST_PICTURE bytes instead, and all together LARGEST_PAGES.

    Args:
        data: The file's content.
        max_rows: Refuse a table of more.
        without: Columns that are not read, and may be of any kind.
        within: A column of integers and some of its values, in order: row groups that by their
            statistics have none of them are not read. Those that are read may have other rows too.
        pictures: Columns of structs whose first field, `bytes`, is returned in their place.

    Raises:
        ValueError: If it has more rows or larger pages or texts, or a column of another kind.
        OSError, pyarrow.ArrowException: it is damaged.
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
    most = {name: LARGEST_PICTURE if name in pictures else LONGEST_CELL for name in kept.names}
    texts = []
    for field, path in zip(kept, paths, strict=True):
        if pa.types.is_string(field.type) or field.name in pictures:
            texts.append(path)
        elif not pa.types.is_primitive(field.type):
            raise _Damaged(f"column {field.name!r} is {field.type}, neither numbers nor strings")
    widths = [field.type.num_fields or 1 for field in schema]
    starts = [sum(widths[:place]) for place in range(len(widths))]
    places = {
        at: most[field.name]
        for field, at in zip(schema, starts, strict=True)
        if field.name not in without
    }
    file = _opened(data, read_dictionary=texts)
    groups = _check_pages(data, file.metadata, sum(widths), places)
    if within is not None:
        groups = [n for n in groups if _may_have(file.metadata.row_group(n), *within)]
    if not groups:
        return kept.empty_table()
    table = file.read_row_groups(groups, columns=paths if without else None, use_threads=False)
    room = LARGEST_PAGES
    for place, field in enumerate(kept):
        column = table.column(place)
        if field.name in pictures:
            column = pc.struct_field(column, "bytes")
        if pa.types.is_dictionary(column.type):
            for chunk in column.chunks:
                chunk.validate(full=True)
                lengths = pc.binary_length(chunk.dictionary)
                longest = pc.max(lengths).as_py() or 0
                if longest > most[field.name]:
                    what = "picture" if field.name in pictures else "string"
                    raise _Damaged(f"a {what} of {longest:,} bytes in column {field.name!r}")
                if field.name in pictures:
                    room -= pc.sum(lengths.take(chunk.indices)).as_py() or 0
                    if room < 0:
                        raise _Damaged(f"pictures of more than {LARGEST_PAGES:,} bytes")
            plain = pa.chunked_array(map(_plain, column.cast(field.type).chunks), field.type)
            table = table.set_column(place, field, plain)
    table.validate(full=True)
    return table.replace_schema_metadata(schema.metadata)


def _may_have(group: pq.RowGroupMetaData, name: str, values: Sequence[int]) -> bool:
    """Whether by its statistics a row group may have one of some values, which are in order."""
    columns = [group.column(place) for place in range(group.num_columns)]
    known = next((c.statistics for c in columns if c.path_in_schema == name), None)
    if known is None or not known.has_min_max:
        return True
    return bisect_left(values, known.min) < bisect_right(values, known.max)


def _plain(texts: pa.Array) -> pa.Array:
    """Return texts as Arrow's own reader does, without a map of nulls where there are none.

    The card of a dataset says how many bytes its tables have, and a build is to give its old bytes.
    """
    if texts.null_count:
        return texts
    buffers = [None, *texts.buffers()[1:]]
    return pa.Array.from_buffers(texts.type, len(texts), buffers, offset=texts.offset)


def _opened(data: bytes, **options: Any) -> pq.ParquetFile:
    limits = {"thrift_string_size_limit": 1 << 26, "thrift_container_size_limit": 1 << 18}
    return pq.ParquetFile(pa.BufferReader(data), **limits, **options)


def _check_pages(
    data: bytes, metadata: pq.FileMetaData, columns: int, places: Mapping[int, int]
) -> list[int]:
    """Check that the pages of some columns hold as many values as there are rows.

    Args:
        data: The file's content.
        metadata: Its footer.
        columns: All that it has, each field of a struct as one.
        places: Of those that are read -> bytes that a cell may take.

    Returns:
        The numbers of the row groups that have rows.

    Raises:
        ValueError: If they do not.
    """
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    if metadata.num_columns != columns:
        raise _Damaged("its columns are nested")
    if any(group.num_rows < 0 for group in groups) or metadata.num_rows != sum(
        group.num_rows for group in groups
    ):
        raise _Damaged("its row groups do not add up to its number of rows")
    room = LARGEST_PAGES
    filled = [number for number, group in enumerate(groups) if group.num_rows]
    for group in (groups[number] for number in filled):
        if group.num_columns != columns:
            raise _Damaged("a row group has different columns")
        for place, most in places.items():
            column = group.column(place)
            start = column.data_page_offset
            if column.has_dictionary_page and 0 < column.dictionary_page_offset < start:
                start = column.dictionary_page_offset
            stop = start + column.total_compressed_size
            if not 0 <= start <= stop <= len(data) or column.num_values != group.num_rows:
                raise _Damaged(f"column {column.path_in_schema!r} is not at its stated offset")
            size = _check_column(data, start, stop, group.num_rows)
            room -= size
            if size > SLACK + group.num_rows * most or room < 0:
                raise _Damaged(f"column {column.path_in_schema!r} unpacks to {size:,} bytes")
    return filled


def _check_column(data: bytes, start: int, stop: int, rows: int) -> int:
    """Return the bytes of a column's pages when they are unpacked.

    Raises:
        ValueError: If a page is not one, has an encoding that is not read, or there are other rows.
    """
    size = found = 0
    while start < stop:
        try:
            page, at = _struct(data, start, DEPTH)
            unpacked, packed = page[2], page[3]
            if 5 in page or 8 in page:
                about, encoding = (page[5], 2) if 5 in page else (page[8], 4)
                found += about[1]
                known = about[1] >= 0 and about[encoding] in ENCODINGS
            else:
                known = 7 in page and page[7][2] in ENCODINGS
        except (KeyError, IndexError, TypeError):
            raise _Damaged("a page header is damaged") from None
        if not known or unpacked < 0 or packed < 0:
            raise _Damaged("a page has an unsupported type or encoding")
        size += unpacked
        start = at + packed
    if found != rows:
        raise _Damaged(f"the pages of a column contain {found:,} values in {rows:,} rows")
    return size


# Thrift's compact protocol, as far as heads of pages use it.


def _struct(data: bytes, at: int, depth: int) -> tuple[dict[int, Any], int]:
    """Return the fields of a struct by number, and where it ends; what is no number is None."""
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
    if kind in (1, 2):  # true and false are the kind itself
        return kind == 1, at
    if kind in (4, 5, 6):
        return _number(data, at)
    if kind == 8:
        length, at = _varint(data, at)
        return None, at + length
    if kind == 12:
        return _struct(data, at, depth - 1)
    raise KeyError  # bytes, doubles, lists and maps are in no page's head


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
