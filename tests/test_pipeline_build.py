"""Complete builds of three scenes: bytes, labels, and resuming after every kind of interruption."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cases import release
from pipeline_steps import Steps, kill_worker
from pipeline_toy import LAMBDAS, QPS, TEN_QPS, qp, toy_recipe, tree, write_models, write_networks

from cfqa_data import load
from cfqa_data.builders.pipeline import build, status
from cfqa_data.builders.pipeline.build import STAGES
from cfqa_data.builders.pipeline.context import Models
from cfqa_data.builders.pipeline.label import score
from cfqa_data.builders.pipeline.plan import Plan
from cfqa_data.format.format_1 import TASKS
from cfqa_data.format.manifest import hash_file, read_manifest
from cfqa_data.recipe.load import Recipe


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("networks")
    write_networks(folder)
    write_models(folder)
    return folder


CODECS = {
    "cls": ("x265", "hyperprior_multi_task"),
    "seg": ("x265", "vvenc"),
    "dpt": ("x265", "hyperprior_task_specific"),
}


@pytest.fixture(scope="module")
def every_codec(networks: Path) -> Recipe:
    """Return a recipe of all codecs; each except x265 is in one task."""
    models = str(networks / "models.safetensors")
    learned = {"parameter_name": "lambda", "levels": list(LAMBDAS), "models": models}
    entries = {
        "x265": TEN_QPS,
        "vvenc": qp(*range(15, 64, 5)),
        "hyperprior_multi_task": learned,
        "hyperprior_task_specific": learned,
    }
    data = toy_recipe(networks, entries).to_dict()
    for task, codecs in CODECS.items():
        data["tasks"][task]["codecs"] = {c: data["tasks"][task]["codecs"][c] for c in codecs}
    return Recipe.from_dict(data)


def of_task(recipe: Recipe, task: str) -> Recipe:
    """Return a recipe of one of the tasks."""
    return Recipe.from_dict(recipe.to_dict() | {"tasks": {task: recipe.tasks[task].to_dict()}})


def files_of(root: Path, task: str) -> dict[str, str]:
    """Return the hashes of the files that depend on one task only."""
    return {name: digest for name, digest in tree(root).items() if f"/{task}" in name}


@pytest.fixture(scope="module")
def full(every_codec: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    progress = Steps()
    out = build(every_codec, tmp_path_factory.mktemp("full"), workers=0, progress=progress)
    assert progress.stages == [
        ("select", 3, "tasks"),
        ("extract", 9, "sources"),
        ("prepare", 3, "tasks"),
        ("compress", 180, "features"),
        ("preview", 9, "sources"),
        ("pack", 6, "files"),
    ]
    return out


@pytest.fixture(scope="module")
def small(networks: Path) -> Recipe:
    """Return a recipe of one codec and two tasks, for tests with many builds."""
    whole = toy_recipe(networks, {"x265": QPS}, sources_per_task=2, group_size=1)
    tasks = {task: whole.tasks[task].to_dict() for task in ("cls", "dpt")}
    return Recipe.from_dict(whole.to_dict() | {"tasks": tasks})


@pytest.fixture(scope="module")
def small_folder(small: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(small, tmp_path_factory.mktemp("small"), workers=0)


@pytest.fixture(scope="module")
def small_tree(small_folder: Path) -> dict[str, str]:
    return tree(small_folder)


def test_a_build_has_every_file_and_no_other(full: Path, every_codec: Recipe) -> None:
    expected = {"README.md", "manifest.json", "previews/hero.webp"}
    expected |= {"labels/originals.parquet", "previews/originals.parquet"}
    for task in TASKS:
        expected |= {f"labels/{task}.parquet", f"truth/{task}.safetensors"}
        expected |= {f"originals/{task}-0000{g}-of-00002.safetensors" for g in range(2)}
        for codec in CODECS[task]:
            expected |= {f"bitstreams/{task}-{codec}-0000{g}-of-00002.safetensors" for g in (0, 1)}
            expected |= {f"compressed/{task}/{codec}.zarr/zarr.json"}
            expected |= {f"compressed/{task}/{codec}.zarr/c/{i}/0/0/0/0/0" for i in range(3)}
    assert set(tree(full)) == expected
    manifest = read_manifest(full)
    assert set(manifest.files) == expected - {"manifest.json"}
    assert {path: entry["sha256"] for path, entry in manifest.files.items()} == {
        path: digest for path, digest in tree(full).items() if path != "manifest.json"
    }


def test_a_dataset_says_nothing_of_its_makers_disk(full: Path, networks: Path) -> None:
    for name in ("manifest.json", "README.md"):
        assert str(networks.parent) not in (full / name).read_text()
    assert read_manifest(full).weights == {
        f"root://{name}.safetensors": hash_file(networks / f"{name}.safetensors")
        for name in ("backbone", "cls", "seg", "dpt", "models")
    }


def test_labels_are_what_the_stored_features_give(full: Path, every_codec: Recipe) -> None:
    models = Models(every_codec)
    for task in TASKS.values():
        data = load(full, task.name)
        rows = data.labels.to_pylist()
        keys = [(row["index"], row["level"]) for row in rows]
        assert len(rows) == 60
        assert keys == sorted(keys, key=lambda key: key[0])
        assert [row["level"] for row in rows[:20]] == [*range(10), *range(10)]
        for row, pair in list(zip(rows, data, strict=True))[::7]:
            x, y = pair.original.astype(np.float64), pair.compressed.astype(np.float64)
            bits = 8 * len(data.bitstream(row["source_id"], row["codec"], row["level"]))
            assert row["bits"] == bits
            assert row["bpfp"] == bits / x.size
            assert row["mse"] == pytest.approx(((x - y) ** 2).mean(), rel=1e-6)
            assert row["fold"] == row["index"] % 5
            truth, head = data.truth(row["source_id"]), models.task(task.name)
            for feature, prefix in ((pair.original, "reference_"), (pair.compressed, "")):
                scores, losses = score(head, feature[None], truth, "x")
                assert row[f"{prefix}score"] == scores[0]
                assert row[f"{prefix}loss"] == losses[0]
            harm = row["score"] - row["reference_score"]
            assert row["distortion"] == (harm if task.score.lower_better else -harm)


def test_cls_sources_are_of_different_classes_and_right(full: Path) -> None:
    data = load(full, "cls")
    assert {data.truth(source).shape for source in data.source_ids} == {()}
    assert len({int(data.truth(source)) for source in data.source_ids}) == 3
    assert set(data.labels["reference_score"].to_pylist()) == {1.0}


@pytest.mark.release
def test_workers_do_not_change_a_byte_even_when_one_is_killed(
    small: Recipe, small_tree: dict[str, str], tmp_path: Path
) -> None:
    out = build(small, tmp_path / "out", workers=2, progress=Steps(9, kill_worker))
    assert tree(out) == small_tree


def test_the_light_tier_reads_alike(full: Path, every_codec: Recipe, tmp_path: Path) -> None:
    light = build(of_task(every_codec, "dpt"), tmp_path / "light", workers=1, tier="light")
    assert not (light / "compressed").exists()
    assert files_of(light, "dpt") == {
        f: h for f, h in files_of(full, "dpt").items() if not f.startswith("compressed/")
    }
    for a, b in zip(load(full, "dpt")[::11], load(light)[::11], strict=True):
        np.testing.assert_array_equal(a.compressed, b.compressed)
        np.testing.assert_array_equal(a.original, b.original)
        assert a.label == b.label


@pytest.mark.parametrize("step", [10, *release(4, 14)])
def test_an_interrupted_build_goes_on(
    step: int, small: Recipe, small_tree: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        build(small, out, workers=0, progress=Steps(step, interrupt))
    assert status(small, out) == "begun"
    progress = Steps()
    build(small, out, workers=0, progress=progress)
    assert status(small, out) == "finished"
    assert tree(out) == small_tree
    if step == 10:
        assert [stage for stage, *_ in progress.stages] == ["compress", "preview", "pack"]


KILLED = """
import os, signal, sys
from pathlib import Path
from cfqa_data.builders.pipeline import build, compress
from cfqa_data.builders.pipeline.build import STAGES
from cfqa_data.builders.pipeline.plan import Plan
count = 0
def write_codes(*arguments, after=int(sys.argv[3])):
    global count
    count += 1
    if count == after:
        Path(sys.argv[2], "labels").mkdir()
        Path(sys.argv[2], "labels", "cls.parquet.1.partial").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)
    kept(*arguments)
