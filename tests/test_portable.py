"""Manifests record names and hashes of files, and no absolute paths."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cases import each
from mock_dataset import write_mock_dataset
from pipeline_toy import TEN_QPS, toy_recipe

from cfqa_data.builders.sharing.publish import plan_publishing
from cfqa_data.codecs.options import named_files
from cfqa_data.errors import FormatError
from cfqa_data.format.manifest import read_manifest
from cfqa_data.recipe.load import Recipe, load_recipe
from cfqa_data.recipe.portable import (
    check_portable,
    is_local,
    is_local_path,
    local_options,
    portable,
    portable_names,
    recipe_of,
    replace_path,
)


def recipe(**tasks: str) -> Recipe:
    data = toy_recipe(Path("/home/me/w"), {"x265": TEN_QPS}).to_dict()
    data["backbone"]["weights"] = "/home/me/giant/model.safetensors.index.json"
    for task, head in tasks.items():
        data["tasks"][task]["head"] = head
    return Recipe.from_dict(data)


@pytest.mark.parametrize("name", ["nano", "mini"])
def test_what_names_the_package_stays_as_it_is(name: str) -> None:
    assert portable(load_recipe(name)) == load_recipe(name)
    assert portable_names(load_recipe(name)) == {}


def test_paths_become_names_that_tell_them_apart() -> None:
    made = recipe(cls="/a/head.pth", seg="/b/head.pth", dpt="C:\\x\\dpt.pth")
    assert portable_names(made) == {
        "/home/me/giant/model.safetensors.index.json": "root://giant/model.safetensors.index.json",
        "/a/head.pth": "root://a/head.pth",
        "/b/head.pth": "root://b/head.pth",
        "C:\\x\\dpt.pth": "root://dpt.pth",
    }
    told = json.dumps(portable(made).to_dict())
    assert "/home" not in told
    assert "C:" not in told
    assert portable(portable(made)) == portable(made)


def test_programs_and_roots_of_images_are_no_part_of_it() -> None:
    data = recipe().to_dict()
    seg = data["tasks"]["seg"]
    options = {"root": "/data/VOCdevkit", "list": "~/lists/mine.txt"}
    seg["source"] = {"kind": "voc2012", "seed": 0, "options": options}
    hm = seg["codecs"]["x265"] | {"options": {"encoder": "/opt/hm", "seconds_per_megasample": 9}}
    seg["codecs"] = {"hm": hm}
    made = portable(Recipe.from_dict(data)).tasks["seg"]
    assert made.source.options == {"root": "root://VOCdevkit", "list": "root://mine.txt"}
    assert made.codecs["hm"].options == {"seconds_per_megasample": 9}


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("/data/val", "root://val"),
        ("/data/val/a/b.txt", "root://val/a/b.txt"),
        ("/data/val.txt", "root://val.txt"),
        ("/data/kit/data/x.txt", "root://kit/data/x.txt"),
        ("/w/a/x.pth", "root://a/x.pth"),
        ("/w/a/y.txt", "root://a/y.txt"),
        ("/elsewhere", "/elsewhere"),
        ("package://cfqa_data/x", "package://cfqa_data/x"),
    ],
)
def test_what_lies_in_or_beside_a_named_place_is_named_by_it(uri: str, name: str) -> None:
    assert replace_path(uri, {"/data/val": "root://val", "/w/a/x.pth": "root://a/x.pth"}) == name


@each(
    ("text", "local"),
    [
        *((text, True) for text in ("/x", "~/x", "~me/x", "C:\\x", "d:/x", "\\\\host\\x")),
        *((text, True) for text in ("file:///x", "FILE:/x", "../x.pth", "./x", "..\\x")),
        *((text, False) for text in ("root://x", "package://cfqa_data/x", "x.pth", "medium")),
    ],
)
def test_paths_of_one_machine_are_known(text: str, local: bool) -> None:
    assert is_local(text) is local
    assert is_local_path(text) is local


@pytest.mark.parametrize("path", ["data/voc", "a\\b", "..", ".", "C:x"])
def test_a_path_is_more_than_a_name(path: str) -> None:
    assert is_local_path(path)


@each(
    ("key", "value", "file"),
    [
        *(("qpfile", value, True) for value in ("/tmp/q", "q", "../q")),
        *(("scaling-list", value, value == "x.txt") for value in ("off", "default", "x.txt")),
        *((key, "x", True) for key in ("scaling_list", "lambda-file", "RCStatsFile", "csv")),
        *((key, "x", True) for key in ("recon", "no-csv", "film-grain", "max-cll ", "unknown")),
        *(("csv", 7, True), ("aq-mode", "0:recon=x", True)),
        *(("aq-mode", value, "/" in value) for value in ("0", "0:lambda-file=/x", "d:/x")),
        *((*option, False) for option in (("sar", "16:11"), ("fps", "30000/1001"))),
        *((*option, False) for option in (("zones", "0,5,q=30/6,9,q=40"), ("deblock", "-1:-1"))),
    ],
)
def test_options_that_name_files_are_known(key: str, value: object, file: bool) -> None:
    ladder = recipe().tasks["cls"].codecs["x265"]
    told = local_options(replace(ladder, options={"preset": "slow", "parameters": {key: value}}))
    assert told == ([(f"options.parameters.{key}", str(value))] if file else [])
    assert not local_options(replace(ladder, codec="hm", options={"encoder": "/bin/hm"}))


def test_options_of_plugins_are_paths_where_they_are_annotated_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "separating.py").write_text(SEPARATING)
    data = recipe().to_dict()
    data["tasks"] = {"cls": data["tasks"]["cls"]}
    options = {"separator": "/", "book": "/home/me/book.txt"}
    codec = {"class": "separating:Joined", "levels": [1], "options": options}
    data["tasks"]["cls"]["codecs"] = {"joined": codec}
    source = {"labels": "coarse", "lexicon": "/home/me/words.txt"}
    data["tasks"]["cls"]["source"] = {"kind": "separating:Lines", "seed": 1, "options": source}
    made = Recipe.from_dict(data)
    assert {"/home/me/book.txt", "/home/me/words.txt"} < set(made.paths)
    assert not {"/", "coarse"} & set(made.paths)
    told = local_options(made.tasks["cls"].codecs["joined"])
    assert told == [("options.book", "/home/me/book.txt")]
    assert named_files(None, {"profile": "main", "qpfile": "q"}) == [("options.qpfile", "q")]


SEPARATING = """
from pathlib import Path
from cfqa_data.codecs.base import FeatureCodec
from cfqa_data.format.facts import Parameter

