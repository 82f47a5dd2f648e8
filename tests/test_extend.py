"""Labels of user-made reconstructions, and datasets extended by a codec."""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch
import torch
from datasets import load_dataset
from pipeline_toy import qp, toy_recipe, tree, write_networks
from safetensors.numpy import load_file, save_file

import cfqa_data
from cfqa_data import CfqaError, extend, label, load
from cfqa_data.access.folder import Folder
from cfqa_data.builders.extending import extension as extension_module
from cfqa_data.builders.extending.files import label_files
from cfqa_data.builders.maintenance.deep_verify import verify_deep
from cfqa_data.builders.pipeline import build
from cfqa_data.builders.pipeline.label import baseline_values
from cfqa_data.cli import main
from cfqa_data.codecs import get_codec
from cfqa_data.format.manifest import hash_file
from cfqa_data.format.resources import resolve
from cfqa_data.integrity.consistency import inconsistencies
from cfqa_data.integrity.verify import verify
from cfqa_data.processes.executor import Executor
from cfqa_data.recipe.load import Recipe
from cfqa_data.testing.mock import Rounded

ROUNDED = "cfqa_data.testing.mock:Rounded"
KEYS = ("task", "source_id", "codec", "level")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("networks")
    write_networks(folder)
    whole = toy_recipe(folder, {"x265": qp(20, 45)})
    tasks = {task: whole.tasks[task].to_dict() for task in ("cls", "dpt")}
    return build(
        Recipe.from_dict(whole.to_dict() | {"tasks": tasks}),
        tmp_path_factory.mktemp("data") / "toy",
        workers=0,
    )


@pytest.fixture(scope="module")
def extended(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return extend(built, ROUNDED, (2, 0), out=tmp_path_factory.mktemp("ext") / "new", workers=0)


def rows(path: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    return {tuple(row[key] for key in KEYS): row for row in load(path).labels.to_pylist()}


# Labels.


def test_stored_features_get_their_stored_labels(built: Path) -> None:
    dataset = load(built)
    for row in dataset.labels.to_pylist():
        found = label(
            dataset, row["source_id"], dataset.compressed(*(row[key] for key in KEYS[1:]))
        )
        assert found == tuple(row[key] for key in ("score", "distortion", "loss"))
        original = label(dataset, row["source_id"], dataset.original(row["source_id"]))
        assert original == (row["reference_score"], 0, row["reference_loss"])


def test_a_batch_is_its_features(built: Path) -> None:
    dataset = load(built)
    source = dataset.source_ids[-1]
    batch = np.stack([dataset.original(source) * factor for factor in (1, 0.5, -1)])
    half = torch.from_numpy(batch).bfloat16()
    assert label(dataset, source, half)[0].tolist() == [
        label(dataset, source, one.float()).score for one in half
    ]
    found = label(dataset, source, torch.from_numpy(batch.astype(np.float16)))
    singly = [label(dataset, source, one.astype(np.float16)) for one in batch]
    for name in ("score", "distortion", "loss"):
        values = [getattr(one, name) for one in singly]
        assert getattr(found, name) == pytest.approx(values, rel=1e-6)
    assert found.score.shape == (3,)
    assert found.score.dtype == np.float64


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda x: x[0], r"is float32 \(1, 65, 48\), not \(1, 1, 65, 48\) or a batch"),
        (lambda x: x.astype(complex), "is complex128"),
        (lambda x: x * np.nan, "reconstruction 0 of 'scene.* has values that are not finite"),
        (lambda x: x[:, :, :64], r"\(1, 1, 64, 48\)"),
        (lambda x: x[None][:0], r"\(0, 1, 1, 65, 48\)"),
        (lambda x: x.astype(float) * 1e300, "values that are not finite"),
        (lambda x: [x.tolist(), [1]], r"is not an array of shape \(1, 1, 65, 48\)"),
    ],
)
def test_what_is_no_reconstruction(built: Path, change: Any, why: str) -> None:
    dataset = load(built, "cls")
    with pytest.raises(CfqaError, match=why):
        label(dataset, dataset.source_ids[0], change(dataset.original(dataset.source_ids[0])))


