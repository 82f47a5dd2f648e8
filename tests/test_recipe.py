from __future__ import annotations

import copy
import json
import pickle
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from cases import each
from mock_dataset import toy_recipe, toy_recipe_dict

from cfqa_data.codecs.base import FeatureCodec
from cfqa_data.errors import RecipeError
from cfqa_data.format.facts import Parameter
from cfqa_data.format.format_1 import CODECS, LAYERS, LEVELS, TASKS
from cfqa_data.format.quantizers import KMeansQuantizer
from cfqa_data.format.storage import write_tensors
from cfqa_data.recipe.load import Recipe, list_recipes, load_recipe

TOML = """
name = "own"
summary = "one task"
sources_per_task = 2
group_size = 2
[backbone]
weights = "weights/backbone.safetensors"
num_heads = 3
[tasks.cls]
blocks = [7]
head = "package://cfqa_data.builders/weights/head_cls.safetensors"
source = { kind = "scenes", seed = 1 }
[tasks.cls.codecs.hyperprior_multi_task]
parameter_name = "lambda"
levels = [10, 9, 8, 7, 6, 5, 4, 3, 2, 1]
quantizer = { kind = "kmeans", bits = 1, centers = "kmeans.safetensors" }
models = "models.safetensors"
"""


LEARNED = ["hyperprior_multi_task", "hyperprior_task_specific"]


@pytest.mark.parametrize(
    ("name", "video"), [("mini", ["x265", "vvenc"]), ("nano", ["x265", "vvenc"])]
)
def test_every_shipped_recipe_holds_all_tasks_and_its_codecs(name: str, video: list[str]) -> None:
    assert list_recipes() == [
        "dinov2-b",
        "dinov2-g",
        "dinov2-l",
        "dinov2-s",
        "mini",
        "nano",
        "paper",
        "ret",
        "wide",
    ]
    recipe = load_recipe(name)
    assert recipe.name == name
    assert list(recipe.tasks) == list(TASKS)
    for task in recipe.tasks.values():
        assert list(task.codecs) == video + LEARNED
        assert all(len(ladder.levels) == LEVELS for ladder in task.codecs.values())


def test_the_paper_s_recipe_needs_the_tables_that_its_features_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CFQA_ROOT", str(tmp_path))
    with pytest.raises(RecipeError, match=r"kmeans.safetensors: no such file .*CFQA_ROOT") as error:
        load_recipe("paper")
    for file in ("vitg14_pretrain", "voc2012_linear_head", "task_specific-dpt"):
        assert file in str(error.value)  # what else is missing is told at once
    assert str(error.value).count("no such file") == 1 + 1 + 3 + 1 + 3
    assert "\n" not in str(error.value)
    bare = load_recipe("paper", fitted=False)
    assert {tuple(task.codecs) for task in bare.tasks.values()} == {("hm", "vtm")}
    centers = np.arange(256, dtype=np.float32)
    (tmp_path / "weights").mkdir()
    tables = {task: np.tile(centers, (layers, 1)) for task, layers in LAYERS.items()}
    write_tensors(tmp_path / "weights" / "kmeans.safetensors", tables)
    recipe = load_recipe("paper")
    for name, task in recipe.tasks.items():
        assert list(task.codecs) == ["hm", "vtm", *LEARNED]
        assert task.codecs["vtm"].levels == tuple(range(2, 21, 2))
        assert task.codecs["hyperprior_multi_task"].quantizer.layers == LAYERS[name]
    assert [len(task.blocks) for task in recipe.tasks.values()] == [1, 1, 4]


def test_nano_is_mini_with_fewer_sources() -> None:
    mini, nano = load_recipe("mini"), load_recipe("nano")
    assert (mini.sources_per_task, nano.sources_per_task) == (100, 3)
    assert nano.tasks == mini.tasks
    assert nano.backbone == mini.backbone


def test_a_recipe_survives_json_and_pickle() -> None:
    recipe = toy_recipe()
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert pickle.loads(pickle.dumps(recipe)) == recipe


