"""Every way to load a dataset folder gives the same pairs, and fails alike, on both tiers.

A way is an entry of `WAYS`: how to open a folder, and how to take what a row holds from what was
opened. What is expected is read from the files with zarr, safetensors and pyarrow alone.
"""

from __future__ import annotations

import gc
import hashlib
import itertools
import multiprocessing
import pickle
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from loopback_hub import LoopbackHub, loopback_hub, point_clients_at
from mock_codec import mock_codec
from mock_dataset import TOY_SHAPES, toy_recipe_dict, write_mock_dataset
from safetensors.numpy import load_file
from torch.utils.data import ConcatDataset, Subset

import cfqa_data
from cfqa_data.errors import FormatError
from cfqa_data.format.first import TASKS
from cfqa_data.format.manifest import read_manifest, write_manifest
from cfqa_data.format.quantizers import quantizer_from_dict
from cfqa_data.loaders import attach
from cfqa_data.loaders.torch import CodeTensors, Pairs, data_loader
from cfqa_data.recipe import Recipe

Row = tuple[dict[str, Any], np.ndarray, np.ndarray]
"""Label, original and compressed feature."""

KEY = ("task", "source_id", "codec", "level")


@dataclass(frozen=True)
class Way:
    """A way to load.

    Attributes:
        open: (folder, task or None) -> something to keep, to pickle and to read from.
        rows: yields the rows of it in their order.
        row: reads one row by its number; None where rows can only be streamed.
    """

    open: Callable[[Path, str | None], Any]
    rows: Callable[[Any], Iterator[Row]]
    row: Callable[[Any, int], Row] | None


def plain_row(dataset: cfqa_data.Dataset, index: int) -> Row:
    pair = dataset[index]
    return pair.label, pair.original, pair.compressed


def hub_row(row: dict[str, Any]) -> Row:
    arrays = [np.asarray(row[name]) for name in ("original", "compressed")]
    return {k: v for k, v in row.items() if k not in ("original", "compressed")}, *arrays


def torch_label(label: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value if isinstance(value, str) else value.item() for name, value in label.items()
    }


def torch_row(pairs: Any, index: int) -> Row:
    original, compressed, label = pairs[index]
    if isinstance(compressed, CodeTensors):
        compressed = compressed.dequantize()
    return torch_label(label), original.numpy(), compressed.numpy()


def open_hub(root: Path, task: str | None, *, streaming: bool, format: str) -> Any:
    cache = str(root.parent / "cache")
    name = task or "default"
    loaded = datasets.load_dataset(
        str(root), name, split="test", streaming=streaming, cache_dir=cache
    )
    return attach(loaded, root, format=format)


HUBS: list[LoopbackHub] = []
"""The Hub that runs, for the ways that read from one."""


def open_remote(root: Path, task: str | None, **options: Any) -> cfqa_data.Dataset:
    """Put the folder on the Hub and open it there."""
    repo = f"org/{hashlib.sha256(str(root).encode()).hexdigest()[:12]}"
    if repo not in HUBS[0].repos:
        HUBS[0].put(repo, root)
    return cfqa_data.load(repo, task, **options)


def open_torch(root: Path, task: str | None, *, codes: bool) -> Pairs:
    columns = pq.read_schema(root / "labels/cls.parquet").names
    return Pairs(root, task, label=columns, codes=codes)


def open_parts(root: Path, task: str | None) -> ConcatDataset[Any]:
    """Open pairs in two parts, one after the other."""
    pairs = open_torch(root, task, codes=False)
    ends = 0, len(pairs) // 3, len(pairs)
    return ConcatDataset([Subset(pairs, range(*part)) for part in itertools.pairwise(ends)])


def indexed(row: Callable[[Any, int], Row]) -> Callable[[Any], Iterator[Row]]:
    return lambda opened: (row(opened, index) for index in range(len(opened)))


def hub_item(opened: Any, index: int) -> Row:
    return hub_row(opened[index])


