"""Heads fitted to labelled images: the optimum of a linear head, the written file, and errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from cfqa_data.builders.backbones.dinov2 import VisionTransformer
from cfqa_data.builders.pipeline.context import Models
from cfqa_data.builders.sources.folders import ImageFolder
from cfqa_data.builders.tasks.heads import load_head
from cfqa_data.builders.training.head import FittedHead, fit_head, fit_linear, held_out_of
from cfqa_data.errors import BuildError
from cfqa_data.recipe.load import Recipe

DIM, COLOURS = 64, {"blue": (40, 60, 190), "green": (50, 180, 60), "red": (190, 50, 40)}


def test_the_fit_is_the_minimum_of_its_objective() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.normal(3, [1, 5, 0.1, 2], (60, 4))
    inputs[:, 3] = 7.0  # constant
    labels = (inputs[:, 0] + 0.2 * inputs[:, 1] + rng.normal(size=60) > 3.6).astype(np.int64)
    decay = 0.05
    weight, bias = fit_linear(inputs, labels, 3, decay)
    scores = inputs @ weight.T + bias
    share = np.exp(scores - scores.max(1, keepdims=True))
    share /= share.sum(1, keepdims=True)
    wrong = share - np.eye(3)[labels]
    deviation = np.where(inputs.std(0) > 0, inputs.std(0), 1.0)
    standard = (inputs - inputs.mean(0)) / deviation
    gradient = wrong.T @ standard / len(inputs) + decay * weight * deviation
    assert np.abs(gradient).max() < 1e-6
    assert np.abs(weight[:, 3]).max() < 1e-12
    # A class without images has no minimum, but never wins.
    assert 2 not in scores.argmax(axis=1)


def test_of_each_class_the_same_share_is_held_out() -> None:
    labels = np.repeat([0, 1, 2], [10, 4, 15])
    held_out = held_out_of(labels)
    assert [int(held_out[labels == label].sum()) for label in range(3)] == [2, 0, 3]
    assert np.array_equal(held_out, held_out_of(labels))


def images(folder: Path, count: int, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.clip(rng.normal(colour, 40, (4, 5, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).resize((40, 32)).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    torch.manual_seed(0)
    network = VisionTransformer(DIM, 3, 1, 64, 4)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    save_file(network.state_dict(), folder / "backbone.safetensors")
    images(folder / "images", 2, 0)
    images(folder / "train", 5, 1)
    return folder


def recipe(
    data: Path, tasks: tuple[str, ...] = ("colour",), kind: str = "classification", **options: Any
) -> Recipe:
    quantizer = {"kind": "uniform", "bits": 10, "lo": [-9.0, -9.0], "hi": [9.0, 9.0]}
    source = {"kind": "image_folder", "seed": 0, "options": {"root": str(data / "images")}}
    entry = {
        "class": kind,
        "blocks": [0, 2],
        "head": str(data / "head.safetensors"),
        "source": source,
        "options": options,
        "codecs": {"x265": {"levels": [20], "quantizer": quantizer}},
    }
    return Recipe.from_dict(
        {
            "name": "colours",
            "summary": "colours",
            "sources_per_task": 6,
            "group_size": 3,
            "backbone": {"weights": str(data / "backbone.safetensors")},
            "tasks": dict.fromkeys(tasks, entry),
        }
    )


@pytest.mark.parametrize(
    ("task", "kind", "of"),
    [("classification", "linear", "cls"), ("hypervector", "hypervector", "hypervector")],
)
def test_a_head_of_several_layers_that_a_recipe_takes(
    task: str, kind: Any, of: str, data: Path
) -> None:
    wanted, out = recipe(data, kind=task, per_class=0), data / "head.safetensors"

    def fit() -> FittedHead:
        return fit_head(wanted, data / "train", out, kind=kind, dims=200, workers=1)

    found = fit()
    assert found[1:4] == (("blue", "green", "red"), 12, 3)
    first = out.read_bytes()
    assert fit() == found
    assert out.read_bytes() == first

    head, models = load_head(of, out, layers=2), Models(wanted)
    samples = list(ImageFolder("colour", 0, str(data / "train")).samples())
    samples.sort(key=lambda sample: sample.source_id)
    held_out = held_out_of(np.array([int(sample.truth) for sample in samples]))
    ranks = [
        head.score(models.features("colour", sample.inputs), sample.truth)[0]
        for sample, held in zip(samples, held_out, strict=True)
        if held
    ]
    assert found.accuracy == np.mean(np.array(ranks) == 1)
    assert found.accuracy == 1.0
    made, accepted = models.task("colour"), []
    for sample in models.source("colour").samples():
        feature = models.features("colour", sample.inputs)
        if made.accepts(lambda feature=feature: feature, sample, accepted) is None:
            accepted.append(sample)
    assert len(accepted) == 6  # two of each class


def test_what_no_head_is_fitted_to(data: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "blue").symlink_to(data / "train" / "blue")
    (tmp_path / "cut").mkdir()
    for name in ("blue", "red"):
        (tmp_path / "cut" / name).mkdir()
        (tmp_path / "cut" / name / "1.png").write_bytes(b"\x89PNG")
    out = tmp_path / "head.safetensors"
    two = recipe(data, ("colour", "other"))
    for images, said, wanted, task in (
        (tmp_path / "one", "a head needs at least two classes", recipe(data), None),
        (tmp_path / "cut", r"blue/1\.png: not a JPEG or PNG image", recipe(data), None),
        (data / "train" / "red", "images that are not in a class folder", recipe(data), None),
        (
            data / "images",
            "is an image of the dataset",
            recipe(data),
            None,
        ),
        (data / "train", "name the task of the head: colour, other", two, None),
        (data / "train", "shape", two, "shape"),
        (tmp_path / "none", "missing: .*none", recipe(data), None),
    ):
        with pytest.raises(BuildError, match=said) as caught:
            fit_head(wanted, images, out, task=task, workers=1)
        assert "\n" not in str(caught.value)
        assert not out.exists()
