"""Relative paths keep their meaning after a change of the working directory; `~` is expanded."""

from __future__ import annotations

import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import datasets
import numpy as np
import pytest
from hub_cache import move_into_cache
from mock_dataset import toy_recipe_dict, write_mock_dataset

import cfqa_data
from cfqa_data.builders.backbones.dinov2 import load_backbone
from cfqa_data.builders.importing.release import import_release
from cfqa_data.builders.maintenance.repair import repair
from cfqa_data.builders.pipeline.workspace import status
from cfqa_data.builders.sharing.export import export
from cfqa_data.builders.sharing.publish import plan_publishing
from cfqa_data.builders.tasks.heads import load_head
from cfqa_data.cli import main
from cfqa_data.cli.command import plain_file
from cfqa_data.cli.commands import COMMANDS
from cfqa_data.codecs import get_codec
from cfqa_data.codecs.hyperprior.checkpoint import read_checkpoint
from cfqa_data.codecs.hyperprior.codec import load_hyperprior
from cfqa_data.errors import CfqaError
from cfqa_data.eval import read_evaluation
from cfqa_data.eval.paper_logs import paper_figures
from cfqa_data.eval.report import write_report
from cfqa_data.format.resources import locate, resolve
from cfqa_data.integrity.summary import summarise
from cfqa_data.integrity.verify import verify
from cfqa_data.loaders import attach
from cfqa_data.loaders.torch import Pairs
from cfqa_data.recipe.load import Recipe, load_recipe

pytestmark = pytest.mark.usefixtures("quick_statistics")

RECIPE = toy_recipe_dict(1)
RECIPE["tasks"] = {"cls": RECIPE["tasks"]["cls"]}
RECIPE["tasks"]["cls"]["codecs"] = {"x265": RECIPE["tasks"]["cls"]["codecs"]["x265"]}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders with datasets of the same name and different features."""
    root = tmp_path_factory.mktemp("places")
    for seed, place in enumerate(("here", "there")):
        recipe = Recipe.from_dict(RECIPE)
        write_mock_dataset(root / place / "cfqa", sources=1, seed=seed, recipe=recipe)
    return root


@pytest.fixture
def here(places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(places, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("HOME", str(tmp_path / "here"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def _rows() -> Any:
    return datasets.Dataset.from_dict({"source_id": ["cls-000"], "codec": ["x265"], "level": [0]})


OPENED: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "load": (lambda: cfqa_data.load("cfqa"), lambda opened: opened[0].compressed),
    "slice": (lambda: cfqa_data.load("cfqa")[:1], lambda opened: opened[0].compressed),
    "Pairs": (lambda: Pairs("cfqa"), lambda opened: opened[0].compressed.numpy()),
    "attach": (lambda: attach(_rows(), "cfqa"), lambda opened: opened[0]["compressed"]),
    "pickle": (
        lambda: pickle.dumps(cfqa_data.load("cfqa")),
        lambda opened: pickle.loads(opened)[0].compressed,
    ),
}
"""Ways to open a folder, and to read from it later."""


@pytest.mark.parametrize("way", OPENED)
def test_an_open_dataset_stays_the_one_that_was_opened(
    way: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_, read = OPENED[way]
    wanted, opened = cfqa_data.load(here / "cfqa")[0].compressed, open_()
    monkeypatch.chdir(here.parent / "there")  # where another of that name is
    np.testing.assert_array_equal(read(opened), wanted)


def test_a_cache_stays_where_it_was_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = cfqa_data.load("cfqa")[0].compressed
    move_into_cache(here / "cfqa", here / "hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    cached = cfqa_data.load("org/cfqa", cache="hub")
    monkeypatch.chdir("/")
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(cached))[0].compressed, wanted)


def test_what_a_run_writes_goes_where_it_was_named(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even if a user's module or metric changes the working directory."""
    (here / "wandering.py").write_text(
        "import os\nos.chdir('/')\ndef wandering(x, y):\n    return (x - y).sum((1, 2, 3, 4))\n"
    )
    for number in range(2):
        monkeypatch.delitem(sys.modules, "wandering", raising=False)
        monkeypatch.chdir(here)
        line = ["--metric", "wandering:wandering", "--out", f"{number}.csv"]
        assert main(["eval", "cfqa", *line, "--report", f"{number}.html"]) == 0
        assert {path.name for path in here.glob(f"{number}.*")} == {
            f"{number}.csv",
            f"{number}.html",
        }
    capsys.readouterr()


def test_a_plan_of_publishing_keeps_its_folder(here: Path) -> None:
    assert plan_publishing("cfqa", "org/cfqa").upload.root == here / "cfqa"


