"""`attach` beyond the tests of all loaders, and the card against the findings of `datasets`."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import yaml
from datasets import load_dataset
from mock_dataset import write_mock_dataset
from torch.utils.data import DataLoader

import cfqa_data
from cfqa_data.errors import CfqaError, FormatError
from cfqa_data.loaders import array_feature, attach

CONFIGS = {"cls": 80, "seg": 80, "dpt": 80, "originals": 6, "all": 240}
configs = pytest.mark.parametrize("config", CONFIGS)


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    datasets.disable_progress_bars()
    with pytest.MonkeyPatch.context() as patch:  # time that unfinished streams wait
        patch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1)
        yield
    datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mock_dataset(tmp_path_factory.mktemp("hub") / "cfqa", sources=2)


@pytest.fixture(scope="module")
def plain(folder: Path) -> cfqa_data.Dataset:
    return cfqa_data.load(folder)


def rows(folder: Path, config: str = "all", *, streaming: bool = False) -> Any:
    cache = str(folder.parent / "cache")
    return load_dataset(str(folder), config, split="test", streaming=streaming, cache_dir=cache)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the reads from the folder from now on."""
    done: list[str] = []
    for name in ("original", "compressed", "bitstream"):
        read = getattr(cfqa_data.Dataset, name)

        def counted(self: Any, *key: Any, read: Any = read, name: str = name) -> Any:
            done.append(name)
            return read(self, *key)

        monkeypatch.setattr(cfqa_data.Dataset, name, counted)
    return done


def same(row: dict[str, Any], plain: cfqa_data.Dataset) -> None:
    key = row["source_id"], row["codec"], row["level"]
    np.testing.assert_array_equal(np.asarray(row["original"]), plain.original(key[0]))
    np.testing.assert_array_equal(np.asarray(row["compressed"]), plain.compressed(*key))


def test_arrays_are_read_when_a_cell_is_taken(
    folder: Path, plain: cfqa_data.Dataset, reads: list[str]
) -> None:
    attached = attach(rows(folder), folder)
    assert attached["level"][2:6] == [2, 3, 4, 5]
    assert reads == []
    same(attached[7], plain)
    assert reads[:2] == ["original", "compressed"]
    reads.clear()
    assert [array.shape for array in attached["compressed"][3:5]] == [(1, 1, 9, 16)] * 2
    assert reads == ["compressed"] * 2


def test_filtering_on_labels_reads_no_array(folder: Path, reads: list[str]) -> None:
    attached = attach(rows(folder), folder)
    kept = [
        attached.filter(lambda codec: codec == "vvenc", input_columns="codec"),
        attached.filter(lambda b: [c == "vvenc" for c in b["codec"]], batched=True),
        attached.map(lambda row: {"half": row["mse"] / 2}).select(range(60)),
        attached.shuffle(seed=0).flatten_indices().take(60),
    ]
    assert [len(part) for part in kept] == [60] * 4
    assert reads == []
    assert kept[0][0]["compressed"].shape == (1, 1, 9, 16)


def test_a_stream_that_is_shuffled_or_skipped_reads_what_it_gives(
    folder: Path, reads: list[str]
) -> None:
    attached = attach(rows(folder, streaming=True), folder)
    assert len(list(attached.skip(100).shuffle(seed=0, buffer_size=50).take(5))) == 5
    assert len(reads) <= 12  # of the returned rows, and of at most one more


def test_select_shuffle_filter_and_map_keep_the_arrays(
    folder: Path, plain: cfqa_data.Dataset
) -> None:
    attached = attach(rows(folder, "seg"), folder)
    changed = attached.filter(lambda row: bool(row["mse"] > 0.01)).shuffle(seed=3)
    changed = changed.select(range(5)).map(lambda row: {"mean": float(row["original"].mean())})
    assert len(changed) == 5
    for row in changed:
        same(row, plain)
        assert row["mean"] == pytest.approx(float(row["original"].mean()), abs=1e-7)


