"""Symbolic links: those in a cache of the Hub are followed, others only if the user allows it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from damaged import flip
from hub_cache import move_into_cache
from mock_dataset import toy_recipe_dict, write_mock_dataset

import cfqa_data
from cfqa_data.builders.sharing.export import export
from cfqa_data.builders.sharing.publish import plan_publishing
from cfqa_data.cli import main
from cfqa_data.errors import CfqaError, FormatError
from cfqa_data.eval import read_evaluation
from cfqa_data.eval.report import write_report
from cfqa_data.integrity.summary import summarise
from cfqa_data.integrity.verify import verify
from cfqa_data.loaders import attach
from cfqa_data.loaders.torch import Pairs
from cfqa_data.recipe.load import Recipe

pytestmark = pytest.mark.usefixtures("quick_statistics")

LABELS, SHARD = "labels/cls.parquet", "originals/cls-00000-of-00001.safetensors"
CODES = "compressed/cls/x265.zarr"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    facts = toy_recipe_dict(1)
    facts["tasks"] = {"cls": facts["tasks"]["cls"]}
    facts["tasks"]["cls"]["codecs"] = {"x265": facts["tasks"]["cls"]["codecs"]["x265"]}
    return write_mock_dataset(tmp_path / "cfqa", sources=1, recipe=Recipe.from_dict(facts))


def _attached(root: Path, **how: Any) -> Any:
    rows = datasets.Dataset.from_dict({"source_id": ["cls-000"], "codec": ["x265"], "level": [0]})
    return attach(rows, root, **how)[0]["compressed"]


def _exported(root: Path, **how: Any) -> Any:
    out = root.parent / f"exported-{root.name}"
    shutil.rmtree(out, ignore_errors=True)
    return export(root, out, "npy", **how).features


def _report(root: Path, **how: Any) -> Any:
    evaluation = cfqa_data.evaluate(root, "mse", follow_links=True)
    page = write_report(evaluation, root.parent / "page.html", root, **how).read_text()
    return re.sub(r"<dt>scored</dt><dd>.*?</dd>", "", page)  # date and duration


def _reread(root: Path, **how: Any) -> Any:
    out = root.parent / "scores.parquet"
    cfqa_data.evaluate(root, "mse", out=out, force=True, follow_links=True)
    return read_evaluation(root, out, **how).scores.to_pylist()


READERS: dict[str, Callable[..., Any]] = {
    "load": lambda root, **how: cfqa_data.load(root, **how)[0].compressed,
    "attach": _attached,
    "Pairs": lambda root, **how: Pairs(root, **how)[0].original.numpy(),
    "evaluate": lambda root, **how: cfqa_data.evaluate(root, "mse", **how).scores.to_pylist(),
    "report": _report,
    "scores": _reread,
    "info": lambda root, **how: summarise(root, **how) | {"path": ""},
    "export": _exported,
    "verify": lambda root, **how: verify(root, **how).damage,
    "publish": lambda root, **how: plan_publishing(root, "org/cfqa", **how).upload.files,
}
"""All readers of a folder."""


@pytest.mark.parametrize("reader", READERS)
def test_a_snapshot_in_a_cache_of_the_hub_is_read(
    reader: str, folder: Path, tmp_path: Path
) -> None:
    """Since huggingface_hub 2, a blob of a repo is a link to a store that all repos share."""
    wanted = READERS[reader](folder)
    snapshot = move_into_cache(folder, tmp_path / "hub", local=["README.md"])
    assert os.path.realpath(snapshot / SHARD).startswith(f"{tmp_path}/hub/blobs/")
    np.testing.assert_equal(READERS[reader](snapshot), wanted)


def test_a_cached_repo_is_read_by_its_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = READERS["load"](folder)
    move_into_cache(folder, tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    np.testing.assert_array_equal(
        cfqa_data.load("org/cfqa", cache=tmp_path / "hub")[0].compressed, wanted
    )


def _unmarked(store: Path, _: Path) -> None:
    (store / ".huggingface-shared-blobs").unlink()


def _other_name(store: Path, link: Path) -> None:
    file = Path(os.path.realpath(link))
    _to(file.rename(store / "ab"), link)


def _out_of_the_store(store: Path, link: Path) -> None:
    file = Path(os.path.realpath(link))
    away = file.rename(store.parent / file.name)
    file.symlink_to(away)


def _of_another_repo(store: Path, link: Path) -> None:
    other = store.parent / "datasets--org--other" / "blobs" / "x"
    other.parent.mkdir(parents=True)
    _to(Path(os.path.realpath(link)).rename(other), link)


def _no_repo(store: Path, _: Path) -> None:
    (store.parent / "datasets--org--cfqa").rename(store.parent / "cfqa")


def _to(target: Path, link: Path) -> None:
    link.unlink()
    link.symlink_to(target)


@pytest.mark.parametrize(
    "change", [_unmarked, _other_name, _out_of_the_store, _of_another_repo, _no_repo]
)
def test_what_only_looks_like_the_caches_store_is_not_followed(
    change: Callable[[Path, Path], None], folder: Path, tmp_path: Path
) -> None:
    snapshot = move_into_cache(folder, tmp_path / "hub", local=["manifest.json"])
    change(tmp_path / "hub" / "blobs", snapshot / SHARD)
    if change is _no_repo:
        snapshot = tmp_path / "hub" / "cfqa" / "snapshots" / snapshot.name
    with pytest.raises(FormatError, match="leads out of the folder"):
        cfqa_data.load(snapshot)[0]


def _file_away(name: str) -> Callable[[Path], None]:
    def move(folder: Path) -> None:
        away = folder.parent / "store" / Path(name).name
        away.parent.mkdir()
        shutil.move(folder / name, away)
        (folder / name).symlink_to(away)

    return move


OWN = {
    "a file": _file_away(SHARD),  # as DVC and git-annex have them
    "manifest": _file_away("manifest.json"),
    "a folder": _file_away("compressed"),  # on another disk
    "a folder below": _file_away(CODES),
}


@pytest.mark.parametrize("own", OWN)
@pytest.mark.parametrize("reader", READERS)
def test_links_of_ones_own_are_followed_where_one_says_so(
    reader: str, own: str, folder: Path
) -> None:
    wanted, read = READERS[reader](folder), READERS[reader]
    OWN[own](folder)
    if own == "manifest" or reader in ("verify", "publish", "evaluate", "export"):  # read all
        message = "leads out of the folder; if you trust the folder: follow_links=True, --follow"
        try:
            found = read(folder)
        except CfqaError as error:
            found = error
        assert message in str(found)
    np.testing.assert_equal(read(folder, follow_links=True), wanted)


@pytest.mark.parametrize("first", [False, True])
def test_a_column_follows_links_if_its_own_attach_said_so(first: bool, folder: Path) -> None:
    _file_away(CODES)(folder)
    rows = datasets.Dataset.from_dict({"source_id": ["cls-000"], "codec": ["x265"], "level": [0]})
    columns = {how: attach(rows, folder, follow_links=how) for how in (first, not first)}
    for how in (first, not first, first):
        if how:
            assert columns[how][0]["compressed"].size
        else:
            with pytest.raises(FormatError, match="leads out of the folder"):
                columns[how][0]


def test_an_open_dataset_was_opened_with_its_links(folder: Path) -> None:
    opened, out = cfqa_data.load(folder), folder.parent / "scores.parquet"
    found = cfqa_data.evaluate(opened, "mse", out=out)
    for read in (
        _attached,
        Pairs,
        lambda ds, **how: cfqa_data.evaluate(ds, "mse", **how),
        lambda ds, **how: read_evaluation(ds, out, **how),
        lambda ds, **how: write_report(found, out.with_suffix(".html"), ds, **how),
    ):
        with pytest.raises(CfqaError, match="follow_links can be given only with a path"):
            read(opened, follow_links=True)


def test_commands_follow_links_by_an_option(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    OWN["manifest"](folder)
    scores = tmp_path / "scores.parquet"
    for line in (
        ["info"],
        ["eval", "--metric", "mse", "--out", str(scores), "--report", str(tmp_path / "x.html")],
        ["report", str(scores), "--out", str(tmp_path / "y.html")],
        ["export", "--format", "npy", "--out", str(tmp_path / "plain")],
        ["publish", "org/cfqa", "--dry-run"],
        ["repair", "--dry-run", "--allow-version-mismatch"],
    ):
        command, *rest = line
        assert main([command, str(folder), *rest]) == 2, line
        assert "leads out of the folder" in capsys.readouterr().err
        assert main([command, str(folder), *rest, "--follow-links"]) == 0, line
        capsys.readouterr()
    assert main(["verify", str(folder)]) == 1
    assert capsys.readouterr().out.startswith("manifest.json: leads out of the folder; ")


def test_behind_a_link_that_is_followed_nothing_is_overlooked(folder: Path) -> None:
    OWN["a folder"](folder)
    (folder / "compressed" / "up").symlink_to(folder)  # a loop
    (folder / "compressed" / "notes").write_text("mine")
    found = verify(folder, follow_links=True)
    assert found.unlisted == ("compressed/notes", "compressed/up")
    flip(folder / CODES / "zarr.json")
    (fault,) = verify(folder, follow_links=True).faults
    assert fault.path == f"{CODES}/zarr.json"
