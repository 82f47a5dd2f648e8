"""Estimates of time and space before a build."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pipeline_toy import DIM, QPS, qp, toy_recipe, tree, write_networks, write_toml

from cfqa_data.builders.pipeline import build, label
from cfqa_data.builders.pipeline.build import STAGES
from cfqa_data.builders.pipeline.context import BuildContext
from cfqa_data.builders.pipeline.estimate import estimate, estimate_text
from cfqa_data.builders.pipeline.label import batch_of_levels
from cfqa_data.builders.pipeline.plan import Plan
from cfqa_data.cli import main as cfqa
from cfqa_data.codecs.hyperprior.codec import COST
from cfqa_data.format.layout import Layout
from cfqa_data.recipe.load import Recipe, load_recipe

TOKENS = 65
VIEWS_AND_LAYERS = {"cls": 1, "seg": 2, "dpt": 8}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("networks")
    write_networks(folder)
    return toy_recipe(folder, {"x265": QPS, "vvenc": qp(*range(20, 40, 5))})


def test_every_item_is_counted_and_originals_are_exact(recipe: Recipe) -> None:
    plan = Plan(recipe)
    told = estimate(plan)
    context = BuildContext(plan, Layout(Path()))
    assert told["items"] == sum(len(stage(context).items()) for stage in STAGES)
    written = {r["task"]: r["bytes"] for r in told["stages"] if r["stage"] == "extract"}
    assert written == {t: 3 * 4 * n * TOKENS * DIM for t, n in VIEWS_AND_LAYERS.items()}
    features = {r["features"] for r in told["stages"] if r["stage"] == "compress"}
    assert features == {12}
    assert told["core_hours"] == pytest.approx(sum(r["core_hours"] for r in told["stages"]))


def test_hours_follow_points_and_codecs(recipe: Recipe) -> None:
    def hours(recipe: Recipe, task: str, codec: str) -> float:
        rows = estimate(Plan(recipe))["stages"]
        return next(r["core_hours"] for r in rows if (r["task"], r["codec"]) == (task, codec))

    once = hours(recipe, "cls", "x265")
    assert hours(replace(recipe, sources_per_task=6), "cls", "x265") == pytest.approx(2 * once)
    assert 2 * once < hours(recipe, "dpt", "x265") <= 8 * once  # a feature takes time by itself
    assert hours(recipe, "cls", "vvenc") > once


def test_hyperpriors_are_estimated_by_their_convention(monkeypatch: pytest.MonkeyPatch) -> None:
    def hours() -> float:
        rows = estimate(Plan(load_recipe("nano")))["stages"]
        return sum(r["core_hours"] for r in rows if r["codec"] == "hyperprior_multi_task")

    before = hours()
    slower = {**COST, "cfqa": 10 * COST["cfqa"]}
    monkeypatch.setattr("cfqa_data.codecs.hyperprior.codec.COST", slower)
    assert 5 * before < hours() < 10 * before


def test_the_light_tier_and_small_groups_take_less(recipe: Recipe) -> None:
    full, light = estimate(Plan(recipe)), estimate(Plan(recipe, "light"))
    assert light["bytes"] < full["bytes"]
    one = estimate(Plan(replace(recipe, group_size=1)))
    assert one["worker_bytes"] < full["worker_bytes"]


def test_the_command_tells_and_writes_nothing(
    recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = write_toml(recipe, tmp_path / "toy.toml")
    monkeypatch.chdir(tmp_path)
    clock = itertools.count()  # a sample takes a second
    monkeypatch.setattr("cfqa_data.builders.pipeline.estimate.perf_counter", lambda: next(clock))
    rows = estimate(Plan(recipe))["stages"]
    assert all(
        round(3600 * r["core_hours"]) >= 3 for r in rows if r["stage"] in ("select", "extract")
    )
    assert cfqa(["build", str(file), "--dry-run"]) == 0
    assert capsys.readouterr().out.strip() == estimate_text(estimate(Plan(recipe)))
    assert [path.name for path in tmp_path.iterdir()] == ["toy.toml"]
    assert cfqa(["build", str(file)]) == 2
    assert "--out is missing" in capsys.readouterr().err


@pytest.mark.parametrize(("points", "batch"), [(1, 10), (1 << 23, 2), (1 << 24, 1), (1 << 30, 1)])
def test_large_features_are_labelled_in_batches(points: int, batch: int) -> None:
    assert batch_of_levels(points, 10) == batch


def test_batches_do_not_change_the_labels(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = recipe.to_dict() | {"sources_per_task": 1}
    for task in data["tasks"].values():
        del task["codecs"]["vvenc"]
    small = Recipe.from_dict(data)
    whole = build(small, tmp_path / "whole", workers=0)
    monkeypatch.setattr(label, "BATCH_POINTS", 3 * 8 * TOKENS * DIM)
    parts = build(small, tmp_path / "parts", workers=0)
    kept = [tree(folder / "compressed") for folder in (whole, parts)]
    assert kept[0] == kept[1]
    for task in small.tasks:
        one, other = (pq.read_table(folder / f"labels/{task}.parquet") for folder in (whole, parts))
        for name in one.column_names:
            a, b = one[name].to_pylist(), other[name].to_pylist()
            assert a == b if isinstance(a[0], str) else a == pytest.approx(b, rel=1e-9), name
