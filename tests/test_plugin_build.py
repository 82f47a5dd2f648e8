"""A dataset of user-defined classes is built, opened, summarised and repaired."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pipeline_toy import tree, write_toml

import cfqa_data
from cfqa_data.builders.maintenance.deep_verify import verify_deep
from cfqa_data.builders.maintenance.repair import repair
from cfqa_data.builders.pipeline import build
from cfqa_data.builders.pipeline.check import packages_of
from cfqa_data.builders.pipeline.plan import Item
from cfqa_data.builders.pipeline.select import Select
from cfqa_data.cli import main
from cfqa_data.codecs import CODECS
from cfqa_data.errors import BuildError, CfqaError
from cfqa_data.format.facts import Score, TaskFacts
from cfqa_data.format.layout import Layout
from cfqa_data.format.manifest import read_manifest
from cfqa_data.format.schema import label_rows
from cfqa_data.integrity.consistency import inconsistencies
from cfqa_data.integrity.summary import build_text, summarise
from cfqa_data.integrity.verify import verify
from cfqa_data.recipe.load import Recipe
from cfqa_data.registry import RegistryEntry

HERE = "plugin_words"
PLUGINS = tuple(
    f"{HERE}:{name}" for name in ("Lines", "Bag", "Length", "Shift", "Round", "Drop", "Vowels")
)
UNIFORM = {"kind": "uniform", "bits": 8, "lo": [0.0, 4.0], "hi": [1.5, 6.0]}


def recipe(**changes: Any) -> Recipe:
    codecs = {
        "shift": {"class": f"{HERE}:Shift", "levels": [0, 2, 5], "quantizer": UNIFORM},
        "round": {"class": f"{HERE}:Round", "levels": [2, 0.5]},
        "drop": {"class": f"{HERE}:Drop", "levels": [1]},
        "letters": {"class": f"{HERE}:Vowels", "levels": [3, 1], "parameter_name": "letters"},
    }
    words = {
        "class": f"{HERE}:Length",
        "options": {"least": 2},
        "source": {"kind": f"{HERE}:Lines", "seed": 3},
        "blocks": [0, 4],
        "codecs": codecs,
    }
    one = {
        "class": f"{HERE}:Length",
        "sources": 3,
        "source": {"kind": f"{HERE}:Lines", "seed": 4, "options": {"single": True}},
        "blocks": [0, 1, 2],
        "codecs": {"round": codecs["round"]},
    }
    data = {
        "name": "words",
        "summary": "lines of words",
        "sources_per_task": 5,
        "group_size": 2,
        "backbone": {"class": f"{HERE}:Bag", "options": {"scale": 0.5}},
        "tasks": {"words": words, "one": one},
    }
    return Recipe.from_dict(data | changes)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(recipe(), tmp_path_factory.mktemp("words") / "cfqa", workers=1)


def test_the_manifest_tells_it_without_naming_code(built: Path) -> None:
    manifest = read_manifest(built)
    assert manifest.format == 2
    assert HERE + ":" not in (built / "manifest.json").read_text()
    words, one = manifest.tasks["words"], manifest.tasks["one"]
    assert list(manifest.tasks) == ["words", "one"]
    assert (words.varying_tokens, words.shape[3], len(words.sources)) == (True, 6, 5)
    assert (one.shape, one.varying_tokens, len(one.sources), one.grid) == (
        (1, 3, 1, 6),
        False,
        3,
        None,
    )
    assert words.groups == tuple(f"page {int(s[-2:]) // 2}" for s in words.sources)
    assert one.groups is None
    assert list(words.codecs) == ["shift", "round", "drop", "letters"]
    origin = words.codecs["letters"].origin
    assert origin is not None
    assert (origin.name, origin.package) == ("letters", HERE)
    assert manifest.packages == {HERE: {"version": "", "sha256": origin.sha256}}
    assert words.codecs["round"].tables == ("words-round.safetensors",)
    assert manifest.recipe["backbone"]["class"] == "bag"


def test_rows_say_what_is_known(built: Path) -> None:
    rows = pq.read_table(built / "labels/words.parquet").to_pylist()
    assert len(rows) == 5 * (3 + 2 + 1 + 2)
    for row in rows:
        points = 2 * row["tokens"] * 6
        assert row["loss"] is row["reference_loss"] is None
        assert np.isfinite([row["score"], row["distortion"], row["mse"], row["cka"]]).all()
        assert row["bits"] == {"round": 7 * points, "drop": None}.get(row["codec"], row["bits"])
        if row["bits"] is not None:
            assert row["bpfp"] == row["bits"] / points
    folds = {row["group"]: row["fold"] for row in rows}
    assert len(folds) == len(set(folds.values())) < 5
    assert {row["fold"] for row in rows} == set(folds.values())
    (single, *_) = pq.read_table(built / "labels/one.parquet").to_pylist()
    assert (single["tokens"], single["cka"], single["group"]) == (1, None, single["source_id"])


def test_two_workers_give_the_same_bytes(built: Path, tmp_path: Path) -> None:
    assert tree(build(recipe(), tmp_path / "two", workers=2)) == tree(built)


def test_it_opens_and_its_light_folder_decodes_by_the_plugins(built: Path, tmp_path: Path) -> None:
    light = build(recipe(), tmp_path / "light", workers=1, tier="light")
    arrays = sorted(path.name for path in (light / "compressed/words").iterdir())
    assert arrays == ["letters.zarr"]
    whole, parts = cfqa_data.load(built, "words"), cfqa_data.load(light, "words", plugins=PLUGINS)
    assert len(whole) == len(parts) == 40
    for one, other in zip(whole, parts, strict=True):
        assert one.compressed.tobytes() == other.compressed.tobytes()
        assert one.compressed.shape == one.original.shape
    told = build_text(summarise(light), light, ["plugin_words:Round"])
    assert f"cfqa eval {light} --plugin plugin_words:Round" in told
    assert "plugins=['\"'\"'plugin_words:Round'\"'\"']" in told
    every = "codec 'shift' of 'plugin_words', 'round' of 'plugin_words', 'drop' of 'plugin_words';"
    with pytest.raises(CfqaError, match=f"not installed: {every} .* --plugin"):
        cfqa_data.load(light, "words", codec="round")[0]


def test_it_is_verified_and_every_file_is_made_again(built: Path, tmp_path: Path) -> None:
    import shutil

    assert verify(built).damage == ()
    told = verify_deep(built, read_manifest(built), set(), sample=50, plugins=PLUGINS)
    assert told.faults == ()
    assert (told.decoded, told.compared) == (5 * 6 + 3 * 2, 5 * 6 + 3 * 2)
    assert (told.labelled, told.scored) == (46, 46)
    folder = shutil.copytree(built, tmp_path / "cfqa")
    names = [name for name in tree(folder) if name != "manifest.json"]
    for name in names:
        (folder / name).write_bytes(b"damaged")
    mended = repair(folder, workers=1, plugins=PLUGINS)
    assert mended.failed == ()
    assert tree(folder) == tree(built)
    (folder / names[-1]).unlink()
    with pytest.raises(CfqaError, match=r"unknown .*; install plugin_words, or name its classes"):
        repair(folder, workers=1)


def test_without_its_classes_the_rest_is_verified(built: Path) -> None:
    told = verify_deep(built, read_manifest(built), set(), sample=9)
    assert (told.faults, told.decoded, told.labelled, told.scored) == ((), 0, 9, 0)
    (scores,) = (note for note in told.notes if note.startswith("scores were not recomputed"))
    assert scores.endswith("; install plugin_words, or name its classes by --plugin module:Class")
    without_bag = [plugin for plugin in PLUGINS if not plugin.endswith("Bag")]
    told = verify_deep(built, read_manifest(built), set(), sample=9, plugins=without_bag)
    assert (told.faults, told.decoded, told.scored) == ((), 36, 0)
    assert any("unknown backbone 'bag'" in note and "--plugin" in note for note in told.notes)


def test_classes_of_a_recipe_are_found_where_a_command_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = Path(__file__).with_name(f"{HERE}.py")
    (tmp_path / "words_here.py").write_text(module.read_text())
    text = write_toml(recipe(), tmp_path / "words.toml").read_text()
    (tmp_path / "words.toml").write_text(text.replace(f"{HERE}:", "words_here:"))
    monkeypatch.setattr("sys.path", list(sys.path))
    command = ["build", str(tmp_path / "words.toml"), "--dry-run"]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(command) == 2
    told = capsys.readouterr().err
    assert f"no module 'words_here' in {tmp_path / 'elsewhere'}, " in told
    monkeypatch.chdir(tmp_path)
    assert main(command) == 0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"backbone": {"class": f"{HERE}:Ragged"}},
            r"same \(T, D\), not \(\d, 6\), \(\d, 10\)",
        ),
        (
            {"backbone": {"class": f"{HERE}:Infinite"}},
            "has values that are not finite",
        ),
        ({"backbone": {"class": f"{HERE}:Bag", "options": {"scales": 1}}}, "did you mean 'scale'"),
        ({"backbone": {"class": f"{HERE}:Length"}}, "is not a Backbone"),
        ({"task": {"class": f"{HERE}:Undecided"}}, r"the original words-\d\d: score \[nan\]"),
        ({"task": {"class": f"{HERE}:Refusing", "options": {}}}, "not today"),
        (
            {"task": {"class": f"{HERE}:Searching"}},
            r"'keys' of the gallery is float64 \(2,\), not f",
        ),
        (
            {"task": {"options": {"least": 9}}},
            r"only 0 samples of the source are accepted, 5 are needed",
        ),
        ({"task": {"source": {"kind": "lines", "seed": 0}}}, "unknown source 'lines'"),
    ],
)
def test_what_does_not_fit_is_one_line(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    data = json.loads(json.dumps(recipe().to_dict()))
    data["tasks"]["words"] |= change.pop("task", {})
    with pytest.raises(BuildError, match=told) as error:
        build(Recipe.from_dict(data | change), tmp_path / "out", workers=1)
    assert "\n" not in str(error.value)


def test_a_finished_folder_stays_and_is_of_one_source_and_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lexicon.txt").write_text("a few words")
    data = recipe().to_dict()
    data["tasks"] = {"one": data["tasks"]["one"]}
    options = {"single": True, "lexicon": str(tmp_path / "lexicon.txt")}
    data["tasks"]["one"]["source"]["options"] = options
    made = Recipe.from_dict(data)
    out = build(made, tmp_path / "out", workers=1)
    assert set(read_manifest(out).weights) == {"root://lexicon.txt", "tasks.one.source"}
    assert str(tmp_path) not in (out / "manifest.json").read_text()
    before = tree(out)
    assert tree(build(made, out, workers=1)) == before
    monkeypatch.setenv("CFQA_ROOT", str(tmp_path))
    (truth,) = (out / "truth").iterdir()
    truth.write_bytes(b"damaged")
    assert repair(out, workers=1, plugins=PLUGINS).failed == ()
    assert tree(out) == before
    with monkeypatch.context() as patch:
        patch.setattr("cfqa_data.builders.pipeline.workspace.packages_of", lambda _: {})
        with pytest.raises(BuildError, match=rf"other packages \({HERE}: "):
            build(made, out, workers=1)
    (tmp_path / "lexicon.txt").write_text("other words")
    with pytest.raises(BuildError, match=r"other weights or lists \(root://lexicon.txt\)"):
        build(made, out, workers=1)
    assert tree(out) == before


def test_a_name_that_begins_another_is_not_taken_for_it(tmp_path: Path) -> None:
    data = recipe().to_dict()
    one = data["tasks"]["one"]
    codecs = dict.fromkeys(("round", "round-2"), one["codecs"]["round"])
    data["tasks"] = {"t": one | {"codecs": codecs}, "t-2": one | {"codecs": codecs}}
    for number, task in enumerate(data["tasks"].values()):
        task["source"] = task["source"] | {"seed": 4 + number}
    folder = build(Recipe.from_dict(data), tmp_path / "cfqa", workers=1)
    manifest = read_manifest(folder)
    assert inconsistencies(folder, manifest, set()) == []
    streams = {f"bitstreams/t-round-2-0000{n}-of-00002.safetensors" for n in range(2)}
    damaged = streams | {"originals/t-2-00000-of-00002.safetensors"}
    told = verify_deep(folder, manifest, damaged, plugins=PLUGINS)
    assert told.notes == ("t, round-2: not decoded: bitstreams are damaged",)
    assert told.labelled == 3 * 2 * 2


def test_labels_are_null_where_a_metric_is_not_defined(built: Path) -> None:
    entry = read_manifest(built).tasks["words"]
    facts = SimpleNamespace(parameter=SimpleNamespace(name="step"))
    spec: Any = SimpleNamespace(name="round", facts=facts, levels=(1, 2))
    values = dict.fromkeys(("score", "mse", "cosine", "loss"), np.array([0.5, 0.25]))
    values["cka"] = np.array([0.75, np.nan])
    rows = label_rows(entry, spec, {"tokens": 3, "reference_score": 1.0}, [8, None], values)
    assert [row["cka"] for row in rows] == [0.75, None]
    assert [row["loss"] for row in rows] == [None, None]


def test_a_source_without_group_does_not_join_one(tmp_path: Path) -> None:
    facts = TaskFacts("words", "words", Score("rank", lower_better=True))
    models = SimpleNamespace(facts=lambda _: facts)
    context: Any = SimpleNamespace(models=models, layout=Layout(tmp_path))
    item = Item("select", "words")
    Select(context).write(item, {"a": ("g", None), "b": (None, None)})
    with pytest.raises(BuildError, match="words: source 'g' has no group, and its id is the group"):
        Select(context).write(item, {"a": ("g", None), "g": (None, None)})


def test_every_module_of_a_package_counts() -> None:
    def hashed(*hashes: str) -> str:
        entries = [RegistryEntry(sha256, None, "their", "1", sha256) for sha256 in hashes]
        models: Any = SimpleNamespace(classes=lambda: [(CODECS, entry) for entry in entries])
        return packages_of(models)["their"]["sha256"]

    assert hashed("a", "a") == "a"
    assert hashed("a", "b") == hashed("b", "a", "b") != hashed("a", "c")


def test_a_build_goes_on_with_the_same_source_only(tmp_path: Path) -> None:
    from cfqa_data.builders.pipeline.check import make_plan
    from cfqa_data.builders.pipeline.workspace import open_workspace

    plan = make_plan(recipe(), "full")
    open_workspace(plan, tmp_path)
    (tmp_path / "truth").mkdir()
    other = replace(plan, packages={HERE: {"version": "", "sha256": "0" * 64}})
    with pytest.raises(BuildError, match=rf"begun with different packages \({HERE}: "):
        open_workspace(other, tmp_path)