def test_codecs_keep_their_files(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = get_codec("hm", encoder="bin/TAppEncoder", config="own.cfg")
    assert (codec.encoder, codec.config) == (here / "bin/TAppEncoder", here / "own.cfg")
    assert get_codec("vtm", encoder="EncoderApp").encoder == "EncoderApp"  # one on PATH
    models = Path(resolve("package://cfqa_data.codecs/weights/hyperprior_multi_task.safetensors"))
    shutil.copy(models, here / "models.safetensors")
    learned = get_codec("hyperprior_multi_task", models="models.safetensors")
    monkeypatch.chdir("/")
    assert learned.encode(np.zeros((64, 64), np.uint8), learned.lambdas[0])


def test_a_recipe_made_in_python_starts_from_the_working_directory(here: Path) -> None:
    """So that workers, and a resumed build, find its files."""
    facts = RECIPE | {"backbone": {"weights": "~/backbone.safetensors", "num_heads": 2}}
    facts["tasks"]["cls"]["source"] = {"kind": "imagenet", "seed": 0, "options": {"root": "val"}}
    recipe = load_recipe(Recipe.from_dict(facts))
    assert recipe.backbone.weights == str(here / "backbone.safetensors")
    assert recipe.tasks["cls"].head == str(here / "head_cls.safetensors")
    assert recipe.tasks["cls"].source.options == {"root": str(here / "val")}


def test_files_of_a_recipe_are_found_through_links(here: Path, tmp_path: Path) -> None:
    """In a cache of the Hub the target of a link has no suffix, and lies in another folder."""
    text = 'extends = "nano"\n[backbone]\nweights = "own.safetensors"\n'
    for name, content in (("own.toml", text), ("own.safetensors", "weights")):
        (tmp_path / name).with_suffix("").mkdir(exist_ok=True)
        blob = tmp_path / "own" / name.rpartition(".")[2]
        blob.write_text(content)
        (here / name).symlink_to(blob)
    assert load_recipe("own.toml").backbone.weights == str(here / "own.safetensors")


def _told(call: Callable[[], Any]) -> str:
    """Return the message of an error, or an empty text."""
    try:
        call()
    except CfqaError as error:
        return str(error)
    return ""


TAKEN: dict[str, Callable[[str], Any]] = {
    "load": cfqa_data.load,
    "cfqa_data.integrity.summary": summarise,
    "verify": verify,
    "repair": lambda path: repair(path, dry_run=True, accept_versions=True),
    "Pairs": Pairs,
    "attach": lambda path: attach(_rows(), path),
    "evaluate": lambda path: cfqa_data.evaluate(path, "mse"),
    "publish": lambda path: plan_publishing(path, "org/cfqa"),
    "export": lambda path: export(path, "~/out", "npy"),
}
"""Functions and methods that take the path of a dataset."""


@pytest.mark.parametrize("way", TAKEN)
def test_home_is_expanded_in_the_path_of_a_dataset(way: str, here: Path) -> None:
    (here / "elsewhere").mkdir()
    TAKEN[way]("~/cfqa")
    assert not (here / "~").exists()


FILES: dict[str, Callable[[str], Any]] = {
    "load_backbone": load_backbone,
    "load_head": lambda path: load_head("cls", path),
    "load_hyperprior": load_hyperprior,
    "read_checkpoint": read_checkpoint,
    "get_codec": lambda path: get_codec("hyperprior_multi_task", models=path),
    "isolated": lambda path: get_codec("hyperprior_multi_task", models=path, untrusted=True),
    "encoder": lambda path: get_codec("hm", encoder=path).version(),
    "load_recipe": load_recipe,
    "read_evaluation": lambda path: read_evaluation("~/cfqa", path),
    "paper_figures": paper_figures,
    "logs": lambda path: import_release("~/cfqa", "~/out", logs=path),
    "status": lambda path: status(Recipe.from_dict(RECIPE), path),
}
"""Takes the path of a file or folder of another kind; the dataset's own is none of these."""


@pytest.mark.parametrize("way", FILES)
def test_home_is_expanded_in_other_paths(way: str, here: Path) -> None:
    path = "file.toml" if way == "load_recipe" else "file"
    (here / path).write_text("nothing of the kind")
    absolute = _told(lambda: FILES[way](str(here / path)))
    assert absolute
    assert _told(lambda: FILES[way](f"~/{path}")).replace("~", str(here)) == absolute.replace(
        "~", str(here)
    )


def test_home_is_expanded_in_outputs(here: Path) -> None:
    evaluation = cfqa_data.evaluate("~/cfqa", "mse", out="~/scores.parquet")
    assert write_report(evaluation, "~/page.html", "~/cfqa") == here / "page.html"
    assert read_evaluation("~/cfqa", "~/scores.parquet").scores == evaluation.scores
    assert export("~/cfqa", "~/plain", "npy").root == here / "plain"
    assert locate("~/x", "/base") == here / "x"
    assert not (here / "~").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_home_is_expanded_in_every_path_of_a_command(command: str, here: Path) -> None:
    """Shells do not expand `~` in `--out=~/x`."""
    (here / "folder").mkdir()
    (here / "file").touch()
    hints = get_type_hints(COMMANDS[command], include_extras=True)
    paths = [hint for hint in hints.values() if "pathlib" in str(hint)]
    assert paths or command in ("info", "metrics")  # whose folder may be a repo; which has none
    for hint in paths:
        parse = hint.__metadata__[0].parser
        name = "file" if parse is plain_file else "folder"
        assert parse(f"~/{name}") == here / name


def test_a_working_directory_that_is_gone_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(CfqaError, match="cfqa: the working directory no longer exists"):
        cfqa_data.load("cfqa")
