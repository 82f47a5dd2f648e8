"""The recipe that ships, built with the weights that ship: what a newcomer gets.

Of one source per task here, and only cls by every codec; as it ships before a release
(`.ci/release`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import load_dataset
from pipeline_toy import write_toml

from cfqa_data import evaluate, load
from cfqa_data.builders.pipeline.context import Models
from cfqa_data.builders.tasks.drawing import draw_mask
from cfqa_data.cli import main
from cfqa_data.codecs import get_codec
from cfqa_data.format.format_1 import LEVELS, TASKS
from cfqa_data.format.packing import plane_shape, unpack
from cfqa_data.recipe.load import Recipe, load_recipe

CODECS = tuple(load_recipe("nano").tasks["cls"].codecs)


def codecs_of(task: str, count: int) -> tuple[str, ...]:
    """Return the codecs of a task; learned codecs are slow on large features."""
    return CODECS if count == 3 or task == "cls" else ("x265",)


def rows_of(task: str, count: int) -> int:
    """Return the labels of a source."""
    return len(codecs_of(task, count)) * LEVELS


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread, like the workers of a build, for the same order of summation."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=[1, pytest.param(3, marks=pytest.mark.release)])
def count(request: pytest.FixtureRequest) -> int:
    """Sources per task."""
    sources: int = request.param
    return sources


@pytest.fixture(scope="module")
def nano(count: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    recipe, out = "nano", folder / "cfqa"
    if count != 3:
        data = load_recipe("nano").to_dict() | {"sources_per_task": count}
        for task, entry in data["tasks"].items():
            entry["codecs"] = {codec: entry["codecs"][codec] for codec in codecs_of(task, count)}
        recipe = str(write_toml(Recipe.from_dict(data), folder / "nano.toml"))
    workers = "1" if count == 1 else "2"
    assert main(["build", recipe, "--out", str(out), "--workers", workers]) == 0
    return out


def test_everything_is_there(nano: Path, count: int) -> None:
    dataset = load(nano)
    assert len(dataset) == count * sum(rows_of(task, count) for task in TASKS)
    assert not (nano / ".build").exists()
    shapes = {"cls": (1, 1, 65, 192), "seg": (2, 1, 65, 192), "dpt": (2, 4, 65, 192)}
    for task in TASKS:
        part = load(nano, task)
        assert len(part.source_ids) == count
        assert part[0].original.shape == part[0].compressed.shape == shapes[task]
        assert part[0].original.dtype == part[0].compressed.dtype == np.float32


def test_labels_are_what_the_heads_say_of_what_the_bitstreams_decode_to(
    nano: Path, count: int
) -> None:
    recipe, dataset = load_recipe("nano"), load(nano)
    models = Models(recipe)
    rows = dataset.labels.to_pylist()
    assert {(row["task"], row["codec"]) for row in rows[9::9]} == {
        (t, c) for t in TASKS for c in codecs_of(t, count)
    }
    for row in rows[9::9]:  # each codec of each task, at other levels
        ladder = recipe.tasks[row["task"]].codecs[row["codec"]]
        options = {"models": ladder.models} if ladder.models else {}
        codec = get_codec(row["codec"], **options)
        original = dataset.original(row["source_id"])
        stream = dataset.bitstream(row["source_id"], row["codec"], row["level"])
        plane = codec.decode(stream, plane_shape(original.shape))
        decoded = ladder.quantizer.dequantize(unpack(plane, original.shape))
        stored = dataset.compressed(row["source_id"], row["codec"], row["level"])
        assert np.array_equal(decoded, stored)
        truth = dataset.truth(row["source_id"])
        score, loss = models.task(row["task"]).score(torch.from_numpy(decoded), truth)
        assert score == row["score"]
        assert loss == row["loss"]
        wanted = TASKS[row["task"]].distortion(score, row["reference_score"])
        assert row["distortion"] == wanted
        assert row["bits"] == 8 * len(stream)
        error = decoded.astype(np.float64) - original
        assert row["mse"] == pytest.approx((error**2).mean(), rel=1e-9)


def test_originals_come_from_the_named_scenes(nano: Path) -> None:
    recipe, models = load_recipe("nano"), Models(load_recipe("nano"))
    for task in recipe.tasks:
        dataset = load(nano, task)
        source_id = dataset.source_ids[0]
        sample = models.source(task).sample(source_id)
        feature = models.features(task, sample.inputs)
        assert np.array_equal(feature, dataset.original(source_id))
        assert np.array_equal(sample.truth, dataset.truth(source_id))


def test_classes_differ_and_are_right_when_uncompressed(nano: Path) -> None:
    dataset = load(nano, "cls")
    assert set(dataset.labels["reference_score"].to_pylist()) == {1.0}
    truths = [int(dataset.truth(source_id)) for source_id in dataset.source_ids]
    assert len(set(truths)) == len(truths)


def test_ladders_go_from_little_harm_to_much(nano: Path, count: int) -> None:
    for task in TASKS:
        for codec in codecs_of(task, count):
            ends = []
            for level in (0, LEVELS - 1):
                labels = load(nano, task, codec=codec, level=level).labels
                bits, mse, loss, reference = (
                    labels[name].to_numpy().mean()
                    for name in ("bits", "mse", "loss", "reference_loss")
                )
                ends.append((bits, mse, loss - reference))
            (best_bits, best_mse, best_harm), (worst_bits, worst_mse, worst_harm) = ends
            assert best_bits > 3 * worst_bits
            assert best_mse < worst_mse / 2
            assert worst_harm > 3 * max(best_harm, 0.0)


def test_the_evaluator_repeats_the_stored_baselines(nano: Path) -> None:
    dataset = load(nano, "seg", codec="x265")
    scores = evaluate(dataset, metrics=["mse", "cosine", "cka"]).scores.to_pylist()
    stored = {(r["source_id"], r["codec"], r["level"]): r for r in dataset.labels.to_pylist()}
    assert len(scores) == 3 * len(stored)
    for row in scores:
        wanted = stored[row["source_id"], row["codec"], row["level"]][row["metric"]]
        assert row["value"] == pytest.approx(wanted, rel=1e-6, abs=1e-9)


def test_the_command_line_reads_it(nano: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(nano), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["name"] == "nano"


@pytest.mark.parametrize("streaming", [False, True])
def test_load_dataset_opens_it(
    nano: Path, count: int, streaming: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(nano.parent)
    counts = {task: count * rows_of(task, count) for task in TASKS}
    counts |= {"all": sum(counts.values()), "originals": 3 * count}
    for config, wanted in counts.items():
        found = load_dataset(
            "cfqa", config, split="test", streaming=streaming, cache_dir=str(tmp_path)
        )
        rows = list(found)
        assert len(rows) == wanted
        if config != "originals":
            continue
        dataset = load(nano)
        by_task = {row["task"]: row for row in rows}
        for task, row in by_task.items():
            assert row["image"].size == dataset.image(row["source_id"]).size
            assert (row["output_x265_9"] is None) == (task == "cls")
        mask = draw_mask(dataset.truth(by_task["seg"]["source_id"]), ()).picture
        assert np.array_equal(np.asarray(by_task["seg"]["truth"]), mask)  # without loss
        assert by_task["cls"]["answers"].startswith("truth: ")
