"""`Pairs` and its loader beyond the tests of all loaders: batches, orders, codes, workers."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from inspect import signature
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import each
from hypothesis import given, settings
from hypothesis import strategies as st
from mock_dataset import TOY_SHAPES, write_mock_dataset
from torch.utils.data import (
    ConcatDataset,
    Dataset,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
    random_split,
)

import cfqa_data
from cfqa_data.access.dataset import LoadOptions
from cfqa_data.errors import CfqaError
from cfqa_data.format.codes import Codes
from cfqa_data.guard import GUARD
from cfqa_data.loaders.torch import CodeTensors, Pair, Pairs, ShardBatches, data_loader


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mock_dataset(tmp_path_factory.mktemp("torch") / "cfqa", sources=3)


def test_an_item_is_two_features_and_a_label(folder: Path) -> None:
    pairs = Pairs(folder, "seg", codec="x265", level=[3, 7])
    assert len(pairs) == 6
    original, compressed, label = pairs[-1]
    assert original.shape == compressed.shape == TOY_SHAPES["seg"]
    assert (label.shape, label.dtype) == ((), torch.float64)
    assert label.item() == pairs.dataset.labels["distortion"][5].as_py()
    for index in (6, -7):
        with pytest.raises(IndexError, match="of 6"):
            pairs[index]


def test_labels_have_their_columns_types(folder: Path) -> None:
    label = Pairs(folder, label=["source_id", "level", "bits", "mse"])[9].label
    assert label["source_id"] == "cls-000"
    assert label["level"].dtype == torch.int8
    assert label["bits"].dtype == torch.int64
    assert label["mse"].dtype == torch.float64
    assert Pairs(folder, label="codec")[0].label == "x265"


def test_an_open_dataset_is_taken_as_it_is(folder: Path) -> None:
    opened = cfqa_data.load(folder, "dpt")[10:14]
    pairs = Pairs(opened)
    assert len(pairs) == 4
    np.testing.assert_array_equal(pairs[2].compressed.numpy(), opened[2].compressed)
    for name, value in {"task": "dpt", "level": 0, "fold": [0], "untrusted": True}.items():
        with pytest.raises(
            CfqaError, match=f"{name} can be given only with a path; pass them to load"
        ):
            Pairs(opened, **{name: value})


def test_pairs_take_what_load_takes(folder: Path) -> None:
    options = LoadOptions.__annotations__.keys()
    assert signature(cfqa_data.load).parameters.keys() == {"path", "task", *options}
    pairs = Pairs(folder, source=["cls-001", "dpt-002"], level=3, fold=[1, 0])
    assert set(pairs.dataset.labels["source_id"].to_pylist()) == {"cls-001"}
    assert len(pairs) == 4


@each(
    ("options", "message"),
    [
        ({"label": "distorsion"}, "unknown label column 'distorsion': did you mean 'distortion'"),
        ({"label": ["mse", "x"]}, "unknown label column 'x'"),
        ({"task": "clas"}, "did you mean 'cls'"),
        ({"codec": "x256"}, "did you mean 'x265'"),
        ({"source": "cls-01"}, "did you mean 'cls-001'|unknown source 'cls-01'"),
        ({"fold": [0, 3]}, "no source is in fold 3: folds are 0, 1, 2$"),
        ({"fold": True}, "no source is in fold True"),
        ({"fold": "1"}, "no source is in fold '1'"),
        ({"fold": 1.0}, "no source is in fold 1.0"),
    ],
)
def test_unknown_names_are_told(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(CfqaError, match=message):
        Pairs(folder, **options)


def test_an_index_is_one_whole_number(folder: Path) -> None:
    pairs = Pairs(folder)
    assert torch.equal(pairs[torch.tensor(3)].compressed, pairs[3 - len(pairs)].compressed)
    assert len(next(iter(data_loader(pairs, np.int64(4)))).label) == 4
    for index in ([1, 2], slice(0, 2), 1.0, np.array([1, 2]), None):
        with pytest.raises(TypeError, match=r"integer"):
            pairs[index]  # type: ignore[index]


@pytest.mark.parametrize("size", [0, -1, 2.0, True, "4"])
def test_impossible_batch_sizes_are_told(folder: Path, size: Any) -> None:
    with pytest.raises(CfqaError, match="a batch size must be a whole number from 1"):
        data_loader(Pairs(folder), size)


# Order.


@settings(max_examples=30, deadline=None)
@given(
    batch_size=st.integers(1, 50),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    codes=st.booleans(),
    seed=st.integers(0, 99),
)
def test_batches_hold_every_row_once_and_one_shape_each(
    folder: Path, batch_size: int, shuffle: bool, drop_last: bool, codes: bool, seed: int
) -> None:
    pairs = Pairs(folder, codes=codes)
    generator = torch.Generator().manual_seed(seed)
    batches = ShardBatches(
        pairs, batch_size, shuffle=shuffle, drop_last=drop_last, generator=generator
    )
    made = list(batches)
    assert len(made) == len(batches)
    labels = pairs.dataset.labels.select(["task", "codec"]).to_pylist()

    def kind(row: int) -> tuple[str, bool]:
        return labels[row]["task"], codes and "hyperprior" in labels[row]["codec"]

    for batch in made:
        assert len({kind(row) for row in batch}) == 1
        assert len(batch) == batch_size if drop_last else 0 < len(batch) <= batch_size
    rows = [row for batch in made for row in batch]
    assert len(set(rows)) == len(rows)
    kinds = Counter(map(kind, range(len(pairs))))
    left = sum(count % batch_size for count in kinds.values()) if drop_last else 0
    assert len(rows) == len(pairs) - left


@pytest.mark.parametrize("shuffle", [False, True])
def test_each_shard_is_read_once(folder: Path, shuffle: bool) -> None:
    pairs = Pairs(folder, "seg")
    rows = pairs.dataset.labels.select(["array", "index"]).to_pylist()
    batches = ShardBatches(pairs, 7, shuffle=shuffle, generator=torch.Generator().manual_seed(0))
    order = [row for batch in batches for row in batch]
    visits = [shard for shard, _ in groupby(tuple(rows[row].values()) for row in order)]
    assert len(visits) == len(set(visits)) == 3 * 4
    levels = pairs.dataset.labels["level"].to_pylist()
    in_order = [levels[row] for row in order] == 12 * list(range(10))
    sources = [source for source, _ in groupby(source for _, source in visits)]
    if shuffle:
        assert not in_order
    else:
        assert in_order
        assert sources == [0, 1, 2]  # no original is read twice


def test_a_shuffled_order_changes_with_the_epoch_and_can_be_repeated(folder: Path) -> None:
    pairs = Pairs(folder, "cls")

    def epochs(seed: int) -> list[list[list[int]]]:
        generator = torch.Generator().manual_seed(seed)
        batches = ShardBatches(pairs, 10, shuffle=True, generator=generator)
        return [list(batches), list(batches)]

    first, second = epochs(5)
    assert first != second
    assert epochs(5) == [first, second]
    assert epochs(6)[0] != first


def test_labels_in_another_order_are_read_by_shard_too(folder: Path) -> None:
    opened = cfqa_data.load(folder, "cls")
    mixed = cfqa_data.Dataset(
        opened._folder, opened.labels.take(np.random.default_rng(0).permutation(120))
    )
    rows = mixed.labels.select(["source_id", "codec"]).to_pylist()
    order = [row for batch in ShardBatches(Pairs(mixed), 10) for row in batch]
    visits = [shard for shard, _ in groupby(tuple(rows[row].values()) for row in order)]
    assert len(visits) == 12
    sources = [source for source, _ in groupby(source for source, _ in visits)]
    assert len(sources) == 3


# Batches.


def test_batches_are_pairs_with_a_leading_axis(folder: Path) -> None:
    pairs = Pairs(folder, codec=["x265", "hyperprior_multi_task"], level=[0, 9])
    seen = 0
    for batch in data_loader(pairs, 4):
        assert isinstance(batch, Pair)
        assert batch.original.shape == batch.compressed.shape
        assert batch.original.dtype == batch.compressed.dtype == torch.float32
        assert batch.label.shape == (len(batch.original),)
        seen += len(batch.label)
    assert seen == len(pairs) == 36


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("method", "workers"), [("fork", 2), pytest.param("spawn", 1, marks=pytest.mark.release)]
)
def test_workers_give_the_same_batches(folder: Path, method: str, workers: int) -> None:
    for codes in (False, True) if method == "fork" else (True,):
        pairs = Pairs(folder, "dpt", codec="vvenc", codes=codes, label=["source_id", "mse"])
        here = list(data_loader(pairs, 8))
        loader = data_loader(pairs, 8, workers=workers, multiprocessing_context=method)
        for _ in range(2 if method == "fork" else 1):  # epochs
            there = list(loader)
            assert len(here) == len(there) == 4
            for a, b in zip(here, there, strict=True):
                assert torch.equal(a.original, b.original)
                assert a.label["source_id"] == b.label["source_id"]
                assert torch.equal(a.label["mse"], b.label["mse"])
                if codes:
                    assert isinstance(b.compressed, CodeTensors)
                    assert torch.equal(a.compressed.dequantize(), b.compressed.dequantize())
                else:
                    assert torch.equal(a.compressed, b.compressed)


def test_a_loader_whose_workers_would_start_workers_tells_of_the_guard(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The check is made when reading starts: a loader may be created outside of the guard."""

    def end(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    assert len(list(data_loader([1, 2], 1))) == 2
    loader = data_loader([1, 2], 1, workers=1, multiprocessing_context="spawn")
    with pytest.raises(SystemExit):
        iter(loader)
    assert capsys.readouterr().err == f"cfqa: {GUARD}\n"


def test_codes_in_batches_are_what_the_plain_reader_gives(folder: Path) -> None:
    plain = Pairs(folder, label=["source_id", "codec", "level"])
    coded = Pairs(folder, label=["source_id", "codec", "level"], codes=True)
    assert coded[0].compressed.indices.dtype == torch.int16
    kinds = set()
    for batch in data_loader(coded, 6):
        indices, tables = batch.compressed
        kinds.add((indices.dtype, tables.shape[1:]))
        features = batch.compressed.dequantize("cpu")
        assert features.dtype == torch.float32
        for place, feature in enumerate(features):
            key = [batch.label[name][place] for name in ("source_id", "codec", "level")]
            expected = plain.dataset.compressed(key[0], key[1], int(key[2]))
            assert feature.numpy().tobytes() == expected.tobytes()
    sizes = {torch.int16: 1024, torch.uint8: 256}
    assert kinds == {(kind, (layers, size)) for kind, size in sizes.items() for layers in (1, 4)}


def test_the_highest_codes_are_not_negative() -> None:
    tables = np.arange(2 * 65536, dtype=np.float32).reshape(2, 65536)
    indices = np.array([0, 1, 32767, 32768, 65535], np.uint16).reshape(1, 1, 5, 1)
    codes = Codes(np.concatenate([indices, indices], axis=1), tables)
    codes.indices.flags.writeable = False  # as a decoder may leave them
    found = CodeTensors.of(codes).dequantize()
    assert found[0, :, :, 0].tolist() == [
        [0, 1, 32767, 32768, 65535],
        [65536 + k for k in (0, 1, 32767, 32768, 65535)],
    ]
    np.testing.assert_array_equal(found.numpy(), codes.dequantize())


def test_the_order_does_not_depend_on_the_default_device(folder: Path) -> None:
    pairs = Pairs(folder, "cls", codec="x265")

    def order() -> list[list[int]]:
        generator = torch.Generator().manual_seed(3)
        return list(ShardBatches(pairs, 4, shuffle=True, generator=generator))

    expected = order()
    with torch.device("meta"):
        assert order() == expected


def test_tensors_are_one_s_own(folder: Path) -> None:
    pairs = Pairs(folder, "cls")
    coded = Pairs(folder, "cls", codes=True)
    before = [tensor.clone() for tensor in (pairs[0].original, pairs[0].compressed)]
    tables = coded[0].compressed.tables.clone()
    pairs[0].original.zero_()
    pairs[0].compressed.zero_()
    coded[0].compressed.tables.zero_()
    for tensor, kept in zip((pairs[0].original, pairs[0].compressed), before, strict=True):
        assert torch.equal(tensor, kept)
    assert torch.equal(coded[0].compressed.tables, tables)


# Wrappers of pairs.

LABEL = ["task", "source_id", "codec", "level"]


class Errors(Dataset[Any]):
    """A user-defined dataset that transforms pairs."""

    def __init__(self, pairs: Any) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        original, compressed, label = self.pairs[index]
        return (compressed - original).square().mean(), label["level"]


def keys_of(loader: Any) -> list[tuple[Any, ...]]:
    """Return the keys of the rows of a loader, after checks of its batches."""
    found = []
    batches = list(loader)
    assert len(batches) == len(loader)
    for batch in batches:
        labels = {name: list(values) for name, values in batch.label.items()}
        assert len(set(labels["task"])) == 1
        found += zip(*(labels[name] for name in LABEL), strict=True)
    return [(*key[:3], int(key[3])) for key in found]


@pytest.mark.parametrize("shuffle", [True, pytest.param(False, marks=pytest.mark.release)])
def test_parts_of_pairs_are_read_shard_by_shard(folder: Path, shuffle: bool) -> None:
    pairs = Pairs(folder, label=LABEL)
    part, rest = random_split(pairs, [0.5, 0.5], torch.Generator().manual_seed(0))
    nested = Subset(ConcatDataset([part, Pairs(folder, "cls", label=LABEL)]), range(-200, 40, 3))
    for wrapped in (part, rest, nested, Subset(pairs, np.arange(5)), Subset(pairs, [])):
        wanted = [tuple(wrapped[i].label[name] for name in LABEL) for i in range(len(wrapped))]
        found = keys_of(data_loader(wrapped, 7, shuffle=shuffle))
        assert Counter(found) == Counter((*key[:3], int(key[3])) for key in wanted)
        batches = ShardBatches(wrapped, 7, shuffle=shuffle)
        order = [
            row
            for task in TOY_SHAPES
            for batch in batches
            for row in batch
            if wanted[row][0] == task
        ]
        visits = [shard for shard, _ in groupby(wanted[row][1:3] for row in order)]
        if not shuffle:
            assert len(visits) == len(set(visits))


def test_pairs_of_several_folders_and_kinds_are_batched_apart(folder: Path, tmp_path: Path) -> None:
    other = write_mock_dataset(tmp_path / "cfqa", sources=1, seed=1)
    parts = [Pairs(folder, "cls", codes=True), Pairs(other), Pairs(other, label="mse")]
    batches = list(ShardBatches(ConcatDataset(parts), 1000))
    assert [len(batch) for batch in batches] == [60, 60, 40, 40, 40, 40, 40, 40]
    ends = np.cumsum([len(part) for part in parts])
    for batch in batches:
        assert len({int(np.searchsorted(ends, row, side="right")) for row in batch}) == 1


@pytest.mark.parametrize("shuffle", [True, pytest.param(False, marks=pytest.mark.release)])
def test_any_map_style_dataset_gives_plain_batches(folder: Path, shuffle: bool) -> None:
    own = Errors(Pairs(folder, label=["level"]))
    for dataset in (own, Subset(own, range(50)), ConcatDataset([own, own])):
        generator = torch.Generator().manual_seed(3)
        batches = list(
            data_loader(dataset, 8, shuffle=shuffle, drop_last=True, generator=generator)
        )
        assert [len(errors) for errors, _ in batches] == [8] * (len(dataset) // 8)
        in_order = torch.cat([levels for _, levels in batches])[:20].tolist() == [*range(10)] * 2
        assert in_order != shuffle
    assert next(iter(data_loader([1.0, 2.0], 2))).tolist() == [1, 2]


def test_a_dataset_of_one_s_own_takes_the_batches_of_its_pairs(folder: Path) -> None:
    pairs = Pairs(folder, label=["level"])
    batches = ShardBatches(pairs, 8)
    found = [levels.tolist() for _, levels in data_loader(Errors(pairs), batch_sampler=batches)]
    levels = pairs.dataset.labels["level"].to_pylist()
    assert found == [[levels[row] for row in batch] for batch in batches]
    with pytest.raises(CfqaError, match=r"takes Pairs, or a Subset .* not a Errors"):
        ShardBatches(Errors(pairs), 8)


def test_a_sampler_gives_the_order(folder: Path) -> None:
    pairs = Pairs(folder, "seg", label="level")
    rows = [5, 3, 100, 3]
    (batch,) = data_loader(pairs, 8, sampler=rows)
    assert batch.label.tolist() == [5, 3, 0, 3]
    generator = torch.Generator().manual_seed(0)
    weighted = WeightedRandomSampler([1.0] * len(pairs), 20, generator=generator)
    loader = data_loader(pairs, 8, sampler=weighted)
    assert len(loader) == 3
    assert [len(batch.label) for batch in loader] == [8, 8, 4]
    every = data_loader(Pairs(folder), 8, sampler=SubsetRandomSampler(range(0, 360, 3)))
    assert sum(len(batch.label) for batch in every) == 120  # and each of one shape
    with pytest.raises(TypeError, match="is not known in advance"):
        len(every)
    own = Errors(Pairs(folder, "seg", label=["level"]))
    assert next(iter(data_loader(own, 4, sampler=rows)))[1].tolist() == [5, 3, 0, 3]


def test_options_of_torch_s_loader_pass_through(folder: Path) -> None:
    def shapes(batch: list[Pair]) -> list[Any]:
        return [pair.original.shape for pair in batch]

    def seeded(worker: int) -> None:
        assert worker == 0

    pairs = Pairs(folder, "seg", level=1)
    options = {"collate_fn": shapes, "worker_init_fn": seeded, "persistent_workers": False}
    loader = data_loader(pairs, 5, num_workers=1, multiprocessing_context="fork", **options)
    assert list(loader) == [[TOY_SHAPES["seg"]] * 5] * 2 + [[TOY_SHAPES["seg"]] * 2]
    assert loader.persistent_workers is False
    assert data_loader(pairs, workers=1).persistent_workers is True


@each(
    ("options", "message"),
    [
        ({"sampler": [0], "shuffle": True}, "sampler= or shuffle=True, not both"),
        ({"batch_sampler": [[0]], "drop_last": True}, "leave out batch_size, shuffle, drop_last"),
        ({"batch_sampler": [[0]], "batch_size": 4}, "leave out batch_size"),
        ({"workers": 1, "num_workers": 2}, "are the same; give one"),
        ({"multiprocessing_context": "fork"}, "data_loader: multiprocessing_context can only"),
        ({"persistent_workers": True}, "data_loader: persistent_workers option needs"),
    ],
)
@each("own", [False, True])
def test_contradictions_are_told(
    folder: Path, own: bool, options: dict[str, Any], message: str
) -> None:
    pairs = Pairs(folder, "cls")
    with pytest.raises(CfqaError, match=message):
        data_loader(Errors(pairs) if own else pairs, **options)


def test_streams_are_no_map_style_dataset() -> None:
    class Stream(torch.utils.data.IterableDataset[int]):
        def __iter__(self) -> Any:
            return iter([1])

    for stream in (Stream(), iter([1])):
        message = f"takes a map-style dataset, not a {type(stream).__name__}$"
        with pytest.raises(CfqaError, match=message):
            data_loader(stream)
