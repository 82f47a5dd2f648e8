"""Finding ladders, and the training data of the learned codec."""

from __future__ import annotations

import csv
import itertools
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mock_dataset
import numpy as np
import pytest
from pipeline_toy import QPS, toy_recipe, write_networks, write_toml
from safetensors.numpy import load_file

from cfqa_data.builders.calibration import calibrate
from cfqa_data.builders.pipeline.context import Models
from cfqa_data.builders.pipeline.ladders import (
    Bench,
    Curve,
    figures,
    propose,
    refine_grid,
    scaled_quantizer,
    spaced_indices,
)
from cfqa_data.builders.training import planes
from cfqa_data.format.packing import unpack
from cfqa_data.format.quantizers import KMeansQuantizer, Quantizer, quantizer_from_dict
from cfqa_data.recipe.load import load_recipe


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("networks")
    write_networks(folder)
    return folder


FEATURES = np.zeros((1, 1, 1, 2, 4), np.float32)


def curve(harm: list[float], parameters: list[float]) -> Curve:
    row = np.array([harm])
    rate = np.linspace(200, 100, len(harm))[None]
    return Curve(tuple(parameters), rate, row, row, row)


def bench(features: np.ndarray, useless: float = 1.0) -> Bench:
    nothing = np.zeros(len(features))
    return Bench("cls", features, (), nothing, nothing, (-1.0,), (3.0,), useless)


def test_a_ladder_goes_from_no_harm_to_nearly_useless() -> None:
    parameters = list(range(20, 45))
    harm = np.clip((np.array(parameters) - 25) / 12, 0, 1) + 1e-4 * np.arange(25)
    ladder, row = propose(bench(FEATURES), "x265", curve(harm.tolist(), parameters), 999.0)
    assert row["ok"]
    assert ladder.parameters[0] == 25
    assert 0.75 <= row["reach"] <= 0.85
    lambdas = [1 / 2**k for k in range(10)]
    ladder, _ = propose(bench(FEATURES), "x265", curve(list(np.linspace(0, 1, 10)), lambdas), 9.0)
    assert ladder.parameters == tuple(lambdas)
    with pytest.raises(ValueError, match="10 levels need as many parameters, got 9"):
        propose(bench(FEATURES), "x265", curve([0.0] * 9, lambdas[:9]), 9.0)


@pytest.mark.parametrize("seed", range(8))
def test_levels_take_steps_as_equal_as_any_choice(seed: int) -> None:
    values = np.random.default_rng(seed).uniform(0.0, 2.0, 9)
    if seed:
        values.sort()
    wanted = np.linspace(values[0], values[-1], 5)
    brute_force = min(
        ([0, *inner, 8] for inner in itertools.combinations(range(1, 8), 3)),
        key=lambda places: float(((values[places] - wanted) ** 2).sum()),
    )
    assert spaced_indices(values, 5) == brute_force


def test_a_first_level_may_do_as_much_harm_as_is_asked() -> None:
    parameters = list(range(20, 45))
    harm = np.clip((np.array(parameters) - 25) / 12, 0, 1) ** 2 + 1e-4 * np.arange(25)
    tried = curve(harm.tolist(), parameters)
    firsts = [
        propose(bench(FEATURES), "x265", tried, 999.0, harmless=share)[0].parameters[0]
        for share in (0.01, 0.07)
    ]
    assert firsts == [26, 27]
    grid = curve([0.0, 0.02, 0.2, 0.5, 1.0], [0, 10, 20, 30, 40])
    assert [refine_grid(grid, 1.0, harmless=share)[0] for share in (0.03, 0.3)] == [0, 10]


HARM = dict(enumerate([0.0, 0.02, *np.arange(1, 8) / 10, 0.78, 0.82]))
PAIRED = HARM | {2: 0.2, 3: 0.2, 4: 0.4, 5: 0.4, 6: 0.6, 7: 0.6, 9: 0.8, 10: 0.8}