kept, compress.write_codes = compress.write_codes, write_codes
build(Plan.from_json(Path(sys.argv[1]).read_text()).recipe, sys.argv[2], workers=0)
"""


@pytest.mark.release
def test_a_killed_build_goes_on(small: Recipe, small_tree: dict[str, str], tmp_path: Path) -> None:
    plan, out = tmp_path / "plan.json", tmp_path / "out"
    plan.write_text(Plan(small).to_json())
    killed = subprocess.run([sys.executable, "-c", KILLED, plan, out, "3"], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (out / ".build" / "lock").exists()
    assert len(list((out / ".build" / "rows").iterdir())) == 2
    build(small, out, workers=0)
    assert tree(out) == small_tree


def test_the_order_of_items_does_not_matter(
    small: Recipe, small_tree: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stage in STAGES:
        items = stage.items
        monkeypatch.setattr(stage, "items", lambda self, items=items: items(self)[::-1])
    assert tree(build(small, tmp_path, workers=0)) == small_tree


def test_a_finished_folder_has_nothing_to_do(small: Recipe, small_folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in small_folder.rglob("*")}
    progress = Steps()
    assert build(small, small_folder, workers=2, progress=progress) == small_folder
    assert progress.stages == []
    assert {path: path.stat().st_mtime_ns for path in small_folder.rglob("*")} == before
    (small_folder / ".build").mkdir()
    build(small, small_folder, workers=0)
    assert not (small_folder / ".build").exists()