def test_tasks_and_codecs_come_in_the_fixed_order() -> None:
    data = toy_recipe_dict()
    data["tasks"] = dict(reversed(data["tasks"].items()))
    for task in data["tasks"].values():
        task["codecs"] |= dict.fromkeys(("hm", "vtm"), task["codecs"]["x265"])
        task["codecs"] = dict(reversed(task["codecs"].items()))
    recipe = Recipe.from_dict(data)
    assert list(recipe.tasks) == list(TASKS)
    assert list(recipe.tasks["cls"].codecs) == sorted(task["codecs"], key=list(CODECS).index)


def test_wide_adds_codecs_of_many_kinds_to_mini() -> None:
    wide, mini = load_recipe("wide"), load_recipe("mini")
    for name, task in mini.tasks.items():
        codecs = wide.tasks[name].codecs
        assert {key: codecs[key] for key in task.codecs} == task.codecs
        assert len(codecs) >= 12
        assert {spec.facts.on for spec in codecs.values()} == {"planes", "features", "inputs"}
    codecs = load_recipe("ret").tasks["ret"].codecs
    assert {key: wide.tasks["ret"].codecs[key] for key in codecs} == codecs


def test_a_recipe_that_extends_several(tmp_path: Path) -> None:
    (tmp_path / "more.toml").write_text('extends = ["nano", "own.toml"]')
    (tmp_path / "own.toml").write_text('name = "own"\n[tasks.cls]\nsources = 7')
    recipe = load_recipe(tmp_path / "more.toml")
    assert (recipe.name, recipe.sources("cls"), recipe.sources("seg")) == ("own", 7, 3)


def test_a_recipe_file_of_one_s_own(tmp_path: Path) -> None:
    centers = np.array([[-1, 2]], np.float32)
    write_tensors(tmp_path / "kmeans.safetensors", {"cls": centers})
    (tmp_path / "own.toml").write_text(TOML)
    more = '\ufeffextends = "own.toml"\r\nname = "more"\r\ngroup_size = 1\r\n'  # as on Windows
    (tmp_path / "more.toml").write_text(more, encoding="utf-8", newline="")
    recipe = load_recipe(tmp_path / "more.toml")
    ladder = recipe.tasks["cls"].codecs["hyperprior_multi_task"]
    assert (recipe.name, recipe.group_size, recipe.sources_per_task) == ("more", 1, 2)
    assert ladder.quantizer == KMeansQuantizer(1, ((-1.0, 2.0),))
    assert ladder.codec_options == {"models": str(tmp_path / "models.safetensors")}
    assert recipe.backbone.weights == str(tmp_path / "weights/backbone.safetensors")
    assert recipe.tasks["cls"].head.startswith("package://")


def test_a_source_s_folder_is_relative_to_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(
        'extends = "nano"\nname = "own"\n[tasks.cls.source]\nkind = "imagenet"\n'
        '[tasks.cls.source.options]\nroot = "val"\nlist = "root://lists/cls.txt"\n'
        '[tasks.seg.options]\nlexicon = "./words.txt"\nmode = "words.txt"\n'
    )
    recipe = load_recipe(tmp_path / "own.toml")
    options = recipe.tasks["cls"].source.options
    lexicon = str(tmp_path / "words.txt")
    assert recipe.tasks["seg"].options == {"lexicon": lexicon, "mode": "words.txt"}
    assert options["root"] == str(tmp_path / "val")
    assert options["list"] == "root://lists/cls.txt"


def test_an_extension_replaces_a_quantizer_whole(tmp_path: Path) -> None:
    (tmp_path / "wide.toml").write_text(
        'extends = "nano"\nname = "wide"\n[tasks.cls.codecs.x265]\n'
        'quantizer = { kind = "kmeans", bits = 1, centers = [[0.0, 1.0]] }\n'
    )
    ladder = load_recipe(tmp_path / "wide.toml").tasks["cls"].codecs["x265"]
    assert ladder.quantizer == KMeansQuantizer(1, ((0.0, 1.0),))
    assert ladder.levels == load_recipe("nano").tasks["cls"].codecs["x265"].levels