WAYS = {
    "plain": Way(cfqa_data.load, indexed(plain_row), plain_row),
    "plain-untrusted": Way(
        lambda root, task: cfqa_data.load(root, task, untrusted=True),
        indexed(plain_row),
        plain_row,
    ),
    "plain-remote": Way(open_remote, indexed(plain_row), plain_row),
    "datasets": Way(
        lambda root, task: open_hub(root, task, streaming=False, format="numpy"),
        indexed(hub_item),
        hub_item,
    ),
    "datasets-torch": Way(
        lambda root, task: open_hub(root, task, streaming=False, format="torch"),
        indexed(hub_item),
        hub_item,
    ),
    "datasets-streaming": Way(
        lambda root, task: open_hub(root, task, streaming=True, format="numpy"),
        lambda opened: map(hub_row, opened),
        None,
    ),
    "torch": Way(
        lambda root, task: open_torch(root, task, codes=False), indexed(torch_row), torch_row
    ),
    "torch-codes": Way(
        lambda root, task: open_torch(root, task, codes=True), indexed(torch_row), torch_row
    ),
    "torch-parts": Way(open_parts, indexed(torch_row), torch_row),
}
TIERS = ("full", "light")
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
tiers = pytest.mark.parametrize("tier", TIERS)


def use_mock_codecs() -> None:
    """Decode the mock bitstreams; for processes that are started afresh."""
    import cfqa_data.codecs

    cfqa_data.codecs.get_codec = mock_codec  # type: ignore[assignment]


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Mock codecs, quiet libraries and a Hub."""
    with pytest.MonkeyPatch.context() as patch, loopback_hub() as hub:
        point_clients_at(hub, patch, tmp_path_factory.mktemp("clients"))
        patch.setattr(f"{__name__}.HUBS", [hub])
        patch.setattr("cfqa_data.codecs.get_codec", mock_codec)
        datasets.disable_progress_bars()
        yield
        datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two sources of each task by a codec of either kind: 16-bit codes and tables of 8-bit ones."""
    base, data = tmp_path_factory.mktemp("conformance"), toy_recipe_dict(sources=2)
    for task in data["tasks"].values():
        kinds = ("x265", "hyperprior_multi_task")
        task["codecs"] = {codec: task["codecs"][codec] for codec in kinds}
    recipe = Recipe.from_dict(data)
    return {
        tier: write_mock_dataset(base / tier / "cfqa", sources=2, tier=tier, recipe=recipe)
        for tier in TIERS
    }


@pytest.fixture(scope="module")
def expected(folders: dict[str, Path]) -> list[Row]:
    """All rows of the full folder, without this package's readers."""
    root, rows = folders["full"], []
    for task in TASKS:
        originals: dict[str, np.ndarray] = {}
        for path in sorted((root / "originals").glob(f"{task}-*")):
            originals |= load_file(path)
        for label in pq.read_table(root / f"labels/{task}.parquet").to_pylist():
            array = zarr.open_array(str(root / label["array"]), mode="r")
            assert array.attrs["source_ids"][label["index"]] == label["source_id"]
            values = quantizer_from_dict(array.attrs["quantizer"]).values()
            stored = np.asarray(array[label["index"], label["level"]])
            feature = np.empty(stored.shape, np.float32)
            for layer, centre in enumerate(array.attrs["centres"]):
                near = sorted(range(len(values[layer])), key=lambda k: (abs(k - centre), k))
                feature[:, layer] = values[layer][near][stored[:, layer]]
            rows.append((label, originals[label["source_id"]], feature))
    return rows


def check(found: Row, wanted: Row) -> None:
    assert found[0] == wanted[0]
    for array, exact in zip(found[1:], wanted[1:], strict=True):
        assert array.dtype == np.float32
        assert array.shape == TOY_SHAPES[wanted[0]["task"]]
        assert array.tobytes() == exact.tobytes()