class Joined(FeatureCodec):
    name, title, parameter = "joined", "Joined", Parameter("k", "lower")

    def __init__(self, separator: str = "/", book: Path | None = None) -> None: ...
    def encode(self, feature, parameter): ...
    def decode(self, bitstream, shape): ...
    def version(self): return {}

class Lines:
    def __init__(self, task: str, seed: int, labels: str = "", lexicon: Path | None = None): ...
"""


def test_a_recipe_of_a_manifest_names_no_file_without_a_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = read_manifest(write_mock_dataset(tmp_path / "x", sources=1))
    data = copy.deepcopy(dict(manifest.recipe))
    recipe_of(replace(manifest, recipe=data))
    options = {"parameters": {"csv": "statistics"}}
    data["tasks"]["cls"]["codecs"]["x265"]["options"] = options
    told = r"^recipe: tasks\.cls\.codecs\.x265\.options\.parameters\.csv names a file, 'statistics'"
    with pytest.raises(FormatError, match=told):
        recipe_of(replace(manifest, recipe=data))
    data["tasks"]["cls"]["codecs"]["x265"]["options"] = {}
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "reading.py").write_text(SEPARATING)
    source = {"kind": "lines", "seed": 1, "options": {"lexicon": "words.txt"}}
    data["tasks"]["cls"]["source"] = source
    told = r"^recipe: tasks\.cls\.source\.options\.lexicon names a file, 'words.txt'"
    with pytest.raises(FormatError, match=told):
        recipe_of(replace(manifest, recipe=data), ["reading:Lines"])
    known = replace(manifest, recipe=data, weights={"words.txt": "0" * 64})
    recipe_of(known, ["reading:Lines"])


@pytest.mark.parametrize(
    "recipe", [{}, {"backbone": {}}, {"backbone": [], "tasks": {}}, {"tasks": {"one": "x"}}]
)
def test_a_recipe_that_is_none_is_told_of_in_one_line(tmp_path: Path, recipe: Any) -> None:
    folder = write_mock_dataset(tmp_path / "x", sources=1)
    manifest = replace(read_manifest(folder), recipe=recipe)
    with pytest.raises(FormatError, match=r"^recipe: .* recipe cannot rebuild this dataset$"):
        recipe_of(manifest)
    check_portable(folder, manifest)


def test_publishing_refuses_paths_of_one_machine(tmp_path: Path) -> None:
    made = recipe().to_dict()
    made["tasks"] = {"cls": made["tasks"]["cls"] | {"head": "head.pth"}}
    made["backbone"] |= {"weights": "root://w.pth", "origin": "/ in a text for people is no path"}
    sound = Recipe.from_dict(made)
    folder = write_mock_dataset(tmp_path / "x", sources=1, recipe=sound)
    check_portable(folder, read_manifest(folder))
    ladder = sound.tasks["cls"].codecs["x265"]
    options = replace(ladder, options={"parameters": {"qpfile": "/tmp/q"}})
    task = replace(sound.tasks["cls"], codecs={"x265": options})
    data = json.loads((folder / "manifest.json").read_text())
    for changed, told in [
        (sound.with_paths(lambda _: "~/w"), "names '~/w' (recipe.backbone.weights) and 1 more, "),
        (
            replace(sound, backbone=replace(sound.backbone, weights="file:///w")),
            "names 'file:///w' (recipe.backbone.weights), which is specific to one machine",
        ),
        (replace(sound, tasks={"cls": replace(task, head="D:/w")}), "names 'D:/w' (recipe.tasks."),
        (replace(sound, tasks={"cls": task}), "'/tmp/q' (recipe.tasks.cls.codecs.x265.options.par"),
        (replace(sound, tasks={"cls": replace(task, head="../w")}), "names '../w' (recipe.tasks."),
        (sound.with_paths(lambda _: "data/w"), "names 'data/w' (recipe.backbone.weights) and 1 "),
        (sound, "names '/home/me/x.pth' (weights), which "),
    ]:
        weights = {"/home/me/x.pth": "0" * 64} if changed is sound else {}
        text = json.dumps(data | {"recipe": changed.to_dict(), "weights": weights})
        (folder / "manifest.json").write_text(text)
        with pytest.raises(FormatError, match=re.escape(told)) as caught:
            plan_publishing(folder, "org/name")
        only_option = changed.tasks["cls"] == task
        remedy = "build it from a recipe without that option" if only_option else "import it again"
        assert remedy in str(caught.value)