def _set(*path: str, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        for key in path[:-1]:
            data = data[key]
        if to is None:
            del data[path[-1]]
        else:
            data[path[-1]] = to

    return change


X265 = ("tasks", "cls", "codecs", "x265")


def _qps(first: int, end: int) -> dict[str, Any]:
    x265 = toy_recipe_dict()["tasks"]["cls"]["codecs"]["x265"]
    return x265 | {"levels": list(range(first, end))}


@each(
    ("change", "message"),
    [
        (_set("group_sise", to=1), "key in the recipe 'group_sise': did you mean 'group_size'"),
        (_set("group_size", to=0), "group_size must be a whole number of at least 1"),
        (_set("sources_per_task", to=True), "sources_per_task must be"),
        (_set("summary", to=None), "lacks summary"),
        (_set("name", to=""), "name must be a text"),
        (_set("tasks", to={}), "at least one task"),
        (_set("tasks", to=[]), "tasks must be a table"),
        (_set("tasks", "cl", to={}), "tasks.cl lacks source, blocks, codecs"),
        (_set("backbone", "heads", to=2), "did you mean 'num_heads'"),
        (_set("backbone", "origin", to=0), "backbone.origin must be a text"),
        (
            _set("tasks", "dpt", "blocks", to=[1, 3, 5]),
            "tasks.dpt.codecs.x265: the q.* the task 3",
        ),
        (
            _set("tasks", "Dpt", to=toy_recipe_dict()["tasks"]["dpt"]),
            "'Dpt' is not a valid name of a task",
        ),
        (_set("tasks", "cls", "head", to=None), "tasks.cls.head: classification needs weights"),
        (_set("tasks", "cls", "sources", to=0), "tasks.cls.sources must be a whole number"),
        (_set("sources_per_task", to=None), "sources_per_task must be"),
        (_set(*X265, "quantizer", to=None), "x265.quantizer: a codec on planes needs one"),
        (_set("backbone", "class", to="vit"), "backbone.num_heads: only for DINOv2"),
        (_set("tasks", "dpt", "blocks", to=[7, 5, 3, 1]), "increasing"),
        (
            _set("tasks", "cls", "blocks", to=["7"]),
            "tasks.cls.blocks must be a whole number of at least 0",
        ),
        (_set("tasks", "cls", "source", "seed", to=-1), "source.seed"),
        (_set("tasks", "cls", "codecs", to={}), "at least one codec"),
        (_set("tasks", "cls", "codecs", "x256", to={}), "codecs.x256 lacks"),
        (_set(*X265, "parameter_name", to="lambda"), "must be qp, got 'lambda'"),
        (_set(*X265, "levels", to=[]), "levels must be 1 to 128 numbers"),
        (_set(*X265, "levels", to=list(range(129))), "levels must be 1 to 128 numbers"),
        (_set(*X265, "levels", to=list(range(10, 0, -1))), "qp must rise from level 0"),
        (_set(*X265, "levels", to=list(range(50, 60))), "from 0 to 51"),
        (_set("tasks", "cls", "codecs", "hm", to=_qps(43, 53)), "hm: .*from 0 to 51"),
        (_set("tasks", "cls", "codecs", "vtm", to=_qps(55, 65)), "vtm: .*from 0 to 63"),
        (_set(*X265, "levels", to=["a"] * 10), "qp must be a whole number from 0 to 51, got 'a'"),
        (_set(*X265, "quantizer", "lo", to=[0.0, 0.0]), "one number per layer"),
        (
            _set(*X265, "quantizer", to={"kind": "kmeans", "bits": 1, "centers": [[0, 1]] * 2}),
            "2 l",
        ),
        (_set(*X265, "preset", to="slow"), "unknown key in codecs.x265 'preset'"),
    ],
)
def test_impossible_recipes_are_refused_in_one_line(
    change: Callable[[dict[str, Any]], None], message: str
) -> None:
    data = copy.deepcopy(toy_recipe_dict())
    change(data)
    with pytest.raises(RecipeError, match=message) as error:
        Recipe.from_dict(data)
    assert "\n" not in str(error.value)


def test_tasks_codecs_and_counts_of_one_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("own_codecs")
    module.Half = Half  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_codecs", module)
    data = toy_recipe_dict()
    del data["sources_per_task"]
    half = {"class": "own_codecs:Half", "levels": [16, 8.5]}
    data["backbone"] = {"class": "own_codecs:Net", "options": {"width": 3}, "origin": ""}
    data["tasks"] = {
        "words": {
            "class": "own_codecs:Words",
            "source": {"kind": "own_codecs:Text", "seed": 0, "options": {"file": "./a.txt"}},
            "blocks": [0, 5],
            "sources": 4,
            "options": {"lexicon": "root://words.txt"},
            "codecs": {"half": half, "again": half | {"parameter_name": "bits"}},
        }
    }
    recipe = Recipe.from_dict(data)
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert recipe.sources("words") == 4
    assert recipe.paths == ("root://words.txt", "./a.txt")
    again = recipe.tasks["words"].codecs["again"]
    assert again.facts == replace(Half.facts(), name="again")
    assert (again.registered.package, len(again.registered.sha256)) == ("own_codecs", 64)
    for levels, told in (
        ([8, 16], "bits must fall"),
        ([16, 0], "bits must be a number from 1, got 0"),
    ):
        data["tasks"]["words"]["codecs"]["half"] = half | {"levels": levels}
        with pytest.raises(RecipeError, match=f"tasks.words: codecs.half: {told}"):
            Recipe.from_dict(data)
    uniform = {"kind": "uniform", "bits": 8, "lo": [0, 0], "hi": [1, 1]}
    data["tasks"]["words"]["codecs"]["half"] = half | {"quantizer": uniform}
    with pytest.raises(RecipeError, match="codec on features takes none"):
        Recipe.from_dict(data)


class Half(FeatureCodec):
    """A codec on features with the attributes that a recipe reads."""

    name = title = "half"
    parameter = Parameter("bits", "higher", lowest=1)


def test_unknown_names_and_codecs_are_refused() -> None:
    with pytest.raises(RecipeError, match="did you mean 'mini'"):
        load_recipe("mni")
    with pytest.raises(RecipeError, match="no such recipe file"):
        load_recipe("mni.toml")
    data = toy_recipe_dict()
    codecs = data["tasks"]["cls"]["codecs"]
    codecs["x256"] = codecs.pop("x265")
    with pytest.raises(RecipeError, match="unknown codec 'x256': did you mean 'x265'"):
        Recipe.from_dict(data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "not a readable TOML file"),
        ('extends = "bad.toml"', "extends itself"),
        ('extends = ["mini", "bad.toml"]', "extends itself"),
        ('extends = "mimi"', "did you mean 'mini'"),
        ("tasks = 3", "lacks name"),
        (TOML, "kmeans.safetensors: no such file"),
    ],
)
def test_a_bad_recipe_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message) as error:
        load_recipe(path)
    assert "bad.toml" in str(error.value)


