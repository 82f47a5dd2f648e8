"""Pointers of Git LFS and git-annex are reported as such, with the command that gets the file."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mock_dataset import toy_recipe, write_mock_dataset

import cfqa_data
from cfqa_data.builders.importing.files import scan_release
from cfqa_data.builders.maintenance.repair import repair
from cfqa_data.builders.sources.files import read_list
from cfqa_data.builders.sources.images import read_mask, read_rgb, read_size
from cfqa_data.builders.sources.nyuv2 import LabelledMat, read_splits
from cfqa_data.cli import main
from cfqa_data.codecs.hyperprior.weights import read_ladder
from cfqa_data.errors import CfqaError
from cfqa_data.eval.paper_logs import read_log
from cfqa_data.format.resources import resolve
from cfqa_data.format.schema import label_schema
from cfqa_data.format.storage import read_table
from cfqa_data.integrity.consistency import inconsistencies
from cfqa_data.integrity.verify import verify
from cfqa_data.recipe.load import Recipe, load_recipe

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
TOLD = "a Git LFS pointer; 'git lfs pull' gets the file itself"
ANNEX = "a git-annex pointer; 'git annex get' gets the file itself"


def lfs(path: Path) -> None:
    path.write_bytes(LFS)


def unlocked(path: Path) -> None:
    path.write_bytes(b"/annex/objects/SHA256E-s12345--4d7a.parquet\n")


def locked(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("../../.git/annex/objects/xX/9z/SHA256E-s12345--4d7a/SHA256E-s12345--4d7a")


KINDS = {"lfs": (lfs, TOLD), "unlocked": (unlocked, ANNEX), "locked": (locked, ANNEX)}


@pytest.fixture(scope="module")
def mock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = toy_recipe(2).to_dict()
    cls = recipe["tasks"]["cls"]
    cls["codecs"] = {"x265": cls["codecs"]["x265"]}
    recipe["tasks"] = {"cls": cls}
    made = Recipe.from_dict(recipe)
    return write_mock_dataset(tmp_path_factory.mktemp("pointers") / "cfqa", sources=2, recipe=made)


@pytest.fixture
def folder(mock: Path, tmp_path: Path) -> Path:
    return shutil.copytree(mock, tmp_path / "cfqa")


STREAMS = "bitstreams/cls-x265-00000-of-00001.safetensors"
FILES: dict[str, Callable[[Path], Any]] = {
    "labels/cls.parquet": cfqa_data.load,
    "originals/cls-00000-of-00001.safetensors": lambda f: cfqa_data.load(f).original("cls-000"),
    STREAMS: lambda f: cfqa_data.load(f).bitstream("cls-001", "x265", 3),
    "truth/cls.safetensors": lambda f: cfqa_data.load(f).truth("cls-000"),
    "compressed/cls/x265.zarr/zarr.json": lambda f: cfqa_data.load(f)[0],
    "compressed/cls/x265.zarr/c/0/0/0/0/0/0": lambda f: cfqa_data.load(f)[0],
    "labels/originals.parquet": repair,
    "README.md": lambda f: repair(f, dry_run=True),
}
"""File of a dataset -> functions that read it."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FILES)
def test_a_file_of_a_dataset(name: str, kind: str, folder: Path) -> None:
    put, told = KINDS[kind]
    put(folder / name)
    with pytest.raises(CfqaError) as caught:
        FILES[name](folder)
    assert str(caught.value).startswith(f"{folder / name}: {told}")
    found = verify(folder)
    assert [str(fault) for fault in found.damage] == [f"{name}: {told}"]
    assert inconsistencies(folder, found.manifest, {name}) == []


def test_a_repair_counts_them_and_makes_nothing(folder: Path) -> None:
    for name in FILES:
        lfs(folder / name)
    before = sorted(folder.rglob("*"))
    with pytest.raises(CfqaError, match=rf"README.md \(and 7 more\): {TOLD}; then repair again"):
        repair(folder)
    assert [path for path in sorted(folder.rglob("*")) if ".build" not in path.parts] == before


def test_a_manifest(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lfs(folder / "manifest.json")
    with pytest.raises(CfqaError, match=f"manifest.json: {TOLD}"):
        cfqa_data.load(folder)
    assert main(["verify", str(folder)]) == 1
    assert capsys.readouterr().out.startswith(f"manifest.json: {TOLD}")


OTHERS: dict[str, Callable[[Path], Any]] = {
    "recipe.toml": load_recipe,
    "weights.pth": lambda path: resolve(str(path)),
    "models.safetensors": read_ladder,
    "image.jpg": read_rgb,
    "size.png": read_size,
    "mask.png": read_mask,
    "list.txt": read_list,
    "splits.mat": read_splits,
    "nyu.mat": lambda path: LabelledMat(path, False, True),
    "log.txt": read_log,
    "table.parquet": lambda path: read_table(path, label_schema()),
}
"""File that is read while building, importing or scoring -> function that reads it."""


@pytest.mark.parametrize("name", OTHERS)
def test_a_file_of_a_source_or_recipe(name: str, tmp_path: Path) -> None:
    lfs(tmp_path / name)
    with pytest.raises(CfqaError) as caught:
        OTHERS[name](tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert TOLD in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name", ["org_feat/cls/b.npy", "compressed_feat/hm/cls/QP2/a.bin", "org_feat/cls/a.npy"]
)
def test_a_file_of_a_release(name: str, kind: str, tmp_path: Path) -> None:
    for known in ("a", "b"):
        path = tmp_path / f"org_feat/cls/{known}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.zeros((1, 1, 2, 2), np.float32))
    put, told = KINDS[kind]
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    put(tmp_path / name)
    with pytest.raises(CfqaError) as caught:
        scan_release(tmp_path)
    assert str(caught.value) == f"{tmp_path / name}: {told}"
