"""Errors in a recipe are found before anything is written, and can be corrected in place."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pipeline_toy import LAMBDAS, QPS, qp, toy_recipe, write_models, write_networks
from safetensors.torch import load_file, save_file

from cfqa_data.builders.pipeline import build, select
from cfqa_data.builders.pipeline.check import make_plan
from cfqa_data.builders.pipeline.workspace import open_workspace
from cfqa_data.errors import BuildError
from cfqa_data.recipe.load import Recipe

CLS = ("tasks", "cls")
X265 = (*CLS, "codecs", "x265")
LEARNED = (*CLS, "codecs", "hyperprior_multi_task")
UNIFORM = {"kind": "uniform", "lo": [-6.0], "hi": [6.0]}


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("networks")
    write_networks(folder)
    write_models(folder)
    return folder


@pytest.fixture(scope="module")
def recipe(networks: Path) -> Recipe:
    learned = {
        "parameter_name": "lambda",
        "levels": list(LAMBDAS),
        "models": str(networks / "models.safetensors"),
    }
    return toy_recipe(networks, {"x265": QPS, "hyperprior_multi_task": learned}, sources_per_task=1)


def changed(recipe: Recipe, path: tuple[str, ...], to: Any) -> Recipe:
    data = copy.deepcopy(recipe.to_dict())
    table = data
    for key in path[:-1]:
        table = table[key]
    table[path[-1]] = to
    return Recipe.from_dict(data)


def elsewhere(name: str) -> Callable[[Path], str]:
    return lambda networks: str(networks / name)


@pytest.mark.parametrize(
    ("path", "to", "message"),
    [
        ((*CLS, "source", "kind"), "scene", "unknown source 'scene'"),
        ((*CLS, "source", "seed"), 20_000_000, "seed 20000000 is not in 0"),
        ((*CLS, "source", "options"), {"sides": 112}, "tasks.cls.source: scenes: .*'sides'"),
        ((*CLS, "source", "options"), {"task": "seg"}, "tasks.cls.source: scenes: .*'task'"),
        ((*CLS, "blocks"), [20], "tasks.cls: no block 20, the last is 3"),
        (("backbone", "num_heads"), 5, "the width 48 is not a multiple of 5 heads"),
        (("backbone", "weights"), elsewhere("cls.safetensors"), "not a DINOv2 backbone"),
        ((*CLS, "head"), elsewhere("seg.safetensors"), "so this is not a cls head"),
        ((*CLS, "head"), elsewhere("missing.safetensors"), "missing.safetensors"),
        ((*X265, "options"), {"preset": "slowish"}, "cls, codec x265: .*preset 'slowish'"),
        ((*X265, "options"), {"present": "slow"}, "cls, codec x265: .*'present'"),
        (
            (*X265, "options"),
            {"parameters": {"qpfile": "/tmp/q"}},
            "cls, codec x265: options.parameters.qpfile names a file, .*; remove the option",
        ),
        ((*X265, "quantizer"), {**UNIFORM, "bits": 12}, "12 bits are too large: it takes 0..1023"),
        (
            (*LEARNED, "quantizer"),
            {**UNIFORM, "bits": 10},
            "10 bits are too large: it takes 0..255",
        ),
        ((*LEARNED, "levels"), [0.2, *LAMBDAS[1:]], "has no model for lambda 0.2"),
        ((*LEARNED, "models"), elsewhere("cls.safetensors"), "cls.safetensors"),
    ],
)
def test_a_mistake_is_found_before_anything_is_written(
    recipe: Recipe, networks: Path, tmp_path: Path, path: tuple[str, ...], to: Any, message: str
) -> None:
    to = to(networks) if callable(to) else to
    with pytest.raises(BuildError, match=message) as caught:
        build(changed(recipe, path, to), tmp_path / "out", workers=0)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_all_that_is_missing_is_told_at_once(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for what in ("encoder", "config"):
        monkeypatch.setenv(f"CFQA_HM_{what}".upper(), "")
    monkeypatch.setenv("PATH", str(tmp_path))
    lacking = recipe
    for path, to in [
        (("backbone", "weights"), str(tmp_path / "none.pth")),
        ((*CLS, "head"), str(tmp_path / "none.safetensors")),
        ((*LEARNED, "models"), str(tmp_path / "models.safetensors")),
        (
            ("tasks", "seg", "source"),
            {"kind": "voc2012", "seed": 1, "options": {"root": str(tmp_path)}},
        ),
    ]:
        lacking = changed(lacking, path, to)
    for task in ("cls", "dpt"):
        hm = lacking.to_dict()["tasks"][task]["codecs"]["x265"]
        lacking = changed(lacking, ("tasks", task, "codecs", "hm"), hm)
    with pytest.raises(BuildError) as caught:
        build(lacking, tmp_path / "out", workers=0)
    told = str(caught.value)
    for name in ("none.pth", "none.safetensors", "models.safetensors", "JPEGImages"):
        assert f"{tmp_path}/{name}" in told
    assert told.count("no such file") == 3
    assert told.count("no HM encoder") == 1
    assert "\n" not in told
    assert not (tmp_path / "out").exists()


def test_a_head_of_another_width_is_named(recipe: Recipe, networks: Path, tmp_path: Path) -> None:
    tensors = load_file(networks / "dpt.safetensors")
    weight = tensors["conv_depth.weight"]
    save_file(tensors | {"conv_depth.weight": weight[:, ::2].contiguous()}, tmp_path / "half")
    (tmp_path / "half").rename(tmp_path / "half.safetensors")
    wrong = changed(recipe, ("tasks", "dpt", "head"), str(tmp_path / "half.safetensors"))
    with pytest.raises(BuildError, match=r"half.safetensors: not a head for features of width 48"):
        make_plan(wrong, "full")


def test_a_build_that_finished_nothing_gives_way_to_a_mended_recipe(
    networks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    first = toy_recipe(networks, {"x265": QPS}, sources_per_task=1)
    mended = toy_recipe(networks, {"x265": qp(*range(10, 30, 2))}, sources_per_task=1)
    with monkeypatch.context() as patch:
        patch.setattr(select.Select, "run", None)
        with pytest.raises(BuildError, match="failed 3 times"):
            build(first, tmp_path, workers=0)
    assert (tmp_path / ".build" / "plan.json").exists()
    build(mended, tmp_path, workers=0)
    assert (tmp_path / "manifest.json").exists()


def sharded(path: Path, out: Path) -> Path:
    """Split the tensors of a file into two shards in a new folder, and return it."""
    tensors = load_file(path)
    out.mkdir()
    places = {}
    for number, keys in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2])):
        save_file({key: tensors[key] for key in keys}, out / f"part{number}.safetensors")
        places |= dict.fromkeys(keys, f"part{number}.safetensors")
    (out / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return out


def test_another_shard_is_another_plan_and_does_not_go_on(networks: Path, tmp_path: Path) -> None:
    folder = sharded(networks / "backbone.safetensors", tmp_path / "giant")
    data = toy_recipe(networks, {"x265": QPS}).to_dict()
    data["backbone"]["weights"] = str(folder)
    data["tasks"] = {"cls": data["tasks"]["cls"]}
    recipe = Recipe.from_dict(data)
    plan = make_plan(recipe, "light")
    out = tmp_path / "out"
    (out / "truth").mkdir(parents=True)
    open_workspace(plan, out)
    (out / "truth" / "cls.safetensors").write_bytes(b"")  # so that something is finished
    assert open_workspace(plan, out).digest() == plan.digest()
    shard = folder / "part1.safetensors"
    tensors = load_file(shard)
    first = next(iter(tensors))
    save_file(tensors | {first: tensors[first] + 1}, shard)
    other = make_plan(recipe, "light")
    assert other.digest() != plan.digest()
    with pytest.raises(BuildError, match=rf"begun with different weights or lists \({folder}: "):
        open_workspace(other, out)
