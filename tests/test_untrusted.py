"""`untrusted=True` in all functions that open a folder: the same features, decoded in a sandbox."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from mock_codec import mock_codec
from mock_dataset import toy_recipe_dict, write_mock_dataset
from typer.testing import CliRunner

import cfqa_data
import cfqa_data.codecs
from cfqa_data.access.folder import Folder
from cfqa_data.builders.sharing.export import export
from cfqa_data.cli import app
from cfqa_data.codecs.sandbox.isolated import IsolatedCodec
from cfqa_data.errors import CfqaError, FormatError
from cfqa_data.loaders import attach
from cfqa_data.loaders.torch import Pairs
from cfqa_data.recipe.load import Recipe

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX's limits")

MADE: list[tuple[str, bool]] = []
"""Created codecs: name, and whether they decode in a sandbox."""


def counted(name: str, **options: Any) -> Any:
    codec = mock_codec(name, **options)
    MADE.append((name, isinstance(codec, IsolatedCodec)))
    return codec


@pytest.fixture(autouse=True)
def mocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("cfqa_data.codecs.get_codec", counted)
    datasets.disable_progress_bars()
    MADE.clear()
    yield
    datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    facts = toy_recipe_dict(1)
    facts["tasks"] = {"cls": facts["tasks"]["cls"]}
    codecs = facts["tasks"]["cls"]["codecs"]
    facts["tasks"]["cls"]["codecs"] = {"x265": codecs["x265"]}
    root = tmp_path_factory.mktemp("untrusted") / "cfqa"
    return write_mock_dataset(root, sources=1, tier="light", recipe=Recipe.from_dict(facts))


@pytest.fixture
def wanted(folder: Path) -> list[np.ndarray]:
    found = [pair.compressed for pair in cfqa_data.load(folder)]
    assert {False} == {apart for _, apart in MADE}
    MADE.clear()
    return found


def check(found: list[Any], wanted: list[np.ndarray]) -> None:
    assert MADE == [("x265", True)]
    assert [np.asarray(one).tobytes() for one in found] == [one.tobytes() for one in wanted]


def test_loaders(folder: Path, wanted: list[np.ndarray], tmp_path: Path) -> None:
    check([pair.compressed for pair in cfqa_data.load(folder, untrusted=True)], wanted)
    MADE.clear()
    check([pair.compressed for pair in Pairs(folder, untrusted=True)], wanted)
    MADE.clear()
    rows = datasets.load_dataset(str(folder), "cls", split="test", cache_dir=str(tmp_path))
    check([row["compressed"] for row in attach(rows, folder, untrusted=True)], wanted)
    MADE.clear()
    splits = attach(datasets.DatasetDict(test=rows), folder, untrusted=True)
    check([row["compressed"] for row in splits["test"]], wanted)
    with pytest.raises(CfqaError, match=r"pass them to load\(\)"):
        attach(rows, cfqa_data.load(folder), untrusted=True)


def test_export_and_evaluate(folder: Path, wanted: list[np.ndarray], tmp_path: Path) -> None:
    export(folder, tmp_path / "plain", "npy", originals=False, untrusted=True)
    check([np.load(path) for path in sorted((tmp_path / "plain").rglob("*.npy"))], wanted)
    MADE.clear()
    scores = cfqa_data.evaluate(folder, "mse", untrusted=True).scores
    assert MADE == [("x265", True)]
    assert scores == cfqa_data.evaluate(folder, "mse").scores


def test_commands(folder: Path, wanted: list[np.ndarray], tmp_path: Path) -> None:
    line = ["export", str(folder), "--out", str(tmp_path / "plain"), "--format", "npy"]
    done = CliRunner().invoke(app, [*line, "--no-originals", "--untrusted"])
    assert done.exit_code == 0, done.output
    check([np.load(path) for path in sorted((tmp_path / "plain").rglob("*.npy"))], wanted)
    MADE.clear()
    done = CliRunner().invoke(app, ["eval", str(folder), "--untrusted", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["failures"] == {}
    assert MADE == [("x265", True)]


def test_a_damaged_bitstream_is_a_fault_of_the_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = cfqa_data.load(folder, untrusted=True)
    monkeypatch.setattr(type(opened._folder), "bitstream", lambda *_: b"damaged")
    with pytest.raises(FormatError, match="at level 3 cannot be decoded: bad bytes: Error -3"):
        opened[3]


def test_a_manifest_cannot_ask_to_be_trusted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = cfqa_data.load(folder, untrusted=True)
    origin = opened.manifest.tasks["cls"].codecs["x265"].origin
    assert origin is not None
    monkeypatch.setitem(origin.options, "untrusted", False)  # type: ignore[arg-type]
    opened[0]
    assert MADE == [("x265", True)]


def test_no_program_of_a_manifest_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_mock_dataset(tmp_path / "cfqa", sources=1)
    manifest = json.loads((root / "manifest.json").read_text())
    ladders = manifest["recipe"]["tasks"]["cls"]["codecs"]
    ladders["hm"] = ladders.pop("x265") | {"options": {"encoder": "evil", "config": "evil.cfg"}}
    (root / "manifest.json").write_text(json.dumps(manifest))
    given = {}
    monkeypatch.setattr(
        cfqa_data.codecs, "get_codec", lambda name, **options: given.update({name: options})
    )
    folder = Folder(root)
    folder.decoder("cls", "hm")
    assert given == {"hm": {"untrusted": False, "plugins": (), "tables": None}}
    recipe = Recipe.from_dict(folder.manifest.recipe)
    assert recipe.tasks["cls"].codecs["hm"].codec_options["encoder"] == "evil"
    kept = recipe.without_programs().tasks["cls"].codecs["hm"].codec_options
    assert kept == {}
