"""All public operations of `datasets` on attached rows keep arrays, or the docs say why not.

The names come from the installed version; one that is in no table here fails until it is.
"""

from __future__ import annotations

import copy
import functools
import inspect
import pickle
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Features, Value, concatenate_datasets, interleave_datasets, load_dataset
from datasets.distributed import split_dataset_by_node
from datasets.fingerprint import Hasher
from mock_dataset import write_mock_dataset
from torch.utils.data import DataLoader

import cfqa_data
from cfqa_data.errors import FormatError
from cfqa_data.loaders import array_feature, attach

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Specifying null_placement:FutureWarning"),  # of `sort`
]

ROWS = 12
ARRAYS = ["original", "compressed"]
KEY = ["source_id", "codec", "level"]
Rows = Iterable[dict[str, Any]]


@dataclass
class Case:
    """The inputs of an operation.

    Attributes:
        rows: Attached rows, the first of a folder.
        other: As many attached rows of another folder, with other arrays under the same names.
        root: The folder of `rows`.
        tmp: A folder to write to.
    """

    rows: Any
    other: Any
    root: Path
    tmp: Path


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    base = tmp_path_factory.mktemp("operations")
    return [
        write_mock_dataset(base / name / "cfqa", sources=1, seed=seed)
        for seed, name in enumerate(("a", "b"))
    ]


@pytest.fixture(scope="module")
def tables(roots: list[Path]) -> list[Any]:
    """Return the rows of both folders without arrays."""
    return [
        load_dataset(str(root), "seg", split="test", cache_dir=str(root.parent / "cache")).take(
            ROWS
        )
        for root in roots
    ]


@pytest.fixture(scope="module")
def arrays(roots: list[Path]) -> list[list[np.ndarray]]:
    """Return (original, compressed) of each row of both folders, read by `load`."""
    return [
        [pair.original, pair.compressed]
        for root in roots
        for pair in cfqa_data.load(root, "seg")[:ROWS]
    ]


@pytest.fixture(scope="module")
def attached(roots: list[Path], tables: list[Any]) -> Callable[[bool, str], list[Any]]:
    """Return the rows of both folders with arrays in a format."""

    @functools.cache
    def rows(streaming: bool, format: str) -> list[Any]:
        return [
            attach(table.to_iterable_dataset(2) if streaming else table, root, format=format)
            for table, root in zip(tables, roots, strict=True)
        ]

    return rows


@pytest.fixture
def case(
    attached: Callable[[bool, str], list[Any]], roots: list[Path], tmp_path: Path, request: Any
) -> Case:
    first, other = copy.deepcopy(attached(*request.param))
    return Case(first, other, roots[0], tmp_path)


def place(row: dict[str, Any]) -> int:
    """Return the index of a row in its folder."""
    codecs = ("x265", "vvenc")
    return codecs.index(row["codec"]) * 10 + int(row["level"])