@pytest.mark.parametrize(
    ("harm", "wrong", "dearer", "budget", "harmless", "first"),
    [
        pytest.param(HARM | {1: 0.09, 9: 0.7}, (8, 0), 0, 15, 0.1, 0, id="health"),
        pytest.param(HARM | {0: 0.05, 9: 0.7}, (0, 8), 0, 15, 0.03, 0, id="steady error"),
        pytest.param(HARM | {0: 0.05, 9: 0.7}, (0, 0), 8, 99, 0.03, 0, id="steady rate"),
        pytest.param(HARM | {1: 0.05, 9: 0.7}, (7, 6), 0, 15, 0.03, 0, id="start"),
        pytest.param(HARM | {10: 0.96}, (7, 6), 0, 15, 0.03, 0, id="not past useless"),
        pytest.param(HARM | {9: 0.6}, (6, 7), 5, 16, 0.03, 1, id="nearly useless"),
        pytest.param(PAIRED, (7, 6), 0, 15, 0.03, 1, id="budget"),
        pytest.param(PAIRED, (7, 6), 0, 99, 0.03, 0, id="distinct"),
        pytest.param(HARM | {0: 0.02}, (7, 6), 5, 99, 0.03, 0, id="rate"),
    ],
)
def test_each_criterion_decides_over_all_that_come_after_it(
    harm: dict[int, float],
    wrong: tuple[int, int],
    dearer: int,
    budget: float,
    harmless: float,
    first: int,
) -> None:
    """Of eleven parameters, 0 to 9 and 1 to 10 are alike before the criterion; all after it differ.

    20 sources have 180 pairs of levels: up to 9 wrong ones are healthy (95%), up to 7 are steady
    (96%), and the 13 of a ladder from 0 to 10 are neither, so that it does not come between.
    """
    rate = np.tile(np.arange(20.0, 9.0, -1.0), (20, 1))  # means: 15.5 and 14.5
    rate[:dearer, 10] = 200.0  # of 5 sources: 15.5 and 19.25
    error = np.tile(np.arange(1.0, 12.0), (20, 1))
    error[: wrong[0], 0] = 99.0
    error[20 - wrong[1] :, 10] = 0.0
    distortion = np.tile(list(harm.values()), (20, 1))
    tried = Curve(tuple(map(float, range(11))), rate, error, distortion, distortion)
    ladder, _ = propose(bench(np.repeat(FEATURES, 20, axis=0)), "x265", tried, budget, harmless)
    assert ladder.parameters[0] == first


def test_levels_are_even_in_rate_and_harm_together() -> None:
    """With a rate of exp(-x) and a harm of x**2, x from 0 to 1, the levels are where x + x**2 is
    a multiple of 2 / 9; the curve has these and the points halfway between."""
    even = (np.sqrt(1 + 8 / 9 * np.arange(10)) - 1) / 2
    x = np.interp(np.arange(19) / 2, np.arange(10), even)
    harm = 0.8 * x[None] ** 2
    tried = Curve(tuple(map(float, range(19))), 1000 * np.exp(-x)[None], harm, harm, harm)
    ladder, _ = propose(bench(FEATURES), "x265", tried, 9999.0, harmless=0.0)
    assert ladder.parameters == tuple(map(float, range(0, 19, 2)))


class StubPool:
    """A fake of the measurements, with given curves or a rule, that records its calls."""

    def __init__(self, *known: Curve) -> None:
        self.known, self.asked = known, []

    def curves(
        self, _: Bench, __: Any, cells: Sequence[tuple[Quantizer, Sequence[float]]]
    ) -> list[Curve]:
        self.asked.append([(quantizer, tuple(parameters)) for quantizer, parameters in cells])
        rule = [curve(list(np.clip((np.array(ps) - 20) / 20, 0, 1)), list(ps)) for _, ps in cells]
        return list(self.known) or rule


