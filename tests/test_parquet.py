"""Parquet files that stand for more than they should are refused before it is there.

The files are small and say little: what is lowered are the limits.
"""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cases import each

from cfqa_data.format import parquet
from cfqa_data.format.limits import LONGEST_CELL
from cfqa_data.format.parquet import read_parquet, read_schema


def _written(table: pa.Table, **options: object) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, **{"compression": "zstd", **options})
    return file.getvalue()


def _table(rows: int = 1000) -> pa.Table:
    numbers = np.arange(rows)
    return pa.table(
        {
            "text": pa.array([f"x{n % 7}" for n in range(rows)], pa.string()),
            "byte": numbers.astype(np.int8),
            "real": numbers / 7,
            "yes": numbers % 2 == 0,
        }
    ).replace_schema_metadata({"key": "value"})


@each(
    "options",
    [
        {},
        {"use_dictionary": False},
        {"data_page_version": "2.0"},
        {"compression": "none"},
        {"row_group_size": 77, "data_page_size": 64, "write_batch_size": 8},
        {"write_statistics": False},
        {"version": "1.0"},
    ],
)
@each("rows", [0, 1, 1000])
def test_a_table_reads_as_pyarrow_reads_it(options: dict[str, object], rows: int) -> None:
    table = _table(rows)
    data = _written(table, **options)
    found = read_parquet(data, rows)
    assert found.equals(pq.read_table(io.BytesIO(data)), check_metadata=True)
    assert found.equals(table)
    assert read_schema(data) == (table.schema, rows)


@each("statistics", [True, False])
def test_row_groups_without_the_values_that_are_wanted_are_not_read(statistics: bool) -> None:
    table = _table(1000).append_column("index", pa.array(np.arange(1000) // 4))
    data = _written(table, row_group_size=100, write_statistics=statistics)
    for values, groups in (([], []), ([0], [0]), ([24, 26, 100], [0, 1, 4]), ([999], [])):
        rows = [row for n in groups for row in range(100 * n, 100 * n + 100)]
        found = read_parquet(data, 1000, within=("index", values))
        assert found.equals(table.take(pa.array(rows, pa.int64())) if statistics else table)


def test_a_table_takes_the_bytes_that_pyarrow_takes() -> None:
    """The card states the size, so the bytes of a build depend on it."""
    data = _written(pa.table({"x": ["a", "b"] * 500, "y": [None, "b"] * 500, "z": range(1000)}))
    table = read_parquet(data, 1000)
    table.validate(full=True)
    assert table.nbytes == pq.read_table(io.BytesIO(data)).nbytes


def test_more_rows_than_expected_are_not_read() -> None:
    with pytest.raises(ValueError, match="has 1,000 rows; at most 999"):
        read_parquet(_written(_table()), 999)


@pytest.mark.parametrize("dictionary", [True, False])
def test_a_text_over_the_limit_is_refused_before_it_is_spread_over_its_rows(
    dictionary: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for length in (LONGEST_CELL, LONGEST_CELL + 1):
        data = _written(pa.table({"text": ["x" * length] * 3}), use_dictionary=dictionary)
        if length == LONGEST_CELL:
            assert read_parquet(data, 3)["text"].to_pylist() == ["x" * length] * 3
            monkeypatch.setattr(parquet, "_drop_empty_null_map", pytest.fail)
        else:
            with pytest.raises(ValueError, match=r"a string of 4,097 bytes in column 'text'"):
                read_parquet(data, 3)


def test_pages_that_unpack_to_much_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = _written(pa.table({"text": ["x" * 100]}), use_dictionary=False)
    monkeypatch.setattr(parquet, "SLACK", 100)
    assert read_parquet(data, 1).num_rows == 1
    monkeypatch.setattr(parquet, "LONGEST_CELL", 1)
    with pytest.raises(ValueError, match=r"column 'text' unpacks to \d{3} bytes"):
        read_parquet(data, 1)
    monkeypatch.undo()
    monkeypatch.setattr(parquet, "LARGEST_PAGES", 1000)
    with pytest.raises(ValueError, match="unpacks to"):
        read_parquet(_written(_table()), 1000)


def test_runs_beyond_the_rows_are_refused() -> None:
    data = bytearray(_written(pa.table({"n": pa.array(np.zeros(1000))}), compression="none"))
    head = data.index(b"\x15\x00\x15")  # the data page: type 0, sizes, then its 1000 values
    values = data.index(bytes([0x15, 0xD0, 0x0F]), head)
    data[values + 1 : values + 3] = b"\xd2\x0f"
    with pytest.raises(ValueError, match="contain 1,001 values in 1,000 rows"):
        read_parquet(bytes(data), 1000)


@pytest.mark.parametrize("encoding", ["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
def test_encodings_that_repeat_parts_of_texts_are_not_read(encoding: str) -> None:
    table = pa.table({"text": ["x" * LONGEST_CELL] * 10})
    data = _written(table, use_dictionary=False, column_encoding={"text": encoding})
    with pytest.raises(ValueError, match="type or encoding"):
        read_parquet(data, 10)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[1], [2]]),
        pa.array([{"a": 1}, {"a": 2}]),
        pa.array([b"a", b"b"]),
        pa.array(["a", "b"]).dictionary_encode(),
    ],
)
def test_columns_are_numbers_and_texts(column: pa.Array) -> None:
    with pytest.raises(ValueError, match="neither numbers nor strings"):
        read_parquet(_written(pa.table({"x": column})), 2)


def test_texts_are_valid() -> None:
    text = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(np.array([0, 2], np.int32)), pa.py_buffer(b"\xff\xfe")]
    )
    with pytest.raises(pa.ArrowInvalid, match="UTF8"):
        read_parquet(_written(pa.table({"x": text})), 1)


@pytest.mark.parametrize("depth", [1, parquet.DEPTH - 2, parquet.DEPTH - 1])
def test_nesting_in_the_head_of_a_page_has_an_end(depth: int) -> None:
    page = bytes.fromhex("25 00 15 00 2c 15 02 15 00") + b"\x1c" * depth + bytes(depth + 2)
    if depth < parquet.DEPTH - 1:
        assert parquet._check_column(page, 0, len(page), 1) == 0
    else:
        with pytest.raises(ValueError, match="a page header is damaged"):
            parquet._check_column(page, 0, len(page), 1)
