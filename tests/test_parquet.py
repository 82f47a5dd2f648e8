"""Small Parquet files that stand for a lot are refused before it is there."""

from __future__ import annotations

import io
import resource
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cfqa_data import parquet
from cfqa_data.limits import LONGEST_CELL
from cfqa_data.parquet import read_parquet, read_schema


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


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Let the process have 512 MB more than it has."""
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    old = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + (512 << 20), old[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, old)


@pytest.mark.parametrize(
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
@pytest.mark.parametrize("rows", [0, 1, 1000])
def test_a_table_reads_as_pyarrow_reads_it(options: dict[str, object], rows: int) -> None:
    table = _table(rows)
    data = _written(table, **options)
    found = read_parquet(data, rows)
    assert found.equals(pq.read_table(io.BytesIO(data)), check_metadata=True)
    assert found.equals(table)
    assert read_schema(data) == (table.schema, rows)


def test_a_table_takes_the_bytes_that_pyarrow_takes() -> None:
    """The card of a dataset says how many, so a build's bytes depend on it."""
    data = _written(pa.table({"x": ["a", "b"] * 500, "y": [None, "b"] * 500, "z": range(1000)}))
    table = read_parquet(data, 1000)
    table.validate(full=True)
    assert table.nbytes == pq.read_table(io.BytesIO(data)).nbytes


def test_more_rows_than_expected_are_not_read() -> None:
    with pytest.raises(ValueError, match="has 1,000 rows; at most 999"):
        read_parquet(_written(_table()), 999)


@pytest.mark.usefixtures("little_memory")
def test_a_long_text_in_many_rows_is_refused() -> None:
    rows = 100_000  # 100 GB of text in 30 kB
    indices = pa.array(np.zeros(rows, np.int32))
    text = pa.DictionaryArray.from_arrays(indices, pa.array(["x" * 10**6]))
    schema = pa.schema({"text": pa.string()})
    file = io.BytesIO()
    with pq.ParquetWriter(file, pa.schema({"text": text.type}), store_schema=False) as writer:
        writer.write_table(pa.table({"text": text}))
    assert read_schema(file.getvalue()) == (schema, rows)
    with pytest.raises(ValueError, match="a text of 1,000,000 bytes in column 'text'"):
        read_parquet(file.getvalue(), rows)


@pytest.mark.usefixtures("little_memory")
def test_a_page_that_unpacks_to_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table({"text": ["\0" * (64 << 20)]})
    data = _written(table, use_dictionary=False)
    assert len(data) < 100_000
    with pytest.raises(ValueError, match=r"unpacks to 67,\d{3},\d{3} bytes"):
        read_parquet(data, 1)
    monkeypatch.setattr(parquet, "LARGEST_PAGES", 1000)
    with pytest.raises(ValueError, match="unpacks to"):
        read_parquet(_written(_table()), 1000)


def test_runs_beyond_the_rows_are_refused() -> None:
    data = bytearray(_written(pa.table({"n": pa.array(np.zeros(1000))}), compression="none"))
    head = data.index(b"\x15\x00\x15")  # the data page: type 0, sizes, then its 1000 values
    values = data.index(bytes([0x15, 0xD0, 0x0F]), head)
    data[values + 1 : values + 3] = b"\xd2\x0f"
    with pytest.raises(ValueError, match="hold 1,001 values in 1,000 rows"):
        read_parquet(bytes(data), 1000)


@pytest.mark.parametrize("encoding", ["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
def test_encodings_that_repeat_parts_of_texts_are_not_read(encoding: str) -> None:
    table = pa.table({"text": ["x" * LONGEST_CELL] * 10})
    data = _written(table, use_dictionary=False, column_encoding={"text": encoding})
    with pytest.raises(ValueError, match="kind or encoding"):
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
    with pytest.raises(ValueError, match="neither numbers nor texts"):
        read_parquet(_written(pa.table({"x": column})), 2)


def test_texts_are_valid() -> None:
    text = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(np.array([0, 2], np.int32)), pa.py_buffer(b"\xff\xfe")]
    )
    with pytest.raises(pa.ArrowInvalid, match="UTF8"):
        read_parquet(_written(pa.table({"x": text})), 1)


def test_nesting_in_the_head_of_a_page_has_an_end() -> None:
    with pytest.raises(ValueError, match="head of a page is damaged"):
        parquet._check_column(b"\x1c" * 10_000, 0, 10_000, 1)