def test_streams_can_be_filtered_shuffled_and_mapped(
    folder: Path, plain: cfqa_data.Dataset
) -> None:
    attached = attach(rows(folder, "dpt", streaming=True), folder)
    changed = attached.filter(lambda row: row["level"] == 9).shuffle(seed=0, buffer_size=8)
    taken = list(changed.map(lambda row: {"mean": float(row["compressed"].mean())}).take(3))
    assert len(taken) == 3
    for row in taken:
        same(row, plain)
        assert row["compressed"].dtype == np.float32
        assert row["mean"] == float(row["compressed"].mean())


def test_a_stream_reads_no_further_than_it_is_followed(folder: Path, reads: list[str]) -> None:
    stream = iter(attach(rows(folder, "cls", streaming=True), folder))
    next(stream)
    assert len(reads) <= 4  # of this row, and of at most one more


def test_bitstreams_are_given_on_request(folder: Path, plain: cfqa_data.Dataset) -> None:
    for streaming in (False, True):
        part = attach(rows(folder, "cls", streaming=streaming), folder, arrays="bitstream")
        row = next(iter(part))
        assert row["bitstream"] == plain.bitstream(row["source_id"], row["codec"], row["level"])
        assert not {"original", "compressed"} & row.keys()


def test_torch_tensors(folder: Path, plain: cfqa_data.Dataset) -> None:
    for streaming in (False, True):
        part = attach(rows(folder, "cls", streaming=streaming), str(folder), format="torch")
        row = next(iter(part))
        assert row["original"].dtype == row["compressed"].dtype == torch.float32
        assert type(row["level"]) is int
        same(row, plain)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("before", [False, True])
def test_formats_of_datasets_keep_the_arrays(
    folder: Path, plain: cfqa_data.Dataset, streaming: bool, before: bool
) -> None:
    labels = rows(folder, "cls", streaming=streaming)
    for format, kind in (("numpy", np.ndarray), ("torch", torch.Tensor)):
        if before:
            part = attach(labels.with_format(format), folder)
        else:
            part = attach(labels, folder).with_format(format)
        row = next(iter(part))
        assert row["level"].dtype is not None  # `datasets`' own doing, and of its own types
        assert isinstance(row["original"], kind)
        assert "float32" in str(row["original"].dtype)
        same({**row, "codec": str(row["codec"]), "level": int(row["level"])}, plain)


def test_streams_of_unknown_columns_get_arrays(folder: Path, plain: cfqa_data.Dataset) -> None:
    stream = rows(folder, "cls", streaming=True).map(lambda row: {"x": 1})
    assert stream.features is None
    same(next(iter(attach(stream, folder))), plain)


def test_rows_can_be_attached_anew(folder: Path, tmp_path: Path, plain: cfqa_data.Dataset) -> None:
    other = write_mock_dataset(tmp_path / "cfqa", sources=1, seed=1)
    for streaming in (False, True):
        part = attach(attach(rows(folder, "cls", streaming=streaming), other), folder)
        same(next(iter(part)), plain)


def test_originals_have_only_originals(folder: Path, plain: cfqa_data.Dataset) -> None:
    attached = attach(rows(folder, "originals"), plain)
    assert len(attached) == 6
    assert "compressed" not in attached[5]
    np.testing.assert_array_equal(attached[5]["original"], plain.original("dpt-001"))
    few = attach(rows(folder).select_columns(["source_id", "mse"]), plain)
    assert set(few[0]) == {"source_id", "mse", "original"}