def digest(rows: Iterator[Row]) -> str:
    """Return one number for rows, their order, labels and arrays."""
    total = hashlib.sha256()
    for label, *arrays in rows:
        total.update(repr([label[name] for name in KEY]).encode())
        for array in arrays:
            total.update(array.tobytes())
    return total.hexdigest()


@tiers
@ways
def test_rows_order_labels_shapes_types_and_bits(
    way: Way, tier: str, folders: dict[str, Path], expected: list[Row]
) -> None:
    rows = list(way.rows(way.open(folders[tier], None)))
    assert len(rows) == len(expected) == 120
    for found, wanted in zip(rows, expected, strict=True):
        check(found, wanted)


@ways
def test_one_task(way: Way, folders: dict[str, Path], expected: list[Row]) -> None:
    rows = list(way.rows(way.open(folders["full"], "dpt")))
    wanted = [row for row in expected if row[0]["task"] == "dpt"]
    assert digest(iter(rows)) == digest(iter(wanted))


@tiers
@ways
def test_what_was_used_can_be_pickled_and_opened_again(
    way: Way, tier: str, folders: dict[str, Path], expected: list[Row]
) -> None:
    opened = way.open(folders[tier], "cls")
    first = next(way.rows(opened))
    again = pickle.loads(pickle.dumps(opened))
    check(next(way.rows(again)), first)
    del opened, again
    check(next(way.rows(way.open(folders[tier], "cls"))), first)
    check(first, expected[0])  # arrays outlive what they were read from


@tiers
@ways
def test_nothing_stays_open(way: Way, tier: str, folders: dict[str, Path]) -> None:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs Linux's list of what a process has mapped")
    opened = way.open(folders[tier], "cls")
    kept = list(way.rows(opened))
    assert kept
    del opened
    gc.collect()
    parts = [str(folders[tier] / part) for part in ("originals", "compressed", "bitstreams")]
    files = [str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    for part in parts:
        assert part not in maps.read_text()
        assert not [name for name in files if name.startswith(part)]


@pytest.mark.parametrize(
    ("way", "tier"), [*zip(WAYS.values(), itertools.cycle(TIERS), strict=False)]
)
def test_threads(way: Way, tier: str, folders: dict[str, Path], expected: list[Row]) -> None:
    opened = way.open(folders[tier], None)
    # An `IterableDataset` keeps its place in itself: one thread iterates over one of them.
    streams = [pickle.loads(pickle.dumps(opened)) for _ in range(4)] if way.row is None else []

    def read(seed: int) -> None:
        if way.row is None:
            assert digest(way.rows(streams[seed])) == digest(iter(expected))
            return
        for index in np.random.default_rng(seed).permutation(len(expected))[:20]:
            check(way.row(opened, int(index)), expected[index])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, range(4)))


FEW = 21
"""Rows that other processes read: one more than a source has, by two of its codecs."""


def digests(opened: Sequence[tuple[str, Any]]) -> list[str]:
    """Digest the first rows of datasets that were opened in another process."""
    return [digest(islice(WAYS[name].rows(handle), FEW)) for name, handle in opened]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize(("method", "count"), [("fork", 2), ("spawn", 1)])
def test_processes(method: str, count: int, folders: dict[str, Path], expected: list[Row]) -> None:
    """Processes read at once from datasets that this one has opened and used."""
    opened = []
    for name, way in WAYS.items():
        for tier in TIERS:
            handle = way.open(folders[tier], "seg")
            next(way.rows(handle))
            opened.append((name, handle))
    wanted = digest(islice((row for row in expected if row[0]["task"] == "seg"), FEW))
    with multiprocessing.get_context(method).Pool(count, use_mock_codecs) as pool:
        found = pool.map_async(digests, [opened] * count, chunksize=1).get(timeout=120)
    assert found == [[wanted] * len(opened)] * count


