"""Finding ladders, and the training data of the learned codec."""

from __future__ import annotations

import csv
import itertools
import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
from pipeline_toy import QPS, toy_recipe, write_networks, write_toml
from safetensors.numpy import load_file

from cfqa_data.builders import calibrate
from cfqa_data.builders.ladders import (
    Bench,
    Curve,
    figures,
    propose,
    refined,
    spaced,
    widened,
)
from cfqa_data.builders.pipeline.tools import Models
from cfqa_data.builders.training import planes
from cfqa_data.packing import unpack
from cfqa_data.quantizers import KMeansQuantizer, quantizer_from_dict
from cfqa_data.recipe import load_recipe


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
    with pytest.raises(ValueError, match="needs 10 parameters, got 9"):
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
    assert spaced(values, 5) == brute_force


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
    assert [refined(grid, 1.0, harmless=share)[0] for share in (0.03, 0.3)] == [0, 10]


def test_a_coarse_grid_says_where_to_look() -> None:
    grid = [0, 10, 20, 30, 40, 50]
    assert refined(curve([0, 0, 0.005, 0.2, 1.1, 1.2], grid), 1.0) == tuple(range(10, 41))
    assert refined(curve([0.1, 0.2, 0.3, 0.5, 0.4, 0.3], grid), 1.0) == tuple(range(51))
    narrow = refined(curve([0.2, 1, 1], [2, 4, 6]), 1.0)
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
    found = widened(bench(FEATURES), 10, 4.0)
    assert (found.lo, found.hi) == ((-7.0,), (9.0,))


def test_the_command_writes_ladders_that_a_recipe_takes(networks: Path, tmp_path: Path) -> None:
    recipe = write_toml(toy_recipe(networks, {"x265": QPS}), tmp_path / "toy.toml")
    out = tmp_path / "calibration"
    arguments = ["--recipe", str(recipe), "--out", str(out), "--sources", "2", "--training", "3"]
    arguments += ["--seed", "1", "--scales", "1", "2", "--parameters", *map(str, range(10, 50, 3))]
    for task in ("cls", "dpt"):
        calibrate.main([*arguments, "--task", task])
    found = json.loads((out / "dpt-x265.json").read_text())
    assert [tried["scale"] for tried in found["tried"]] == [1.0, 2.0]
    assert [row["parameter"] for row in found["tried"][0]["grid"]] == list(range(10, 50, 3))
    snippet = tomllib.loads((out / "ladders.toml").read_text())
    for task in ("cls", "dpt"):
        ladder = snippet["tasks"][task]["codecs"]["x265"]
        assert len(ladder["levels"]) == 10
        assert quantizer_from_dict(ladder["quantizer"]).bits == 10
    with (out / "calibration.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * (14 + 10)
    report = (out / "calibration.md").read_text()
    assert "| cls | x265 |" in report
    assert "not all tasks are calibrated" in report
    assert (out / "calibration.png").stat().st_size > 10_000


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
