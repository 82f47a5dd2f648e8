"""Invariants of a dataset folder: builders satisfy them, and the page lists all of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from memory_dataset import rows_of
from mock_dataset import TOY_SHAPES, toy_recipe, write_mock_dataset

from cfqa_data.builders.pipeline.context import BuildContext
from cfqa_data.builders.pipeline.pack import label_table
from cfqa_data.builders.pipeline.plan import Item, Plan
from cfqa_data.errors import BuildError, FormatError
from cfqa_data.format.facts import TaskEntry
from cfqa_data.format.format_1 import read_tasks
from cfqa_data.format.invariants import (
    POSITION_RULES,
    RANGE_RULES,
    VALUE_RULES,
    LabelRows,
    check_source_ids,
    check_task_names,
    first_unordered,
    fold_of,
    measured_bits,
    shard_of,
)
from cfqa_data.format.layout import Layout
from cfqa_data.format.schema import label_schema
from cfqa_data.format.storage import write_table

FORMAT = Path(__file__).parents[1] / "docs" / "format.md"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    recipe = toy_recipe(2)
    recipe = replace(recipe, tasks={"cls": recipe.tasks["cls"]})
    folder = write_mock_dataset(tmp_path_factory.mktemp("invariants"), sources=2, recipe=recipe)
    return pq.read_table(folder / "labels/cls.parquet", partitioning=None)


def test_ids_of_several_tasks() -> None:
    check_source_ids({"cls": ["a", "b"], "seg": ["c"], "dpt": ["aa"]})
    with pytest.raises(FormatError, match=r"^'b' is the id of a source of cls and of one of dpt: "):
        check_source_ids({"cls": ["a", "b"], "seg": ["c"], "dpt": ["b"]})
    with pytest.raises(FormatError, match=r"^'c' is the id of two sources of seg: ids are unique"):
        check_source_ids({"cls": ["a"], "seg": ["c", "c"]})


def test_positions_say_fold_and_shard() -> None:
    assert fold_of(np.arange(7)).tolist() == [0, 1, 2, 3, 4, 0, 1]
    assert [shard_of(position, 3) for position in range(7)] == [0, 0, 0, 1, 1, 1, 2]


def test_the_order_is_by_source_codec_and_level(table: pa.Table) -> None:
    def first(*keys: tuple[int, int, int]) -> int | None:
        places = np.array(keys, np.int64).T
        return first_unordered(LabelRows(table, _entry(), *places))

    assert first((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)) is None
    assert first((0, 0, 0), (1, 0, 0), (0, 1, 0)) == 2
    assert first((0, 1, 0), (0, 0, 9)) == 1
    assert first((0, 0, 0), (0, 0, 0)) == 1


def _entry() -> TaskEntry:
    recipe = toy_recipe(2)
    recipe = replace(recipe, tasks={"cls": recipe.tasks["cls"]})
    told = {"shape": list(TOY_SHAPES["cls"]), "sources": ["cls-000", "cls-001"]}
    return read_tasks(recipe.to_dict(), {"cls": told})["cls"]


def labels_of(folder: Path, table: pa.Table, **changes: Any) -> pa.Table:
    """Return the table of a build from the rows of its items, of which the second is changed."""
    recipe = toy_recipe(2)
    context = BuildContext(Plan(recipe), Layout(folder))
    for codec in recipe.tasks["cls"].codecs:
        rows = rows_of(table, codec=codec)
        rows = [row | {"tokens": TOY_SHAPES["cls"][2], "group": row["source_id"]} for row in rows]
        rows[1] |= changes
        marker = Item("compress", "cls", codec, 0).result_path(context.layout)
        write_table(marker, pa.Table.from_pylist(rows, schema=label_schema(2)))
    return label_table(context, _entry(), 1)


def test_a_build_puts_rows_in_order(table: pa.Table, tmp_path: Path) -> None:
    assert labels_of(tmp_path, table).equals(table.replace_schema_metadata())


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("fold", 3),
        ("array", "compressed/seg/x265.zarr"),
        ("parameter_name", "lambda"),
        ("parameter", 99.0),
        ("bpfp", 0.5),
        ("distortion", -1.0),
        ("cka", float("nan")),
        ("loss", float("nan")),
    ],
)
def test_a_build_makes_no_labels_that_break_a_rule(
    column: str, value: Any, table: pa.Table, tmp_path: Path
) -> None:
    with pytest.raises(BuildError, match=f"^labels of cls: {column} of cls-000 by .* not "):
        labels_of(tmp_path, table, **{column: value})


def test_the_page_names_every_column_of_which_something_holds() -> None:
    told = FORMAT.read_text(encoding="utf-8").partition("\n## Invariants\n")[2]
    rules = (*POSITION_RULES, *VALUE_RULES, *RANGE_RULES, measured_bits(np.zeros(1)))
    assert [rule.column for rule in rules if f"`{rule.column}`" not in told] == []


@pytest.mark.parametrize(
    ("codecs", "message"),
    [
        ({"originals": ["a"]}, "'originals' is reserved"),
        ({"default": ["a"]}, "'default' is reserved"),
        ({"x": ["a"], "x-gallery": ["a"]}, "no task is called 'x-gallery' beside 'x'"),
        ({"a": ["b-c"], "a-b": ["c"]}, "codec b-c of task a and codec c of task a-b would share"),
    ],
)
def test_no_two_files_of_a_folder_get_the_same_name(
    codecs: dict[str, list[str]], message: str
) -> None:
    with pytest.raises(FormatError, match=message):
        check_task_names(codecs)
    check_task_names({"a": ["b", "c"], "a-b": ["d"], "x-gallery": ["a"]})