def test_what_cannot_be_scored(built: Path) -> None:
    x = np.zeros((2, 3, 4), np.float32)
    arrays = cfqa_data.from_arrays(x, {"half": {1: x}}, distortion={"half": {1: [0, 0]}})
    with pytest.raises(CfqaError, match="memory: features of features cannot be scored"):
        label(arrays, "0", x[:1, None])
    with pytest.raises(CfqaError, match="source 'nobody'"):
        label(built, "nobody", x)


def test_a_batch_in_a_file_is_read_in_parts(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = load(built)
    first, *_, last = dataset.source_ids
    batches = [
        dataset.original(source) * np.linspace(1, 0.1, 5, dtype=np.float32).reshape(-1, 1, 1, 1, 1)
        for source in (first, last)
    ]
    np.save(tmp_path / f"{first}.npy", np.asfortranarray(batches[0]))
    stored = {last: torch.from_numpy(batches[1]).bfloat16()}
    safetensors.torch.save_file(stored, tmp_path / "more.safetensors")
    whole = label_files(dataset, tmp_path)
    seen: list[int] = []
    points = 2 * batches[0][0].size

    def watched(original: np.ndarray, part: np.ndarray) -> dict[str, np.ndarray]:
        seen.append(len(part))
        return baseline_values(original, part)

    monkeypatch.setattr("cfqa_data.builders.pipeline.label.BATCH_POINTS", points)
    monkeypatch.setattr("cfqa_data.builders.extending.files.baseline_values", watched)
    again = label_files(dataset, tmp_path)
    assert again["version"].to_pylist() == [*range(5)] * 2
    for name in ("score", "distortion", "loss", "mse", "cosine", "cka"):
        assert again[name].to_pylist() == pytest.approx(whole[name].to_pylist(), rel=1e-6)
    assert max(seen) == 2
    found = label(dataset, last, stored[last])
    assert whole["score"].to_pylist()[5:] == found.score.tolist()


def test_the_command_labels_files(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = load(built)
    first, *_, last = dataset.source_ids
    folder = tmp_path / "mine"
    folder.mkdir()
    np.save(folder / f"{first}.npy", np.stack([dataset.original(first)] * 2))
    save_file({last: dataset.compressed(last, "x265", 1)}, folder / "more.safetensors")
    assert main(["label", str(built), str(folder), "--out", str(tmp_path / "labels.parquet")]) == 0
    assert first in capsys.readouterr().out
    assert main(["label", str(built), str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["labels"]
    assert [(row["source_id"], row["version"]) for row in found] == [
        (first, 0),
        (first, 1),
        (last, 0),
    ]
    stored = rows(built)["dpt", last, "x265", 1]
    assert {k: found[2][k] for k in ("score", "distortion", "loss", "mse", "cosine", "cka")} == {
        k: pytest.approx(stored[k], rel=1e-9)
        for k in ("score", "distortion", "loss", "mse", "cosine", "cka")
    }
    for name, array, why in (
        ("nobody.npy", np.zeros(3), "source 'nobody'"),
        (f"{last}.npy", np.zeros(3), "is in"),
        (f"{dataset.source_ids[1]}.npy", np.zeros(3), "is float64 (3,)"),
    ):
        np.save(folder / name, array)
        assert main(["label", str(built), str(folder)]) == 2
        message = capsys.readouterr().err.splitlines()[-1]
        assert name in message
        assert why in message
        (folder / name).unlink()
    for name, data in (("empty", b""), ("zip", b"PK\x03\x04"), ("pickle", pickle.dumps([1]))):
        path = folder / f"{dataset.source_ids[1]}.npy"
        path.write_bytes(data)
        assert main(["label", str(built), str(folder)]) == 2, name
        assert path.name in capsys.readouterr().err.splitlines()[-1]
        path.unlink()
    np.save(folder / f"{dataset.source_ids[1]}.npy", np.array([{}]), allow_pickle=True)
    assert main(["label", str(built), str(folder)]) == 2
    assert "Python objects" in capsys.readouterr().err
    assert main(["label", str(built), str(tmp_path / "nowhere")]) == 2
    assert "nowhere: does not exist" in capsys.readouterr().err
    (folder / f"{dataset.source_ids[1]}.npy").unlink()
    (folder / "bad.safetensors").write_bytes(b"none")
    assert main(["label", str(built), str(folder)]) == 2
    assert "bad.safetensors: cannot be read" in capsys.readouterr().err


# Extensions.


def test_what_was_there_is_there_and_nothing_was_computed_again(
    built: Path, extended: Path
) -> None:
    old, new = load(built).manifest, load(extended).manifest
    kept = [name for name in old.files if not name.startswith(("labels/", "previews/", "README"))]
    for name in kept:
        assert (built / name).stat().st_ino == (extended / name).stat().st_ino
    assert not any(path.is_symlink() for path in extended.rglob("*"))
    assert inconsistencies(extended, new, set()) == []
    drawn = [Folder(folder).read_pictures() for folder in (built, extended)]
    assert drawn[0].equals(drawn[1])
    pictures = load_dataset(str(extended), "originals", streaming=True)["test"]
    assert [row["tokens"] for row in pictures] == [65] * 6
    before, after = rows(built), rows(extended)
    for key, row in before.items():
        assert {name: after[key][name] for name in row} == row
    added = after.keys() - before.keys()
    assert {key[2] for key in added} == {"rounded"}
    assert len(added) == 2 * 3 * 2
    assert [list(entry.codecs) for entry in new.tasks.values()] == [["x265", "rounded"]] * 2
    assert new.name == "toy-rounded"
    digest = hash_file(built / "manifest.json")
    assert new.versions["extended dataset"] == f"toy (manifest.json of SHA-256 {digest}) by rounded"
    assert new.versions["rounded rounded"] == "1"
    for recipe in (old.recipe, new.recipe):
        assert new.recipe["backbone"] == recipe["backbone"]
        assert [spec["head"] for spec in recipe["tasks"].values()] == [
            "root://cls.safetensors",
            "root://dpt.safetensors",
        ]
    assert list(new.packages) == ["cfqa-data"]


def test_new_rows_are_what_the_heads_say_of_the_new_features(extended: Path) -> None:
    assert not verify(extended).faults
    dataset = load(extended, codec="rounded", plugins=[ROUNDED])
    for pair in dataset:
        assert np.array_equal(pair.compressed, pair.original.round(int(pair.label["parameter"])))
        found = label(dataset, pair.label["source_id"], pair.compressed)
        assert found == tuple(pair.label[key] for key in ("score", "distortion", "loss"))
    deep = verify_deep(extended, dataset.manifest, set(), plugins=[ROUNDED])
    assert (deep.faults, deep.scored) == ((), 24)


def test_an_extension_of_another_dataset_is_not_gone_on_with(
    built: Path, extended: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(built, tmp_path / "other")
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["versions"]["more"] = "1"
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CfqaError, match="contains an extension of another dataset"):
        extend(other, ROUNDED, (2, 0), out=extended, workers=0, accept_versions=True)


class Crooked(Rounded):
    """A codec whose decoder returns another feature."""

    def decode(self, bitstream: Any, shape: tuple[int, ...]) -> np.ndarray:
        return super().decode(bitstream, shape)[..., :-1]


class Failing(Rounded):
    """A codec that raises an error at low levels."""

    def encode(self, feature: np.ndarray, parameter: float) -> bytes:
        return super().encode(feature, 1 / parameter)


@pytest.mark.parametrize(
    ("codec", "why"),
    [("Crooked", r"rounded decodes to for scene.* is float32"), ("Failing", "ZeroDivisionError")],
)
def test_a_codec_that_fails_is_told_before_anything_is_written(
    built: Path, tmp_path: Path, codec: str, why: str
) -> None:
    with pytest.raises(CfqaError, match=why):
        extend(built, f"{__name__}:{codec}", (2, 0), out=tmp_path / "new", workers=0)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_extension_goes_on(built: Path, extended: Path, tmp_path: Path) -> None:
    class Stop:
        def __init__(self) -> None:
            self.steps = 0

        def start(self, stage: str, total: int, unit: str) -> None: ...
        def finish(self) -> None: ...
        def advance(self, n: int = 1) -> None:
            self.steps += 1
            if self.steps == 9:
                raise KeyboardInterrupt

    out = tmp_path / "new"
    with pytest.raises(KeyboardInterrupt):
        extend(built, ROUNDED, (2, 0), out=out, workers=0, progress=Stop())
    assert not (out / "manifest.json").exists()
    with pytest.raises(CfqaError, match="an unfinished build"):
        extend(built, ROUNDED, np.array([3, 0]), out=out, workers=0)
    linked = next((out / "originals").iterdir())  # as if a power cut had taken it
    linked.unlink()
    before = tree(built)
    assert tree(extend(built, ROUNDED, (2, 0), out=out, workers=0)) == tree(extended)
    assert tree(extend(built, ROUNDED, (2, 0), out=out, workers=0)) == tree(extended)
    assert tree(built) == before


def test_a_codec_on_planes_takes_the_quantiser_over_and_one_task_may_get_it(
    extended: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--name", "coarse", "--task", "dpt", "--levels", "30,50", "--plugin", ROUNDED]
    out = tmp_path / "again"
    assert (
        main(["extend", str(extended), "--codec", "x265", *words, "--out", str(out), "-j", "1"])
        == 0
    )
    assert "coarse (2 levels)" in capsys.readouterr().out
    manifest = load(out).manifest
    assert manifest.versions["extended dataset"].count("SHA-256") == 2
    tasks = manifest.tasks
    assert list(tasks["cls"].codecs) == ["x265", "rounded"]
    assert set(tasks["dpt"].codecs) == {"x265", "rounded", "coarse"}
    assert tasks["dpt"].codecs["coarse"].quantizer == tasks["dpt"].codecs["x265"].quantizer
    assert not verify(out).faults


def test_a_fitted_codec_of_this_package_brings_its_tables(built: Path, tmp_path: Path) -> None:
    options = {"values": "int8"}
    out = tmp_path / "new"
    extend(built, "lowrank", (6, 2), out=out, tasks=["cls"], options=options, workers=0)
    dataset = load(out, codec="lowrank")
    entry = dataset.manifest.tasks["cls"].codecs["lowrank"]
    assert (dataset.manifest.format, entry.tables) == (2, ("cls-lowrank.safetensors",))
    codec = get_codec("lowrank", tables=load_file(out / "tables" / entry.tables[0]), **options)
    for pair in dataset:
        key = tuple(pair.label[key] for key in KEYS[1:])
        decoded = codec.decode(dataset.bitstream(*key), pair.original.shape)
        assert np.array_equal(decoded, pair.compressed)
        tokens = pair.original.size // pair.original.shape[-1]
        assert pair.label["bits"] == 16 + tokens * (32 + 8 * pair.label["parameter"])
    assert not verify_deep(out, dataset.manifest, set()).faults


def test_where_no_links_are_possible_files_are_copied(
    built: Path, extended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refused)
    out = extend(built, ROUNDED, (2, 0), out=tmp_path / "new", workers=0)
    assert tree(out) == tree(extended)
    assert all(path.stat().st_nlink == 1 for path in out.rglob("*") if path.is_file())


def test_weights_that_a_package_brings_are_in_the_manifest(built: Path, tmp_path: Path) -> None:
    quantizer = {"kind": "uniform", "bits": 8, "lo": [-9.0], "hi": [9.0]}
    how: dict[str, Any] = {"tasks": ["cls"], "quantizer": quantizer, "workers": 0}
    out = extend(built, "hyperprior_multi_task", (0.03, 0.0005), out=tmp_path / "new", **how)
    weights = load(out).manifest.weights
    (uri,) = (name for name in weights if "hyperprior" in name)
    assert uri.startswith("package://cfqa_data.codecs/weights/")
    assert weights[uri] == hash_file(resolve(uri))


def test_a_fitted_codec_asks_for_its_images_before_anything_is_written(
    built: Path, tmp_path: Path
) -> None:
    lacks = shutil.copytree(built, tmp_path / "lacks")
    manifest = json.loads((lacks / "manifest.json").read_text())
    images = {"kind": "image_folder", "seed": 0, "options": {"root": str(tmp_path / "nowhere")}}
    manifest["recipe"]["tasks"]["cls"]["source"] = images
    (lacks / "manifest.json").write_text(json.dumps(manifest))
    for codec, levels in (("lowrank", (6, 2)), ("int", "auto")):
        with pytest.raises(CfqaError, match="nowhere"):
            extend(lacks, codec, levels, out=tmp_path / "new", tasks=["cls"], workers=0)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--codec", "h264", "--levels", "1"], "'h264'"),
        (["--codec", "x265", "--levels", "30"], "has a codec 'x265'; give another name"),
        (["--codec", "x265", "--levels", "99", "--name", "b"], "qp must be a whole number"),
        (["--codec", "x265", "--levels", "30,20", "--name", "b"], "qp must rise"),
        (["--codec", "x265", "--levels", "a"], "'a' is not a number"),
        (["--codec", ROUNDED, "--levels", "2", "--task", "seg"], "task 'seg'"),
        (["--codec", ROUNDED, "--levels", "2", "--option", "x"], "'x' is not KEY=VALUE"),
        (["--codec", ROUNDED, "--levels", "2", "--option", "x=1"], "x"),
        (["--codec", ROUNDED, "--levels", "2", "--quantizer", "{"], "--quantizer"),
        (["--codec", ROUNDED, "--levels", "2", "--out", "{data}/inside"], "or lies in it"),
    ],
)
def test_bad_requests_are_one_line_and_write_nothing(
    built: Path, tmp_path: Path, words: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.replace("{data}", str(built)) for word in words]
    out = [] if "--out" in words else ["--out", str(tmp_path / "out")]
    before = tree(built)
    assert main(["extend", str(built), *words, *out]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert why in line
    assert not list(tmp_path.iterdir())
    assert tree(built) == before


def test_a_damaged_dataset_and_one_of_arrays_are_not_extended(built: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(built, tmp_path / "damaged")
    (damaged / "labels" / "cls.parquet").unlink()
    with pytest.raises(CfqaError, match=r"labels/cls\.parquet .*: repair the dataset first"):
        extend(damaged, ROUNDED, (2, 0), out=tmp_path / "new")
    x = np.ones((2, 3, 4), np.float32)
    arrays = cfqa_data.from_arrays(x, {"half": {1: x}}, distortion={"half": {1: [0, 0]}})
    saved = cfqa_data.save(arrays, tmp_path / "saved", licence="cc0-1.0")
    with pytest.raises(CfqaError, match="cannot be extended"):
        extend(saved, ROUNDED, (2, 0), out=tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert isinstance(load(saved).labels, pa.Table)


def test_the_page_on_own_codecs_works(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = Path(__file__).parents[1] / "docs" / "own-codec.md"
    blocks = re.findall(r"^```python[^\n]*\n(.*?)^```$", page.read_text(), re.M | re.S)
    codec, extension, labels = blocks
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mycodec.py").write_text(codec)
    shutil.copytree(built, "cfqa")
    monkeypatch.setattr(extension_module, "Executor", lambda _: Executor())
    exec(extension, {})
    dataset = load("mine", codec="int_tokens", plugins=["mycodec:Int"])
    steps = {2: 0.5, 8: 0.004}  # half of the distance between neighbouring codes, of the largest
    for pair in dataset:
        if step := steps.get(int(pair.label["parameter"])):
            largest = np.abs(pair.original).max(axis=-1, keepdims=True)
            assert (np.abs(pair.compressed - pair.original) <= (step + 1e-3) * largest).all()
        stream = dataset.bitstream(*(pair.label[key] for key in KEYS[1:]))
        tokens, points = pair.original.size // pair.original.shape[-1], pair.original.size
        assert len(stream) == 2 * tokens + -(-points * int(pair.label["parameter"]) // 8)
    exec(labels, {})
    assert "Label(score=" in capsys.readouterr().out
