"""Conformance suite of dataset loaders, all of which must return the same pairs.

    class TestMine(LoaderSuite):
        folder = "cfqa"
        plugins = ("module:Class",)  # of a light folder whose codecs are not installed

The expected rows are read from the files with zarr, safetensors and pyarrow alone. In the light
tier, features that must be decoded are those of `cfqa_data.load`.
"""

from __future__ import annotations

import gc
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from safetensors.numpy import load_file
from torch.utils.data import ConcatDataset, Subset

import cfqa_data
from cfqa_data.format.manifest import read_manifest
from cfqa_data.format.quantizers import quantizer_from_dict
from cfqa_data.loaders import attach
from cfqa_data.loaders.torch import CodeTensors, Pairs, data_loader
from cfqa_data.testing import required

__all__ = ["WAYS", "LoaderSuite", "Row", "Way", "check"]

Row = tuple[dict[str, Any], np.ndarray, np.ndarray]
"""Label, original and compressed feature."""


@dataclass(frozen=True)
class Way:
    """A way to load a dataset.

    Attributes:
        open: (folder, task, plugins, folder for caches) -> an object to pickle and to read from.
        row: Reads one row by its number; rows of a stream are read in order.
        stream: Whether rows can only be streamed.
        codes: Whether compressed features are read as codes, which excludes codecs on features.
    """

    open: Callable[[Path, str, Sequence[str], Path], Any]
    row: Callable[[Any, int], Row]
    stream: bool = False
    codes: bool = False

    def rows(self, opened: Any) -> Iterator[Row]:
        """Yield all rows in order."""
        if self.stream:
            return (_hub_row(row) for row in opened)
        return (self.row(opened, index) for index in range(len(opened)))


def _plain_row(dataset: Any, index: int) -> Row:
    pair = dataset[index]
    return pair.label, pair.original, pair.compressed


def _hub_row(row: dict[str, Any]) -> Row:
    original, compressed = (np.asarray(row.pop(name)) for name in ("original", "compressed"))
    return row, original, compressed


def _torch_label(label: Mapping[str, Any]) -> dict[str, Any]:
    return {name: v if isinstance(v, str) else v.item() for name, v in label.items()}


def _torch_row(pairs: Any, index: int) -> Row:
    original, compressed, label = pairs[index]
    if isinstance(compressed, CodeTensors):
        compressed = compressed.dequantize()
    return _torch_label(label), original.numpy(), compressed.numpy()


def _open_plain(root: Path, task: str, plugins: Sequence[str], cache: Path) -> Any:
    return cfqa_data.load(root, task, plugins=plugins)


def _open_datasets(streaming: bool, format: str) -> Callable[..., Any]:
    def open(root: Path, task: str, plugins: Sequence[str], cache: Path) -> Any:
        options = {"split": "test", "streaming": streaming, "cache_dir": str(cache)}
        rows = datasets.load_dataset(str(root), task, **options)
        return attach(rows, root, format=format, plugins=plugins)

    return open


def _open_pairs(codes: bool) -> Callable[..., Any]:
    def open(root: Path, task: str, plugins: Sequence[str], cache: Path) -> Pairs:
        dataset = cfqa_data.load(root, task, plugins=plugins)
        if codes:
            entries = dataset.manifest.tasks[task].codecs.values()
            coded = [codec.name for codec in entries if codec.quantizer is not None]
            dataset = cfqa_data.load(root, task, codec=coded, plugins=plugins)
        columns = [n for n in dataset.labels.column_names if not dataset.labels[n].null_count]
        return Pairs(dataset, label=columns, codes=codes)

    return open


def _open_concatenated(root: Path, task: str, plugins: Sequence[str], cache: Path) -> Any:
    """Open pairs as a concatenation of two subsets."""
    pairs = _open_pairs(codes=False)(root, task, plugins, cache)
    ends = 0, len(pairs) // 3, len(pairs)
    return ConcatDataset([Subset(pairs, range(*part)) for part in pairwise(ends)])