@pytest.mark.parametrize("streaming", [False, True])
def test_all_splits_at_once(folder: Path, streaming: bool, plain: cfqa_data.Dataset) -> None:
    loaded = load_dataset(str(folder), streaming=streaming, cache_dir=str(folder.parent / "cache"))
    attached = attach(loaded, folder)
    assert type(attached) is type(loaded)
    same(next(iter(attached["test"])), plain)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("method", "workers"), [("fork", 2), pytest.param("spawn", 1, marks=pytest.mark.release)]
)
def test_data_loader_workers(
    folder: Path, method: str, workers: int, plain: cfqa_data.Dataset
) -> None:
    part = attach(rows(folder, "seg"), folder, format="torch").shuffle(seed=1).select(range(8))
    part = part.select_columns(["source_id", "codec", "level", "mse", "original", "compressed"])
    wanted = [[row[name] for name in ("source_id", "codec", "level")] for row in part]
    loader = DataLoader(part, batch_size=4, num_workers=workers, multiprocessing_context=method)
    found = []
    for batch in loader:
        assert batch["original"].dtype == torch.float32
        assert batch["original"].shape == (4, 2, 1, 9, 16)
        for i in range(4):
            row = {name: batch[name][i] for name in batch}
            same(row | {"level": int(row["level"])}, plain)
            found.append([row["source_id"], row["codec"], int(row["level"])])
    assert found == wanted


def test_a_pickled_dataset_is_small_and_reads_the_same(
    folder: Path, plain: cfqa_data.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(array_feature, "HANDLES", {})  # all that was attached goes with it
    attached = attach(rows(folder), folder)
    assert attached[0]["original"] is not None
    data = pickle.dumps(attached)
    assert len(data) < 200_000  # no features
    same(pickle.loads(data)[100], plain)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((), {}, r"needs the dataset folder, as in attach\(ds, 'cfqa'\)"),
        (("nowhere",), {}, "nowhere: not a CFQA dataset folder"),
        (("folder",), {"format": "tf"}, "unknown format 'tf': .*known: numpy, torch"),
        (("folder",), {"arrays": ["orginal"]}, "unknown array 'orginal': did you mean 'original'"),
    ],
)
def test_what_cannot_be_attached_is_told(
    folder: Path, arguments: Any, options: dict[str, Any], message: str
) -> None:
    where = [folder if name == "folder" else name for name in arguments]
    with pytest.raises(CfqaError, match=message):
        attach(rows(folder), *where, **options)


def test_other_data_is_refused(folder: Path) -> None:
    with pytest.raises(CfqaError, match="takes a result of load_dataset, not a list"):
        attach([], folder)
    with pytest.raises(CfqaError, match="these have no source_id"):
        attach(datasets.Dataset.from_dict({"x": [1]}), folder)


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_of_another_folder_are_told(folder: Path, tmp_path: Path, streaming: bool) -> None:
    other = write_mock_dataset(tmp_path / "cfqa", sources=1)
    attached = attach(rows(folder, "cls", streaming=streaming), other)
    with pytest.raises(FormatError, match="unknown source 'cls-001'"):
        list(attached)


@configs
def test_the_card_says_what_datasets_finds_by_itself(
    folder: Path, tmp_path: Path, config: str
) -> None:
    """Compare features, rows, bytes and download size with those found without the card."""
    head = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
    said = {entry["config_name"]: entry for entry in head.pop("dataset_info")}[config]
    shutil.copytree(folder / "labels", tmp_path / "cfqa/labels")
    (tmp_path / "cfqa/README.md").write_text(f"---\n{yaml.safe_dump(head)}---\n")
    builder = datasets.load_dataset_builder(
        str(tmp_path / "cfqa"), config, cache_dir=str(tmp_path / "cache")
    )
    builder.download_and_prepare()
    info = builder.info
    assert said["features"] == info.features._to_yaml_list()
    (split,) = said["splits"]
    found = info.splits["test"]
    assert split == {
        "name": "test",
        "num_bytes": found.num_bytes,
        "num_examples": found.num_examples,
    }
    assert found.num_examples == CONFIGS[config]
    assert said["download_size"] == info.download_size
    assert said["dataset_size"] == info.dataset_size


@configs
@pytest.mark.parametrize("streaming", [False, True])
def test_columns_are_typed(folder: Path, config: str, streaming: bool) -> None:
    loaded = rows(folder, config, streaming=streaming)
    types = {name: feature.dtype for name, feature in loaded.features.items()}
    assert types["fold"] == "int8"
    assert types["reference_score"] == "float64"
    assert len(list(loaded)) == CONFIGS[config]
    if config != "originals":
        assert (types["level"], types["bits"], types["index"]) == ("int8", "int64", "int32")
