"""All ways to load a dataset folder give the same pairs and the same errors.

The suite that anybody can hold a folder of their own against is run on the test folder of format 2
in both tiers; here are the ways that need a Hub or processes, and folders that are not as they
should be.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
from loopback_hub import LoopbackHub, loopback_hub, point_clients_at
from mock_codec import mock_codec
from mock_dataset import toy_recipe_dict, write_mock_dataset

import cfqa_data
from cfqa_data.errors import FormatError
from cfqa_data.format.manifest import read_manifest, write_manifest
from cfqa_data.loaders.torch import Pairs
from cfqa_data.recipe.load import Recipe
from cfqa_data.testing.loaders import WAYS, LoaderSuite, Way, check
from cfqa_data.testing.mock import PLUGINS, write_format_2_folder

HUBS: list[LoopbackHub] = []
"""The running Hub, for loaders that read from it."""


def put(root: Path) -> str:
    """Upload a folder to the Hub, and return its repo id."""
    repo = f"org/{hashlib.sha256(str(root).encode()).hexdigest()[:12]}"
    if repo not in HUBS[0].repos:
        HUBS[0].put(repo, root)
    return repo


def open_remote(root: Path, task: str, plugins: Any, cache: Path) -> cfqa_data.Dataset:
    return cfqa_data.load(put(root), task, plugins=plugins)


REMOTE = {**WAYS, "remote": Way(open_remote, WAYS["plain"].row)}
FEW = {name: REMOTE[name] for name in ("plain", "datasets-streaming", "torch", "remote")}


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Silence libraries and start a Hub."""
    with pytest.MonkeyPatch.context() as patch, loopback_hub() as hub:
        point_clients_at(hub, patch, tmp_path_factory.mktemp("clients"))
        patch.setattr(f"{__name__}.HUBS", [hub])
        datasets.disable_progress_bars()
        yield
        datasets.enable_progress_bars()


class TestFullTier(LoaderSuite):
    ways = REMOTE
    test_a_fresh_process_reads_what_was_opened_here = None  # type: ignore[assignment]  # below

    @pytest.fixture(scope="class")
    @classmethod
    def root(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return write_format_2_folder(tmp_path_factory.mktemp("full") / "cfqa")


class TestLightTier(LoaderSuite):
    ways = FEW
    plugins = PLUGINS

    @pytest.mark.release
    def test_a_fresh_process_reads_what_was_opened_here(self, opened: Any, expected: Any) -> None:
        super().test_a_fresh_process_reads_what_was_opened_here(opened, expected)

    @pytest.fixture(scope="class")
    @classmethod
    def root(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return write_format_2_folder(tmp_path_factory.mktemp("light") / "cfqa", "light")


# Format 1, with the tests that need not run for every loader.


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base, data = tmp_path_factory.mktemp("conformance"), toy_recipe_dict(sources=2)
    tasks = {task: data["tasks"][task] for task in ("cls", "seg")}
    recipe = Recipe.from_dict(data | {"tasks": tasks})
    how: dict[str, Any] = {"sources": 2, "recipe": recipe}
    return {t: write_mock_dataset(base / t / "cfqa", tier=t, **how) for t in ("full", "light")}


def test_untrusted_features_are_the_same(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cfqa_data.codecs.get_codec", mock_codec)
    apart = cfqa_data.load(folders["light"], "seg", untrusted=True)
    full = cfqa_data.load(folders["full"], "seg")
    for index in (0, 13, 41):
        check(WAYS["plain"].row(apart, index), WAYS["plain"].row(full, index))


def test_rows_are_chosen_alike(folders: dict[str, Path]) -> None:
    chosen: dict[str, Any] = {"fold": 1, "source": ["cls-001", "seg-000"], "level": range(3, 6)}
    root = folders["full"]
    opened = [
        cfqa_data.load(root, **chosen),
        cfqa_data.load(put(root), **chosen),
        Pairs(root, **chosen).dataset,
    ]
    labels = cfqa_data.load(root).labels.to_pylist()
    wanted = [
        label
        for label in labels
        if label["source_id"] == "cls-001" and label["fold"] == 1 and label["level"] in (3, 4, 5)
    ]
    assert len(wanted) == 12
    for dataset in opened:
        assert dataset.labels.to_pylist() == wanted


# Damaged folders.


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
"""Name -> tier, damage, file that the error must name, and message of a local reader."""


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_told_alike(
    fault: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cfqa_data.codecs.get_codec", mock_codec)
    tier, change, file, message = FAULTS[fault]
    root = Path(shutil.copytree(folders[tier], tmp_path / "cfqa"))
    change(root)
    for way in REMOTE.values():
        with pytest.raises(FormatError) as told:
            next(way.rows(way.open(root, "cls", (), tmp_path / "cache")))
        assert file in str(told.value)
        assert message in str(told.value)
        assert "\n" not in str(told.value)