def test_a_bad_recipe_file_is_named_by_what_extends_it(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text("a = = 1")
    path = tmp_path / "own.toml"
    path.write_text('extends = "base.toml"')
    with pytest.raises(
        RecipeError, match=r"own\.toml: extends /.*/base\.toml: not a readable TOML file"
    ):
        load_recipe(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("x = " + "9" * 5000, "digits"),
        ("x = 0x" + "f" * 10_000, "a number of more than 64 bits"),
        ("x = [1, {y = [nan]}]", "nan is not a finite number"),
        ("x = [1, {y = -inf}]", "-inf is not a finite number"),
        ("x = 1979-05-27", "a date, neither text nor number"),
        ('x = "\ud800"', "can't decode"),
    ],
)
def test_what_no_recipe_holds_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(RecipeError, match=message) as error:
        load_recipe(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        'extends = "{name}.toml"',
        '[backbone]\nweights = "{name}"',
        '[tasks.cls.codecs.x265.quantizer]\ncenters = "{name}"',
        'extends = "nano"\n[tasks.cls.codecs.x265.quantizer]\ncenters = "{name}"',
    ],
)
def test_names_that_no_file_can_have_are_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.toml").write_text(text.replace("{name}", "x" * 5000))
    with pytest.raises(RecipeError, match=r"x\.toml: "):
        load_recipe(tmp_path / "x.toml")