@pytest.mark.parametrize("codes", [False, True])
def test_batches_hold_the_same_rows(
    codes: bool, folders: dict[str, Path], expected: list[Row]
) -> None:
    first, rest = (open_torch(folders[tier], None, codes=codes) for tier in TIERS)
    split = ConcatDataset([Subset(first, range(50)), Subset(rest, range(50, 120))])
    rows = []
    for batch in data_loader(split, 7, shuffle=True):
        features = batch.compressed.dequantize() if codes else batch.compressed
        for index, feature in enumerate(features):
            label = torch_label({name: values[index] for name, values in batch.label.items()})
            rows.append((label, batch.original[index].numpy(), feature.numpy()))
    places = {tuple(row[0][name] for name in KEY): place for place, row in enumerate(expected)}
    rows.sort(key=lambda row: places[tuple(row[0][name] for name in KEY)])
    assert digest(iter(rows)) == digest(iter(expected))


def test_rows_are_chosen_alike(folders: dict[str, Path], expected: list[Row]) -> None:
    chosen: dict[str, Any] = {"fold": 1, "source": ["cls-001", "seg-000"], "level": range(3, 6)}
    root = folders["full"]
    opened = [
        (plain_row, cfqa_data.load(root, **chosen)),
        (plain_row, open_remote(root, None, **chosen)),
        (torch_row, Pairs(root, label=list(expected[0][0]), **chosen)),
    ]
    labels = [row[0] for row in expected]
    wanted = [
        row
        for row, label in zip(expected, labels, strict=True)
        if label["source_id"] == "cls-001" and label["fold"] == 1 and label["level"] in (3, 4, 5)
    ]
    assert len(wanted) == 6
    for row, rows in opened:
        assert digest(row(rows, index) for index in range(len(rows))) == digest(iter(wanted))


# What is not as it should be.


def remove(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).unlink()


def shorten(name: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        content = (root / name).read_bytes()
        (root / name).write_bytes(content[: len(content) // 2])

    return change


def rename_source(root: Path) -> None:
    path = root / "labels/cls.parquet"
    table = pq.read_table(path, partitioning=None)
    names = ["cls-9", *table["source_id"].to_pylist()[1:]]
    place = table.schema.get_field_index("source_id")
    pq.write_table(table.set_column(place, table.schema.field(place), [names]), path)
    write_manifest(root, read_manifest(root))


ORIGINALS = "originals/cls-00000-of-00001.safetensors"
STREAMS = "bitstreams/cls-x265-00000-of-00001.safetensors"
SHARD = "compressed/cls/x265.zarr/c/0/0/0/0/0/0"
FAULTS: dict[str, tuple[str, Callable[[Path], None], str, str]] = {
    "unknown source": ("full", rename_source, "cls.parquet", "row 0: unknown source_id 'cls-9'"),
    "no manifest": ("full", remove("manifest.json"), "", "not a CFQA dataset folder"),
    "missing originals": ("full", remove(ORIGINALS), "originals/cls-", "missing"),
    "damaged originals": ("light", shorten(ORIGINALS), ORIGINALS, "not a safetensors file"),
    "missing codes": ("full", remove(SHARD), SHARD, "missing shard"),
    "damaged codes": ("full", shorten(SHARD), SHARD, "damaged shard"),
    "missing bitstreams": ("light", remove(STREAMS), "bitstreams/cls-x265-", "missing"),
    "damaged bitstreams": ("light", shorten(STREAMS), STREAMS, "not a safetensors file"),
}
"""Name -> tier, what is done to a folder, the file to be named, and what a local reader says."""


@pytest.mark.parametrize("fault", FAULTS)
@ways
def test_faults_are_told_alike(
    way: Way, fault: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    tier, change, file, message = FAULTS[fault]
    root = Path(shutil.copytree(folders[tier], tmp_path / "cfqa"))
    change(root)
    with pytest.raises(FormatError) as told:
        next(way.rows(way.open(root, "cls")))
    assert file in str(told.value)
    assert message in str(told.value)
    assert "\n" not in str(told.value)