def double(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {"compressed": [2 * array for array in batch["compressed"]]}


def mean(row: dict[str, Any]) -> dict[str, float]:
    return {"mean": float(row["original"].mean())}


def rows_of(batches: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """Yield the rows of batches."""
    for batch in batches:
        for index in range(len(batch["level"])):
            yield {name: values[index] for name, values in batch.items()}


def rows_in(splits: Any) -> Iterator[dict[str, Any]]:
    for rows in splits.values():
        yield from rows


def encoded(case: Case) -> Any:
    """Return the rows with an additional column of classes."""
    rows = case.rows.map(lambda codec: {"class": codec}, input_columns="codec")
    return rows.class_encode_column("class")


def set_in_place(case: Case, **how: Any) -> Any:
    rows = pickle.loads(pickle.dumps(case.rows))
    rows.set_format(**how)
    return rows


def saved(case: Case) -> Any:
    case.rows.save_to_disk(str(case.tmp / "saved"))
    return datasets.load_from_disk(str(case.tmp / "saved"))


def written(case: Case) -> Any:
    case.rows.to_parquet(str(case.tmp / "a.parquet"))
    cells = pq.read_table(case.tmp / "a.parquet")["compressed"].to_pylist()
    assert all(re.fullmatch(r"[0-9a-f]{16}/seg-000/\w+/\d", cell) for cell in cells)
    return datasets.Dataset.from_parquet(
        str(case.tmp / "a.parquet"), cache_dir=str(case.tmp / "cache")
    )


def transformed(case: Case, *, in_place: bool) -> Any:
    rows = pickle.loads(pickle.dumps(case.rows))
    if in_place:
        rows.set_transform(lambda batch: dict(batch))
        return rows
    return rows.with_transform(lambda batch: dict(batch))


def formatted(case: Case) -> Iterator[dict[str, Any]]:
    rows = case.rows
    with rows.formatted_as("torch"):
        for row in rows:
            assert isinstance(row["original"], torch.Tensor)
            yield row


def resumed(case: Case) -> Iterator[dict[str, Any]]:
    stream = iter(case.rows)
    yield from (next(stream) for _ in range(5))
    state = case.rows.state_dict()
    stream.close()
    again = pickle.loads(pickle.dumps(case.rows))
    again.load_state_dict(state)
    yield from again


def in_epoch(case: Case) -> Any:
    rows = case.rows.shuffle(seed=1, buffer_size=4)
    rows.set_epoch(2)
    return rows


def nodes(case: Case) -> Iterator[dict[str, Any]]:
    for rank in range(2):
        yield from split_dataset_by_node(case.rows, rank, 2)


def loaded(rows: Any) -> Iterator[dict[str, Any]]:
    yield from rows_of(DataLoader(rows.select_columns(KEY + ARRAYS), 4, num_workers=1))


BOTH: dict[str, Callable[[Case], Rows]] = {
    "__iter__": lambda c: c.rows,
    "add_column": lambda c: c.rows.add_column("x", list(range(ROWS))),
    "cast": lambda c: c.rows.cast(c.rows.features),
    "cast_column": lambda c: c.rows.cast_column("mse", Value("float32")),
    "filter": lambda c: c.rows.filter(lambda row: row["original"].size > 0),
    "filter batched": lambda c: c.rows.filter(
        lambda batch: [array.size > 0 for array in batch["compressed"]], batched=True, batch_size=5
    ),
    "filter input_columns": lambda c: c.rows.filter(lambda _: True, input_columns=["level"]),
    "iter": lambda c: rows_of(c.rows.iter(5)),
    "map": lambda c: c.rows.map(mean),
    "map nothing": lambda c: c.rows.map(),
    "map the same": lambda c: c.rows.map(lambda row: row),
    "map everything": lambda c: c.rows.map(lambda row: {**row, "x": 1}),
    "map batched": lambda c: c.rows.map(
        lambda batch: {"x": [float(array.sum()) for array in batch["compressed"]]},
        batched=True,
        batch_size=5,
    ),
    "map everything batched": lambda c: c.rows.map(
        lambda batch: dict(batch), batched=True, batch_size=5
    ),
    "map with_indices": lambda c: c.rows.map(lambda row, i: {"x": i}, with_indices=True),
    "map remove_columns": lambda c: c.rows.map(mean, remove_columns=["mse", "index"]),
    "map features": lambda c: c.rows.map(
        mean, features=Features({**c.rows.features, "mean": Value("float64")})
    ),
    "pickle": lambda c: pickle.loads(pickle.dumps(c.rows)),
    "remove_columns": lambda c: c.rows.remove_columns(["mse", "index"]),
    "rename_column": lambda c: c.rows.rename_column("mse", "error"),
    "rename_columns": lambda c: (
        {**row, "original": row["x"]} for row in c.rows.rename_columns({"original": "x"})
    ),
    "repeat": lambda c: c.rows.repeat(2),
    "select_columns": lambda c: c.rows.select_columns(KEY + ARRAYS),
    "shard": lambda c: c.rows.shard(1, 0),
    "shuffle": lambda c: c.rows.shuffle(seed=1),
    "skip": lambda c: c.rows.skip(4),
    "take": lambda c: c.rows.take(4),
    "with_format": lambda c: c.rows.with_format("numpy"),
    "with_format torch": lambda c: c.rows.with_format("torch"),
    "with_format None": lambda c: c.rows.with_format("torch").with_format(None),
    "concatenate_datasets": lambda c: concatenate_datasets([c.rows, c.other]),
    "interleave_datasets": lambda c: interleave_datasets([c.rows, c.other]),
    "interleave_datasets by chance": lambda c: interleave_datasets(
        [c.rows, c.other], probabilities=[0.5, 0.5], seed=0, stopping_strategy="all_exhausted"
    ),
    "split_dataset_by_node": nodes,
    "DataLoader": lambda c: loaded(c.rows),
}
"""Case -> expected rows. The first word of a case is the name of the operation."""

DATASET: dict[str, Callable[[Case], Rows]] = {
    "__getitem__": lambda c: (c.rows[index] for index in range(ROWS)),
    "__getitem__ slice": lambda c: rows_of([c.rows[2:7]]),
    "__getitem__ list": lambda c: rows_of([c.rows[[3, 1]]]),
    "__getitem__ column": lambda c: rows_of(
        [{name: c.rows[name] for name in KEY + ARRAYS}]  # each read by place
    ),
    "add_item": lambda c: c.rows.add_item(c.rows.to_list()[3]),
    "align_labels_with_mapping": lambda c: encoded(c).align_labels_with_mapping(
        {"x265": 1, "vvenc": 0}, "class"
    ),
    "class_encode_column": encoded,
    "filter num_proc": lambda c: c.rows.filter(lambda row: row["original"].size, num_proc=2),
    "flatten": lambda c: c.rows.flatten(),
    "flatten_indices": lambda c: c.rows.shuffle(seed=1).flatten_indices(),
    "formatted_as": formatted,
    "load_from_disk": saved,
    "map num_proc": lambda c: c.rows.map(mean, num_proc=2),
    "map from the cache": lambda c: (c.rows.map(mean), c.rows.map(mean))[1],
    "reset_format": lambda c: (rows := set_in_place(c, type="torch"), rows.reset_format())[0],
    "save_to_disk": saved,
    "select": lambda c: c.rows.select([3, 1, 7]),
    "set_format": lambda c: set_in_place(c, type="numpy", columns=KEY + ARRAYS),
    "set_transform": lambda c: transformed(c, in_place=True),
    "sort": lambda c: c.rows.sort("mse"),
    "to_iterable_dataset": lambda c: c.rows.to_iterable_dataset(3),
    "to_parquet": written,
    "train_test_split": lambda c: rows_in(c.rows.train_test_split(0.5, seed=0)),
    "train_test_split stratified": lambda c: rows_in(
        encoded(c).train_test_split(0.5, stratify_by_column="class", seed=0)
    ),
    "unique": lambda c: (c.rows, c.rows.unique("codec"))[0],
    "with_transform": lambda c: transformed(c, in_place=False),
}

STREAM: dict[str, Callable[[Case], Rows]] = {
    "batch": lambda c: rows_of(c.rows.batch(5)),
    "decode": lambda c: c.rows.decode(num_threads=0),
    "load_state_dict": resumed,
    "reshard": lambda c: c.rows.reshard(),
    "set_epoch": in_epoch,
    "shuffle buffer": lambda c: c.rows.shuffle(seed=1, buffer_size=4),
    "state_dict": resumed,
    "to_parquet": written,
}


def of_sql(case: Case) -> list[str]:
    with closing(sqlite3.connect(case.tmp / "a.db")) as connection:
        case.rows.to_sql("rows", connection)
        return [cell for (cell,) in connection.execute("select compressed from rows")]


def of_file(case: Case, read: Callable[[Any], pd.DataFrame], kind: str) -> list[str]:
    path = case.tmp / f"a.{kind}"
    getattr(case.rows, f"to_{kind}")(str(path))
    return list(read(path)["compressed"])


CELLS: dict[str, Callable[[Case], Iterable[str]]] = {
    "to_csv": lambda c: of_file(c, pd.read_csv, "csv"),
    "to_dict": lambda c: c.rows.to_dict()["compressed"],
    "to_json": lambda c: of_file(c, lambda path: pd.read_json(path, lines=True), "json"),
    "to_list": lambda c: [row["compressed"] for row in c.rows.to_list()],
    "to_pandas": lambda c: c.rows.to_pandas()["compressed"],
    "to_parquet": lambda c: (written(c), pq.read_table(c.tmp / "a.parquet")["compressed"])[
        1
    ].to_pylist(),
    "to_polars": lambda c: pytest.importorskip("polars") and c.rows.to_polars()["compressed"],
    "to_sql": of_sql,
    "with_format": lambda c: (
        cell
        for batch in c.rows.with_format("arrow").iter(5)
        for cell in batch["compressed"].to_pylist()
    ),
}
"""Operations that return keys instead of arrays, as documented."""

INDEX = {
    "add_elasticsearch_index",
    "add_faiss_index",
    "add_faiss_index_from_external_arrays",
    "drop_index",
    "get_index",
    "get_nearest_examples",
    "get_nearest_examples_batch",
    "is_index_initialized",
    "list_indexes",
    "load_elasticsearch_index",
    "load_faiss_index",
    "save_faiss_index",
    "search",
    "search_batch",
}
NOT_POSSIBLE = {"batch", "push_to_hub", "to_tf_dataset"} | INDEX
"""Operations that the docs list as such; `batch` only for a `Dataset`."""

NOT_OF_ROWS = (
    "builder_name cache_files citation cleanup_cache_files column_names config_name data "
    "dataset_size description download_checksums download_size epoch features format homepage info "
    "license n_shards num_columns num_rows num_shards shape size_in_bytes split supervised_keys "
    "version from_buffer from_csv from_dict from_file from_generator from_json from_list "
    "from_pandas from_parquet from_polars from_spark from_sql from_text"
)
"""Attributes of a dataset, and functions that create one from other data."""


def named(table: dict[str, Any]) -> set[str]:
    return {name.split()[0] for name in table}


@pytest.mark.parametrize(
    ("kind", "table"), [(datasets.Dataset, DATASET), (datasets.IterableDataset, STREAM)]
)
def test_every_operation_is_in_a_table(kind: type, table: dict[str, Any]) -> None:
    known = named(BOTH) | named(table) | named(CELLS) | NOT_POSSIBLE
    known |= set(NOT_OF_ROWS.split())
    there = {name for name in dir(kind) if not name.startswith("_")}
    assert there - known == set(), "new operations: put them into a table, and into the docs"


def test_every_function_of_several_datasets_is_in_a_table() -> None:
    there = {
        name
        for module in (datasets.combine, datasets.distributed)
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__
        if not name.startswith("_")
    }
    assert there - named(BOTH) == set()


MAP_STYLE, STREAMED = (False, "numpy"), (True, "numpy")
tried = [
    *((name, kind) for name in BOTH for kind in (MAP_STYLE, STREAMED)),
    *((name, MAP_STYLE) for name in DATASET),
    *((name, STREAMED) for name in STREAM),
]


@pytest.mark.parametrize(
    ("name", "case"),
    tried,
    indirect=["case"],
    ids=[f"{'stream' if kind[0] else 'dataset'}-{name}" for name, kind in tried],
)
def test_rows_keep_their_arrays(name: str, case: Case, arrays: list[list[np.ndarray]]) -> None:
    operation = (BOTH | (STREAM if isinstance(case.rows, datasets.IterableDataset) else DATASET))[
        name
    ]
    seen: set[int] = set()
    for row in operation(case):
        found = [np.asarray(row[array]) for array in ARRAYS]
        of = place(row)
        if not np.array_equal(found[0], arrays[of][0]):  # a row of the other folder
            of += ROWS
        for array, exact in zip(found, arrays[of], strict=True):
            assert array.dtype == np.float32
            assert array.tobytes() == exact.tobytes()
        seen.add(of)
    whole = {"skip": 8, "take": 4, "select": 3, "__getitem__ slice": 5, "__getitem__ list": 2}
    both = {"concatenate_datasets": 24, "interleave_datasets by chance": 24}
    least = {"interleave_datasets": 23}  # a stream stops when the first of its inputs ends
    assert len(seen) >= {**whole, **both, **least}.get(name, ROWS)


@pytest.mark.parametrize("case", [MAP_STYLE, STREAMED], indirect=True, ids=["dataset", "stream"])
@pytest.mark.parametrize("name", CELLS)
def test_what_leaves_datasets_has_the_keys(name: str, case: Case) -> None:
    cells = list(CELLS[name](case))
    keys = [re.fullmatch(r"([0-9a-f]{16})/seg-000/(\w+)/(\d)", cell) for cell in cells]
    assert len(keys) == ROWS
    assert [key and key[3] for key in keys] == [str(place % 10) for place in range(ROWS)]


@pytest.mark.parametrize("case", [(False, "torch")], indirect=True)
def test_a_batch_has_tensors_that_can_be_stacked(case: Case) -> None:
    batch = case.rows[0:4]["compressed"]
    assert torch.stack(batch).shape == (4, 2, 1, 9, 16)
    assert torch.stack(case.rows["original"][0:4]).dtype == torch.float32
    assert torch.equal(torch.stack(batch), torch.stack(case.rows.batch(4)[0]["compressed"]))


@pytest.mark.parametrize("case", [MAP_STYLE, STREAMED], indirect=True, ids=["dataset", "stream"])
@pytest.mark.parametrize("batched", [False, True])
def test_arrays_that_a_function_returns_are_kept(case: Case, batched: bool) -> None:
    changed = case.rows.map(
        double if batched else lambda row: {"compressed": 2 * row["compressed"]},
        batched=batched,
        features=case.rows.features,
    )
    for before, after in zip(case.rows, changed, strict=True):
        assert after["compressed"].dtype == np.float32
        np.testing.assert_array_equal(after["compressed"], 2 * before["compressed"])
        np.testing.assert_array_equal(after["original"], before["original"])


@pytest.mark.parametrize("case", [MAP_STYLE], indirect=True)
def test_arrays_that_a_function_returns_are_kept_where_types_are_inferred(case: Case) -> None:
    changed = case.rows.map(lambda row: {"compressed": row["compressed"][:, :, 1:]})
    assert changed[5]["compressed"].shape == (2, 1, 8, 16)
    np.testing.assert_array_equal(changed[5]["compressed"], case.rows[5]["compressed"][:, :, 1:])
    other = case.rows.map(lambda row: {"original": 0.5, "compressed": None})
    assert other[0]["original"] == 0.5
    assert other[0]["compressed"] is None


def test_keys_are_the_same_in_every_process_and_by_folder_and_how_it_was_opened(
    roots: list[Path],
) -> None:
    opened = cfqa_data.load(roots[0])
    name = array_feature.register(opened)
    assert opened[0].label["level"] == 0  # reading must not change the name
    assert (
        array_feature.register(opened)
        == name
        == array_feature.register(cfqa_data.load(roots[0], "cls"))
    )
    others = [cfqa_data.load(roots[1])]
    others += [cfqa_data.load(roots[0], **{how: True}) for how in ("untrusted", "follow_links")]
    assert len({name, *map(array_feature.register, others)}) == 4


def become_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(array_feature, "HANDLES", {})
    monkeypatch.setattr(array_feature, "OPEN", {})


@pytest.mark.parametrize("case", [MAP_STYLE, STREAMED], indirect=True, ids=["dataset", "stream"])
@pytest.mark.parametrize("described", ["alike", "otherwise"])
def test_a_pickle_of_several_folders_rows_reads_all(
    case: Case, described: str, arrays: list[list[np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    case.other.info.description = described  # `datasets` merges what differs in another way
    case.rows.info.description = "alike"
    alternating = [row for both in zip(arrays[:ROWS], arrays[ROWS:], strict=True) for row in both]
    for join, exact in ((concatenate_datasets, arrays), (interleave_datasets, alternating)):
        pickled = pickle.dumps(join([case.rows, case.other]))
        with monkeypatch.context() as patch:
            become_another_process(patch)
            found = list(pickle.loads(pickled))
            assert len(found) >= 2 * ROWS - 1  # a stream ends with the first exhausted input
            for row, (_, compressed) in zip(found, exact, strict=False):
                np.testing.assert_array_equal(row["compressed"], compressed)


@pytest.mark.parametrize("case", [MAP_STYLE], indirect=True)
def test_a_fingerprint_depends_on_the_rows_alone_not_on_what_was_attached_or_read(
    case: Case, roots: list[Path], tables: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    next(iter(case.rows))  # read, beside another folder
    become_another_process(monkeypatch)
    alone = attach(tables[0], roots[0])
    assert Hasher.hash(alone.features) == Hasher.hash(case.rows.features)
    assert alone._fingerprint == case.rows._fingerprint
    assert alone._fingerprint != case.other._fingerprint
    assert Hasher.hash(alone.features) != Hasher.hash(attach(tables[0], roots[0], format="torch"))


@pytest.mark.parametrize("case", [MAP_STYLE], indirect=True)
def test_a_process_that_does_not_know_the_folder_says_so(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, exact = saved(case), case.rows[0]["compressed"]
    become_another_process(monkeypatch)
    with pytest.raises(FormatError, match=r"attach\(rows, 'folder'\)"):
        rows[0]
    np.testing.assert_array_equal(attach(rows, case.root)[0]["compressed"], exact)


@pytest.mark.parametrize("cell", ["x", "a/b", "array/<f4/2,2/AAAA", "array/O/1/AAAA", "array/x/"])
def test_a_cell_that_is_none_is_told(cell: str) -> None:
    with pytest.raises(
        FormatError, match=r"which is not the name of an array|know their dataset folder"
    ):
        array_feature.CfqaArray("original").decode_example(cell)


@pytest.mark.parametrize("case", [MAP_STYLE], indirect=True)
def test_ragged_lists_stay_lists(case: Case) -> None:
    changed = case.rows.map(lambda row: {"compressed": [[1.0], [2.0, 3.0]]})
    assert changed[0]["compressed"] == [[1.0], [2.0, 3.0]]


# Errors.


@pytest.mark.parametrize("case", [MAP_STYLE], indirect=True)
def test_batch_of_a_dataset_compares_arrays_with_texts(case: Case) -> None:
    with pytest.raises(ValueError, match="truth value of an array"):
        case.rows.batch(4)[0]


@pytest.mark.parametrize("case", [STREAMED], indirect=True)
def test_a_mapped_stream_is_concatenated_if_its_types_are_said(case: Case) -> None:
    with pytest.raises(pa.ArrowInvalid):
        concatenate_datasets([case.rows.map(mean), case.other.map(mean)])
    features = Features({**case.rows.features, "mean": Value("float64")})
    parts = [rows.map(mean, features=features) for rows in (case.rows, case.other)]
    for row in concatenate_datasets(parts):
        assert row["mean"] == float(row["original"].mean())


def test_the_docs_list_what_is_not_possible_and_what_gives_keys() -> None:
    page = (Path(__file__).parents[1] / "docs/loading.md").read_text()
    rows = re.findall(r"^\| (`.+?) \| (.+?) \|$", page, re.MULTILINE)
    said = {name for names, _ in rows for name in re.findall(r"`(?:\w+\.)?(\w+)", names)}
    assert NOT_POSSIBLE | named(CELLS) <= said
