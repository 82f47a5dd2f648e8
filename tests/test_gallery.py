"""Images of sources and token grids."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pipeline_toy import qp, toy_recipe, write_networks

import cfqa_data
from cfqa_data.access.grid import token_grid
from cfqa_data.builders.pipeline import build
from cfqa_data.builders.sources.base import Sample
from cfqa_data.builders.sources.scenes import Scenes, draw_scene, render
from cfqa_data.errors import CfqaError
from cfqa_data.recipe.load import Recipe


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("networks")
    write_networks(folder)
    data = toy_recipe(folder, {"x265": qp(20, 45)}).to_dict()
    return Recipe.from_dict(data | {"sources_per_task": 2})


@pytest.fixture(scope="module")
def built(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(recipe, tmp_path_factory.mktemp("data") / "toy", workers=0)


def arrays() -> cfqa_data.Dataset:
    """A dataset in memory, of which only features and distortions are known."""
    x = np.random.default_rng(0).normal(size=(2, 1, 1, 5, 4)).astype("f4")
    return cfqa_data.from_arrays(
        originals=dict(zip("ab", x, strict=True)),
        compressed={"half": {1: dict(zip("ab", x / 2, strict=True))}},
        distortion={"half": {1: {"a": 0.1, "b": 0.2}}},
    )


def test_images_are_the_scenes_that_features_were_made_from(built: Path) -> None:
    dataset = cfqa_data.load(built)
    for task, entry in dataset.manifest.tasks.items():
        for source in entry.sources:
            aspect = 1.5 if task == "seg" else 1.0
            scene = render(
                draw_scene(int(source.rpartition("-")[2]), aspect), 112, int(112 * aspect)
            )
            np.testing.assert_array_equal(np.asarray(dataset.image(source)), scene.image)


def test_what_has_no_image_is_told_in_a_line(
    built: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(dataset: cfqa_data.Dataset, source: str) -> str:
        with pytest.raises(CfqaError) as error:
            dataset.image(source)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "'a' has no image here: recipe: the manifest's cannot make" in told(arrays(), "a")
    load = cfqa_data.load
    source = load(built).source_ids[0]
    assert "unknown source 'nothing'" in told(load(built), "nothing")
    for inputs, why in (
        ("a text", "its input is a text"),
        (np.zeros((1, 4, 5), np.float32), "its input is not an image"),
        (np.full((1, 3, 8, 8), 50.0, np.float32), "its input is not an image"),
    ):
        monkeypatch.setattr(Scenes, "sample", lambda self, name, i=inputs: Sample(name, i))
        assert told(load(built), source).endswith(f"{source!r} has no image: {why}")
    monkeypatch.setattr(Scenes, "image", lambda self, name: np.zeros((8, 8), np.uint8), False)
    assert "Scenes.image must return uint8 (H, W, 3), got uint8 (8, 8)" in told(load(built), source)

    data = recipe.to_dict()
    data["tasks"]["cls"]["source"] = {
        "kind": "image_folder",
        "seed": 1,
        "options": {"root": "root://photos"},
    }
    monkeypatch.setattr(
        "cfqa_data.builders.gallery.source.scoring_recipe", lambda _: Recipe.from_dict(data)
    )
    assert "missing: " in told(load(built), source)
    assert "reads files that a stranger names (root)" in told(load(built, untrusted=True), source)


def test_grids(built: Path) -> None:
    dataset = cfqa_data.load(built)
    for task, entry in dataset.manifest.tasks.items():
        grid = dataset.grid(task)
        assert grid == (1, 8, 8)
        tokens = np.arange(2 * entry.shape[2]).reshape(2, -1)
        assert grid.unfold(tokens)[1, 7, 4] == tokens[1, 1 + 7 * 8 + 4]
    with pytest.raises(CfqaError, match="did you mean 'seg'"):
        dataset.grid("sge")
    assert arrays().grid(next(iter(arrays().manifest.tasks))) is None


@pytest.mark.parametrize(
    ("tokens", "grid", "version", "expected"),
    [
        (1611, None, 1, (1, 35, 46)),  # published depth
        (257, None, 1, (1, 16, 16)),
        (8, None, 1, None),
        (257, None, 2, None),
        (9, (2, 4), 2, (1, 2, 4)),
    ],
)
def test_grids_of_both_formats(tokens: int, grid: Any, version: int, expected: Any) -> None:
    entry: Any = SimpleNamespace(shape=(1, 1, tokens, 4), prefix_tokens=1, grid=grid)
    assert token_grid(entry, version) == expected
