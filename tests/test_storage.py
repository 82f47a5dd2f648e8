from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from cfqa_data.errors import CfqaError, FormatError
from cfqa_data.format.storage import (
    atomic_path,
    check_rows,
    check_writable,
    read_table,
    remove_partials,
    write_table,
    write_tensors,
    write_text,
)


def test_tensors_come_back_and_do_not_depend_on_order(tmp_path: Path) -> None:
    tensors: dict[str, np.ndarray] = {
        "b": np.arange(6, dtype=np.uint8).reshape(2, 3).T,
        "a": np.array([[1.5]], np.float32),
        "c": np.array(7),
    }
    facts = {"one": "1", "two": "2", "three": "3"}
    for name, items in (("x", tensors), ("y", dict(reversed(tensors.items())))):
        write_tensors(tmp_path / "deep" / name, items, facts)
    assert (tmp_path / "deep/x").read_bytes() == (tmp_path / "deep/y").read_bytes()
    for key, array in load_file(tmp_path / "deep/x").items():
        assert array.shape == tensors[key].shape
        np.testing.assert_array_equal(array, tensors[key])
    with safe_open(tmp_path / "deep/x", framework="numpy") as file:
        assert file.metadata() == {"cfqa": '{"one": "1", "three": "3", "two": "2"}'}


def test_files_are_as_readable_as_their_folder(tmp_path: Path) -> None:
    for name, mode in (("open", 0o755), ("closed", 0o700)):
        (tmp_path / name).mkdir(mode=mode)
        write_tensors(tmp_path / name / "x", {"a": np.zeros(1)})
        write_text(tmp_path / name / "y", "")
        modes = {path.stat().st_mode & 0o777 for path in (tmp_path / name).iterdir()}
        assert modes == {mode & 0o666}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "x"
    write_text(path, "old")

    def fail() -> None:
        with atomic_path(path) as partial:
            partial.write_text("new")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_killed_writers_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in ("kept", "a/x.12.partial", "a/0.abc.partial"):
        (tmp_path / name).write_text("")
    assert remove_partials(tmp_path) == 2
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["kept"]


def test_a_table_comes_back_with_its_schema_or_not_at_all(tmp_path: Path) -> None:
    table = pa.table({"a": pa.array([1, 2], pa.int8()), "b": ["x", "y"]})
    path = tmp_path / "t.parquet"
    write_table(path, table)
    assert read_table(path, table.schema).equals(table)
    other = pa.schema([("a", pa.int16()), ("b", pa.string())])
    with pytest.raises(FormatError, match=r"t.parquet: columns are not as expected: a$"):
        read_table(path, other)
    with pytest.raises(FormatError, match="missing"):
        read_table(tmp_path / "no.parquet", other)
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(FormatError, match="not a readable Parquet table"):
        read_table(path, other)


def test_a_table_with_a_null_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    table = pa.table({"a": pa.array([1, 2, 3], pa.int8()), "b": ["x", "y", None]})
    write_table(path, table)
    with pytest.raises(FormatError, match=r"t.parquet: b is null in row 2; build or fetch"):
        read_table(path, table.schema)


AXES = {"a": ["x", "y"], "b": range(3)}
ROWS = list(product(*AXES.values()))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS, None),
        (ROWS[::-1], None),
        (ROWS[:4], "lacks 2 of 6 rows, first a y, b 1"),
        ([], "lacks 6 of 6 rows, first a x, b 0"),
        ([*ROWS[:5], ("y", 1)], "lacks 1 of 6 rows, first a y, b 2"),
        ([*ROWS, ("y", 1), ("x", 0)], "duplicate row 6: a y, b 1"),
        ([*ROWS, ("z", 0)], "row 6: unknown a 'z': known: x, y"),
        ([*ROWS[:5], ("y", 3)], "row 5: unknown b '3': known: 0, 1, 2"),
    ],
)
def test_rows_are_all_there_once_in_any_order(
    rows: list[tuple[Any, ...]], message: str | None
) -> None:
    columns = {"a": pa.array([a for a, _ in rows], pa.string())}
    columns["b"] = pa.array([b for _, b in rows], pa.int8())
    table = pa.table(columns)
    if message is None:
        check_rows(Path("t"), table, AXES)
    else:
        with pytest.raises(FormatError, match=f"^t: {message}; build or fetch"):
            check_rows(Path("t"), table, AXES)


def test_what_cannot_be_written_is_known_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    check_writable(path)
    assert list(tmp_path.iterdir()) == []
    path.write_text("old")
    (tmp_path / "labels").mkdir()
    (tmp_path / "manifest.json").touch()
    check_writable(path)
    assert path.read_text() == "old"
    for place, message in (
        (tmp_path, "is a folder; name a file"),
        (tmp_path / "no" / "x", "there is no folder .*no$"),
        (path / "y", "there is no folder"),
        (Path("/dev/null"), "is not a regular file"),
        (tmp_path / "labels" / "cls.parquet", f"belongs to the dataset in {tmp_path}; write to"),
        (tmp_path / "manifest.json", "belongs to the dataset in"),
    ):
        with pytest.raises(CfqaError, match=f"^{place}: {message}"):
            check_writable(place)

    def forbidden(**_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("cfqa_data.format.storage.TemporaryFile", forbidden)
    with pytest.raises(CfqaError, match=r"x: cannot create a file in .*: Permission denied"):
        check_writable(path)