WAYS: Mapping[str, Way] = {
    "plain": Way(_open_plain, _plain_row),
    "datasets": Way(_open_datasets(False, "numpy"), lambda rows, index: _hub_row(rows[index])),
    "datasets-torch": Way(
        _open_datasets(False, "torch"), lambda rows, index: _hub_row(rows[index])
    ),
    "datasets-streaming": Way(_open_datasets(True, "numpy"), _plain_row, stream=True),
    "torch": Way(_open_pairs(codes=False), _torch_row),
    "torch-codes": Way(_open_pairs(codes=True), _torch_row, codes=True),
    "torch-parts": Way(_open_concatenated, _torch_row),
}
"""The ways to load a dataset by name."""


def check(actual: Row, expected: Row) -> None:
    """Check that a row has the expected label, and bit-identical features."""
    for column, value in actual[0].items():
        exact = expected[0][column]
        assert value == exact or (value != value and exact != exact), column  # NaN if unknown
    for array, feature in zip(actual[1:], expected[1:], strict=True):
        assert (array.dtype, array.shape) == (np.float32, feature.shape)
        assert array.tobytes() == feature.tobytes()


class LoaderSuite:
    """Tests of the loaders on a dataset folder.

    Attributes:
        folder: The folder.
        plugins: Classes of codecs that are not installed, each as `module:Class`.
        ways: The ways to load it.
        few: Number of rows that threads and other processes read.
    """

    folder: ClassVar[str | Path] = required("the path of a dataset folder")
    plugins: ClassVar[Sequence[str]] = ()
    ways: ClassVar[Mapping[str, Way]] = WAYS
    few: ClassVar[int] = 12

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run each test with a parameter ``way`` once per way."""
        if "way" in metafunc.fixturenames:
            metafunc.parametrize("way", self.ways.values(), ids=self.ways)

    @pytest.fixture(scope="class")
    @classmethod
    def root(cls) -> Path:
        """The dataset folder."""
        return Path(cls.folder)

    @pytest.fixture(scope="class")
    @classmethod
    def cache(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
        """A folder for caches of libraries."""
        datasets.disable_progress_bars()
        yield tmp_path_factory.mktemp("cache")
        datasets.enable_progress_bars()

    @pytest.fixture(scope="class")
    @classmethod
    def expected(cls, root: Path) -> dict[str, list[Row]]:
        """The rows of each task that can be read completely, in the order of its table."""
        return {
            task: [*_expected_rows(root, task, cls.plugins)]
            for task in read_manifest(root).tasks
            if not pq.read_table(root / f"labels/{task}.parquet")["array"].null_count
        }

    @pytest.fixture(scope="class")
    @classmethod
    def opened(cls, root: Path, cache: Path) -> Callable[[Way, str], Any]:
        """Open a task in some way."""
        return lambda way, task: way.open(root, task, cls.plugins, cache)

    @staticmethod
    def wanted(way: Way, rows: list[Row]) -> list[Row]:
        """Return the rows that a way must return."""
        return [row for row in rows if not way.codes or row[0]["_coded"]]

    def test_rows_have_their_order_labels_shapes_types_and_bits(
        self, way: Way, opened: Any, expected: dict[str, list[Row]]
    ) -> None:
        """Compare every row of every task."""
        for task, rows in expected.items():
            pairs = zip(way.rows(opened(way, task)), self.wanted(way, rows), strict=True)
            for row, wanted in pairs:
                check(row, wanted)

    def test_what_was_used_can_be_pickled(
        self, way: Way, opened: Any, expected: dict[str, list[Row]]
    ) -> None:
        """A copy reads the same rows, and arrays outlive the object that read them."""
        task, rows = next(iter(expected.items()))
        again = pickle.loads(pickle.dumps(opened(way, task)))
        first = next(way.rows(again))
        del again
        gc.collect()
        check(first, self.wanted(way, rows)[0])

    def test_nothing_stays_open(
        self, way: Way, root: Path, opened: Any, expected: dict[str, list[Row]]
    ) -> None:
        """No file of the folder is open or mapped after its reader is deleted."""
        maps = Path("/proc/self/maps")
        if not maps.exists():
            pytest.skip("needs /proc/self/maps of Linux")
        one = opened(way, next(iter(expected)))
        kept = list(islice(way.rows(one), self.few))
        assert kept
        del one
        gc.collect()
        links = [path for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
        files = [str(path.readlink()) for path in links]
        for part in ("originals", "compressed", "bitstreams"):
            assert str(root / part) not in maps.read_text()
            assert not [name for name in files if name.startswith(str(root / part))]

    def test_threads_read_at_once(
        self, way: Way, opened: Any, expected: dict[str, list[Row]]
    ) -> None:
        """Read with four threads, each in its own order, or each with its own stream."""
        task, rows = next(iter(expected.items()))
        wanted, one = self.wanted(way, rows), opened(way, task)
        streams = [pickle.loads(pickle.dumps(one)) for _ in range(4)] if way.stream else []

        def read(seed: int) -> None:
            if way.stream:
                for row, expected_row in zip(islice(way.rows(streams[seed]), self.few), wanted):  # noqa: B905
                    check(row, expected_row)
                return
            for index in np.random.default_rng(seed).permutation(len(wanted))[: self.few]:
                check(way.row(one, int(index)), wanted[index])

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(read, range(4)))

    def test_a_fresh_process_reads_what_was_opened_here(
        self, opened: Any, expected: dict[str, list[Row]]
    ) -> None:
        """Read with all ways in one spawned process."""
        task, rows = next(iter(expected.items()))
        handles = [(name, opened(way, task)) for name, way in self.ways.items() if name in WAYS]
        with get_context("spawn").Pool(1) as pool:
            answers = pool.apply_async(_first_rows, (handles, self.few)).get(timeout=120)
        for (name, _), answer in zip(handles, answers, strict=True):
            for row, wanted in zip(answer, self.wanted(WAYS[name], rows), strict=False):
                check(row, wanted)

    @pytest.mark.parametrize("codes", [False, True])
    def test_batches_hold_the_same_rows(
        self, codes: bool, opened: Any, expected: dict[str, list[Row]]
    ) -> None:
        """Read shuffled batches and compare each row once."""
        way = Way(_open_pairs(codes), _torch_row, codes=codes)
        for task, rows in expected.items():
            wanted = {_row_key(row[0]): row for row in self.wanted(way, rows)}
            for batch in data_loader(opened(way, task), 7, shuffle=True):
                features = batch.compressed
                if isinstance(features, CodeTensors):
                    features = features.dequantize()
                for index, feature in enumerate(features):
                    label = _torch_label({name: v[index] for name, v in batch.label.items()})
                    if isinstance(feature, CodeTensors):
                        feature = feature.dequantize()
                    row = label, batch.original[index].numpy(), feature.numpy()
                    check(row, wanted.pop(_row_key(label)))
            assert not wanted


def _row_key(label: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(label[name] for name in ("task", "source_id", "codec", "level"))


def _first_rows(handles: list[tuple[str, Any]], few: int) -> list[list[Row]]:
    return [list(islice(WAYS[name].rows(opened), few)) for name, opened in handles]


def _expected_rows(root: Path, task: str, plugins: Sequence[str]) -> Iterator[Row]:
    """Yield the rows of a task, read without this package where arrays are stored."""
    entry = read_manifest(root).tasks[task]
    originals: dict[str, np.ndarray] = {}
    for path in sorted((root / "originals").glob(f"{task}-*-of-*")):
        originals |= load_file(path)
    arrays: dict[str, Any] = {}
    dataset = cfqa_data.load(root, task, plugins=plugins)
    for label in pq.read_table(root / f"labels/{task}.parquet", partitioning=None).to_pylist():
        source, codec, level = label["source_id"], label["codec"], label["level"]
        original, where = originals[source], root / label["array"]
        if not where.exists():
            feature = dataset.compressed(source, codec, level)
        else:
            if codec not in arrays:
                arrays[codec] = zarr.open_array(str(where), mode="r")
            array = arrays[codec]
            assert array.attrs["source_ids"][label["index"]] == source
            stored = np.asarray(array[label["index"], level])[:, :, : original.shape[2]]
            feature = _dequantize(stored, array.attrs)
        coded = entry.codecs[codec].quantizer is not None
        yield label | {"_coded": coded}, original, feature


def _dequantize(stored: np.ndarray, attributes: Mapping[str, Any]) -> np.ndarray:
    """Return the values of stored codes; stored values are returned unchanged."""
    if "quantizer" not in attributes:
        return stored
    values = quantizer_from_dict(attributes["quantizer"]).values()
    feature = np.empty(stored.shape, np.float32)
    for layer, centre in enumerate(attributes["centres"]):
        order = sorted(range(len(values[layer])), key=lambda k: (abs(k - centre), k))
        feature[:, layer] = values[layer][order][stored[:, layer]]
    return feature
