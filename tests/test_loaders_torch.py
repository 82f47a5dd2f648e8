"""`Pairs` and its loader beyond what all loaders share: batches, orders, codes, workers."""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mock_dataset import TOY_SHAPES, write_mock_dataset

import cfqa_data
from cfqa_data.codes import Codes
from cfqa_data.errors import CfqaError
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
    with pytest.raises(CfqaError, match="how to open a path; give them to load"):
        Pairs(opened, "dpt")
    with pytest.raises(CfqaError, match="how to open a path; give them to load"):
        Pairs(opened, untrusted=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": "distorsion"}, "unknown label column 'distorsion': did you mean 'distortion'"),
        ({"label": ["mse", "x"]}, "unknown label column 'x'"),
        ({"task": "clas"}, "did you mean 'cls'"),
        ({"codec": "x256"}, "did you mean 'x265'"),
    ],
)
def test_unknown_names_are_told(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(CfqaError, match=message):
        Pairs(folder, **options)


@pytest.mark.parametrize("size", [0, -1, 2.0, True, "4"])
def test_impossible_batch_sizes_are_told(folder: Path, size: Any) -> None:
    with pytest.raises(CfqaError, match="a batch size is a whole number from 1"):
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
        assert sources == [0, 1, 2]  # an original is not come back to


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
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_give_the_same_batches(folder: Path, method: str) -> None:
    for codes in (False, True) if method == "fork" else (True,):
        pairs = Pairs(folder, "dpt", codec="vvenc", codes=codes, label=["source_id", "mse"])
        here = list(data_loader(pairs, 8))
        loader = data_loader(pairs, 8, workers=2, multiprocessing_context=method)
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