def known(mean: float, start: float = 0.0, distinct: int = 10) -> Curve:
    """Return ten levels of a mean rate, of which 10 or 4 are distinct; healthy if start is 0."""
    harm = np.repeat(np.linspace(0.1, 0.8, distinct - 1), 9 // (distinct - 1))
    row, rate = np.array([[start, *harm]]), np.linspace(mean + 9, mean - 9, 10)[None]
    return Curve(tuple(map(float, range(10))), rate, np.arange(10.0)[None], row, row)


@pytest.mark.parametrize(
    "curves",
    [
        pytest.param([known(40, start=0.09), known(60)], id="health"),
        pytest.param([known(60), known(45, distinct=4)], id="budget"),
        pytest.param([known(40, distinct=4), known(45)], id="distinct"),
        pytest.param([known(45), known(40)], id="rate"),
    ],
)
def test_the_best_range_is_healthy_then_within_the_budget_then_distinct_then_cheap(
    curves: list[Curve],
) -> None:
    ladder = mock_dataset.toy_recipe().tasks["cls"].codecs["x265"]
    for order, best in ((curves, 1), (curves[::-1], 0)):
        found = calibrate.calibrate(
            StubPool(*order).curves,
            bench(FEATURES),
            ladder,
            scales=(1.0, 2.0),
            parameters=curves[0].parameters,
            budget=50.0,
        )
        assert found["best"] == best


def test_ranges_are_tried_coarsely_and_then_at_every_parameter() -> None:
    ladders = mock_dataset.toy_recipe().tasks["cls"].codecs
    originals, pool = bench(FEATURES), StubPool()
    found = calibrate.calibrate(
        pool.curves, originals, ladders["x265"], scales=(1.0, 2.0), budget=999.0
    )
    ranges = [scaled_quantizer(originals, 10, scale) for scale in (1.0, 2.0)]
    coarse, whole = (0, 6, 13, 19, 26, 32, 38, 45, 51), tuple(range(13, 46))
    assert pool.asked == [[(each, grid) for each in ranges] for grid in (coarse, whole)]
    assert [tried["scale"] for tried in found["tried"]] == [1.0, 2.0]
    learned = ladders["hyperprior_multi_task"]
    pool = StubPool(known(40))
    found = calibrate.calibrate(pool.curves, originals, learned, scales=(1.0, 2.0))
    assert pool.asked == [[(learned.quantizer, learned.levels)]]
    assert [tried["scale"] for tried in found["tried"]] == [None]


def test_vvenc_is_tried_at_the_range_that_is_best_for_x265(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_toml(mock_dataset.toy_recipe(), tmp_path / "toy.toml")
    asked: dict[tuple[str, str], tuple[float, ...]] = {}

    def stub(_: Any, task: str, ladder: Any, *, scales: Sequence[float], **__: Any) -> Any:
        asked[task, ladder.codec] = tuple(scales)
        best = {"cls": 4.0, "seg": 8.0, "dpt": 16.0}[task]
        tried = [{"scale": scale, "levels": [], "figures": {}} for scale in (1.0, best)]
        return {"tried": tried, "best": 1}

    monkeypatch.setattr(calibrate, "calibrate", stub)
    monkeypatch.setattr(calibrate, "make_bench", lambda _, task, *__: task)
    monkeypatch.setattr(calibrate, "training_features", lambda *_: [])
    monkeypatch.setattr(calibrate, "write_report", lambda _: [])
    arguments = ["--recipe", str(recipe), "--out", str(tmp_path)]
    calibrate.main(arguments)
    every = (1.0, 4.0, 8.0, 16.0)
    for task, best in (("cls", 4.0), ("seg", 8.0), ("dpt", 16.0)):
        assert (asked[task, "x265"], asked[task, "vvenc"]) == (every, (best,))
    asked.clear()
    calibrate.main([*arguments, "--codec", "x265", "--codec", "vvenc", "--scales", "2", "3"])
    assert asked == {(t, c): (2.0, 3.0) for t in ("cls", "seg", "dpt") for c in ("x265", "vvenc")}
    asked.clear()
    calibrate.main([*arguments, "--codec", "vvenc", "--task", "dpt"])
    assert asked == {("dpt", "vvenc"): every}


def test_a_coarse_grid_says_where_to_look() -> None:
    grid = [0, 10, 20, 30, 40, 50]
    assert refine_grid(curve([0, 0, 0.005, 0.2, 1.1, 1.2], grid), 1.0) == tuple(range(10, 41))
    assert refine_grid(curve([0.1, 0.2, 0.3, 0.5, 0.4, 0.3], grid), 1.0) == tuple(range(51))
    narrow = refine_grid(curve([0.2, 1, 1], [2, 4, 6]), 1.0)
    assert narrow == tuple(range(10))


def test_figures_are_the_health_of_a_dataset() -> None:
    up, down = np.arange(10.0), np.arange(10.0)[::-1]
    flat = np.zeros(10)
    found = figures(
        bench(np.zeros((2, 1, 1, 2, 4), np.float32), 18.0),
        "x265",
        Curve(
            tuple(range(10)),
            np.stack([down] * 2),
            np.stack([up] * 2),
            np.stack([up, flat]),
            np.stack([up, flat]),
        ),
    )
    assert found["changing"] == 0.5
    assert found["rate_falls"] == found["mse_rises"] == 1.0
    assert found["reach"] == 4.5 / 18
    assert found["distinct"] == 5.5
    assert found["bpfp"] == 4.5
    assert not found["ok"]


def test_a_widened_range_keeps_its_middle() -> None:
    found = scaled_quantizer(bench(FEATURES), 10, 4.0)
    assert (found.lo, found.hi) == ((-7.0,), (9.0,))


def test_the_command_writes_ladders_that_a_recipe_takes(networks: Path, tmp_path: Path) -> None:
    recipe = write_toml(toy_recipe(networks, {"x265": QPS}), tmp_path / "toy.toml")
    out = tmp_path / "calibration"
    arguments = ["--recipe", str(recipe), "--out", str(out), "--sources", "2", "--training", "3"]
    arguments += ["--seed", "1", "--scales", "1", "2", "--parameters", *map(str, range(10, 50, 6))]
    for task in ("cls", "dpt"):
        calibrate.main([*arguments, "--task", task])
    found = json.loads((out / "dpt-x265.json").read_text())
    assert [tried["scale"] for tried in found["tried"]] == [1.0, 2.0]
    assert [row["parameter"] for row in found["tried"][0]["grid"]] == list(range(10, 50, 6))
    snippet = tomllib.loads((out / "ladders.toml").read_text())
    for task in ("cls", "dpt"):
        ladder = snippet["tasks"][task]["codecs"]["x265"]
        assert len(ladder["levels"]) == 4
        assert quantizer_from_dict(ladder["quantizer"]).bits == 10
    with (out / "calibration.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * (7 + 4)
    report = (out / "calibration.md").read_text()
    assert "| cls | x265 |" in report
    assert "not all tasks are calibrated" in report
    assert (out / "calibration.png").stat().st_size > 10_000
    (out / "dpt-hm.json").write_text(json.dumps(found | {"codec": "hm"}))
    assert out / "calibration.png" in calibrate.write_report(out)


def test_training_planes_are_the_features_quantised(networks: Path, tmp_path: Path) -> None:
    recipe = write_toml(toy_recipe(networks, {"x265": QPS}), tmp_path / "toy.toml")
    out, tables = tmp_path / "planes.safetensors", tmp_path / "kmeans.safetensors"
    arguments = ["--recipe", str(recipe), "--out", str(out), "--tables", str(tables)]
    planes.main([*arguments, "--cls", "4", "--seg", "3", "--dpt", "2"])
    stored, centers = load_file(out), load_file(tables)
    assert {task: (p.shape, p.dtype.name) for task, p in stored.items()} == {
        "cls": ((4, 65, 48), "uint8"),
        "seg": ((3, 130, 48), "uint8"),
        "dpt": ((2, 130, 192), "uint8"),
    }
    assert {task: table.shape for task, table in centers.items()} == {
        "cls": (1, 256),
        "seg": (1, 256),
        "dpt": (4, 256),
    }
    models = Models(load_recipe(recipe))
    feature = next(planes.training_features(models, "dpt", 1, planes.PLANE_SEED))
    quantizer = KMeansQuantizer(8, tuple(map(tuple, centers["dpt"].tolist())))
    restored = quantizer.dequantize(unpack(stored["dpt"][0], feature.shape))
    assert np.abs(restored - feature).mean() < 0.02 * np.abs(feature).mean()
