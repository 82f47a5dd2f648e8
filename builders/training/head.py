"""Fit a small classification head to features of labelled images.

The inputs of both kinds are those of the `cls` head: the class token of each layer, and the mean
patch token of the last, after the backbone's final norm. A linear head is a multinomial logistic
regression, fitted by full-batch L-BFGS from zero in float64. A hypervector head has a hidden layer
and is trained by AdamW to minimise the squared error to the key of each image's class. Inputs are
standardised for the fit; the standardisation is folded into the weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from cfqa_data.builders.pipeline.context import Models
from cfqa_data.builders.sources.folders import ImageFolder
from cfqa_data.builders.tasks.classification import ClsHead
from cfqa_data.builders.tasks.hypervector import random_keys
from cfqa_data.console.progress import Progress, Silent
from cfqa_data.errors import BuildError, check_known
from cfqa_data.format.storage import write_tensors
from cfqa_data.guard import check_guard
from cfqa_data.processes.executor import Executor, one_thread
from cfqa_data.processes.stage import Stage, drive
from cfqa_data.recipe.load import Recipe, load_recipe
from cfqa_data.torch_state import torch_state

__all__ = ["FittedHead", "PooledFeatures", "fit_head", "fit_hypervector", "fit_linear"]

DECAY = 0.01
"""Factor of the penalty, half the squared norm of the weights of standardised inputs."""

HELD_OUT = 5
"""One in this many images of each class is held out."""

ITERATIONS = 500

DIMS, HIDDEN = 1000, 1000
"""Length of hypervectors, and number of units of the hidden layer."""

EPOCHS, BATCH, RATE = 30, 64, 1e-3


class FittedHead(NamedTuple):
    """Result of :func:`fit_head`.

    Attributes:
        path: Path of the head.
        classes: Names of the classes, in the order of their labels.
        trained: Number of training images.
        held_out: Number of held-out images.
        accuracy: Accuracy on the held-out images.
    """

    path: Path
    classes: tuple[str, ...]
    trained: int
    held_out: int
    accuracy: float


@dataclass(frozen=True)
class PooledFeatures(Stage):
    """Stage that extracts the inputs of a head's linear part; an item is the id of an image.

    Attributes:
        recipe: Recipe of the backbone.
        task: Task whose blocks and, without `images`, whose source are used.
        images: Folder of images, or None.
        ids: Ids of the images; all in the folder if empty.
    """

    recipe: Recipe
    task: str
    images: str | None = None
    ids: tuple[str, ...] = ()

    name, unit = "extract", "images"

    @cached_property
    def models(self) -> Models:
        """Backbone of the recipe."""
        return Models(self.recipe)

    @cached_property
    def source(self) -> Any:
        """Source of the images: a folder per class, or the task's source."""
        return (
            ImageFolder(self.task, 0, self.images) if self.images else self.models.source(self.task)
        )

    @cached_property
    def head(self) -> ClsHead:
        """Untrained head of the backbone's width, with its norm."""
        backbone, layers = self.models.backbone, len(self.recipe.tasks[self.task].blocks)
        if backbone.norm is None or backbone.width is None:
            raise BuildError(f"backbone {backbone.name} has no final norm, which the head needs")
        head = ClsHead(backbone.width * ClsHead.share(layers), 1, layers)
        head.norm = backbone.norm
        return head.requires_grad_(False)

    def items(self) -> list[str]:
        return list(self.ids) or sorted(self.source.entries)

    def run(self, item: str) -> tuple[np.ndarray, Any]:
        """Return the inputs of the linear part, float32 (inputs,), and the truth."""
        sample = self.source.sample(item)
        feature = self.models.extracted(self.task, sample.inputs, item)
        with torch_state(grad=False):
            return self.head.pooled(torch.from_numpy(feature))[0].numpy(), sample.truth

    def collect(self, workers: int, progress: Progress) -> tuple[np.ndarray, np.ndarray]:
        """Run all items; return their inputs (images, inputs) and truths, in their order."""
        items = self.items()
        with Executor(workers) as executor:
            results = dict(drive(self, executor, progress, items))
        inputs, truths = zip(*(results[item] for item in items), strict=True)
        return np.stack(inputs), np.stack(truths)


def fit_head(
    recipe: Recipe | str | Path,
    images: str | Path,
    out: str | Path,
    *,
    task: str | None = None,
    kind: Literal["linear", "hypervector"] = "linear",
    dims: int = DIMS,
    workers: int = 2,
    progress: Progress | None = None,
) -> FittedHead:
    """Fit a head for a recipe's backbone to images in a folder per class, and write it.

    The same images and recipe give the same bytes, with any number of workers.

    Args:
        recipe: A recipe, its name, or the path of its TOML file; its head may not exist yet.
        images: Folder of the images, which must not be possible sources of the dataset.
        out: File to write, ``.safetensors``.
        task: Task whose blocks the head is for; may be omitted if there is only one.
        kind: "linear" for the tasks `classification` and `fidelity`, or "hypervector".
        dims: Length of hypervectors.
        workers: Number of processes.
        progress: Display that is notified of each stage and finished item; None shows nothing.

    Raises:
        BuildError: If there is no such task, the images are sources of the dataset, have fewer than
            two classes, or are damaged.
    """
    check_guard()
    recipe, display = load_recipe(recipe), progress or Silent()
    if task is None and len(recipe.tasks) > 1:
        raise BuildError(f"name the task of the head: {', '.join(recipe.tasks)}")
    task = task or next(iter(recipe.tasks))
    check_known("task", task, recipe.tasks, BuildError)
    stage = PooledFeatures(recipe, task, str(Path(images).absolute()))
    items = stage.items()
    classes = tuple(sorted({stage.source.entries[item].image.parent.name for item in items}))
    if len(classes) < 2:
        raise BuildError(f"{images}: a head needs at least two classes, one folder each")
    _check_apart(stage, items)
    assert stage.head is not None  # checks the backbone before anything is extracted
    pooled, labels = stage.collect(workers, display)
    inputs, held_out = pooled.astype(np.float64), held_out_of(labels)
    display.start("fit", 1, "heads")
    training = inputs[~held_out], labels[~held_out]
    if kind == "linear":
        weight, bias = fit_linear(*training, len(classes))
        tensors = {"weight": weight.astype(np.float32), "bias": bias.astype(np.float32)}
        right = (inputs[held_out] @ weight.T + bias).argmax(axis=1) == labels[held_out]
    else:
        tensors = fit_hypervector(*training, random_keys(len(classes), dims))
        right = predicted_keys(tensors, inputs[held_out]) == labels[held_out]
    display.advance()
    display.finish()
    accuracy = float(right.mean()) if right.size else math.nan
    tensors |= {f"norm.{k}": v.numpy() for k, v in stage.head.norm.state_dict().items()}
    path = Path(out).absolute()
    write_tensors(path, tensors, {"classes": classes, "held_out_accuracy": f"{accuracy:.4f}"})
    return FittedHead(path, classes, int((~held_out).sum()), right.size, accuracy)


def held_out_of(labels: np.ndarray) -> np.ndarray:
    """Return which images are held out, bool (images,): a fixed random selection of each class."""
    held_out = np.zeros(len(labels), bool)
    rng = np.random.default_rng(0)
    for label in range(int(labels.max()) + 1):
        indices = rng.permutation(np.flatnonzero(labels == label))
        held_out[indices[len(indices) - len(indices) // HELD_OUT :]] = True
    return held_out


def fit_linear(
    inputs: np.ndarray, labels: np.ndarray, classes: int, decay: float = DECAY
) -> tuple[np.ndarray, np.ndarray]:
    """Return weights (classes, D) and biases of a multinomial logistic regression, float64.

    The fit minimises the mean cross-entropy plus ``decay / 2`` times the squared norm of the
    weights of standardised inputs.

    Args:
        inputs: Inputs, float64 (images, D).
        labels: Labels, integers (images,) below `classes`.
        classes: Number of classes.
        decay: Factor of the penalty.
    """
    mean, deviation = _moments(inputs)
    with one_thread(), torch_state(grad=True):
        x = torch.from_numpy((inputs - mean) / deviation)
        target = torch.from_numpy(labels.astype(np.int64))
        weight = torch.zeros(classes, inputs.shape[1], dtype=torch.float64, requires_grad=True)
        bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.LBFGS(
            [weight, bias],
            max_iter=ITERATIONS,
            tolerance_grad=1e-8,
            tolerance_change=1e-14,
            line_search_fn="strong_wolfe",
        )

        def closure() -> torch.Tensor:
            optimiser.zero_grad()
            fit = torch.nn.functional.cross_entropy(x @ weight.T + bias, target)
            loss = fit + decay / 2 * weight.square().sum()
            loss.backward()
            return loss

        optimiser.step(closure)
        scaled = weight.detach().numpy() / deviation
        return scaled, bias.detach().numpy() - scaled @ mean


def fit_hypervector(
    inputs: np.ndarray, labels: np.ndarray, keys: np.ndarray, seed: int = 0
) -> dict[str, np.ndarray]:
    """Return the tensors of a hypervector head, except its norm.

    Args:
        inputs: Inputs, float64 (images, D).
        labels: Labels, integers (images,) below the number of keys.
        keys: Keys of -1 and 1, (classes, dims).
        seed: Seed of the initial weights and of the order of the images.
    """
    mean, deviation = _moments(inputs)
    dims, rng = keys.shape[1], np.random.default_rng(seed)
    with one_thread(), torch_state(grad=True):
        x = torch.from_numpy(((inputs - mean) / deviation).astype(np.float32))
        target = torch.from_numpy(keys.astype(np.float32)[labels])
        hidden, last = torch.nn.Linear(x.shape[1], HIDDEN), torch.nn.Linear(HIDDEN, dims)
        for layer in (hidden, last):
            bound = 1 / math.sqrt(layer.in_features)  # the distribution that torch uses
            for parameter in (layer.weight, layer.bias):
                values = rng.uniform(-bound, bound, tuple(parameter.shape))
                parameter.data = torch.from_numpy(values.astype(np.float32))
        network = torch.nn.Sequential(hidden, torch.nn.ReLU(), last)
        optimiser = torch.optim.AdamW(network.parameters(), lr=RATE)
        for _ in range(EPOCHS):
            for batch in torch.from_numpy(rng.permutation(len(x))).split(BATCH):
                optimiser.zero_grad()
                loss = torch.nn.functional.mse_loss(network(x[batch]), target[batch])
                loss.backward()
                optimiser.step()
        state = {name: value.numpy() for name, value in network.state_dict().items()}
    scaled = state["0.weight"] / deviation
    return {
        "hidden.weight": scaled.astype(np.float32),
        "hidden.bias": (state["0.bias"] - scaled @ mean).astype(np.float32),
        "weight": state["2.weight"],
        "bias": state["2.bias"],
        "keys": keys.astype(np.float32),
    }


def predicted_keys(tensors: dict[str, np.ndarray], inputs: np.ndarray) -> np.ndarray:
    """Return the index of the nearest key of each input, (images,), for a fitted head."""
    hidden = np.maximum(inputs @ tensors["hidden.weight"].T + tensors["hidden.bias"], 0)
    return ((hidden @ tensors["weight"].T + tensors["bias"]) @ tensors["keys"].T).argmax(axis=1)


def _moments(inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of each input; the latter is 1 for constant inputs."""
    mean, deviation = inputs.mean(axis=0), inputs.std(axis=0)
    deviation[deviation < 1e-9 * max(1.0, float(deviation.max()))] = 1.0
    return mean, deviation


def _check_apart(stage: PooledFeatures, items: Sequence[str]) -> None:
    """Check that no image may be a source of the dataset."""
    spec = stage.recipe.tasks[stage.task].source
    if spec.kind != "image_folder":
        return
    try:
        others = stage.models.source(stage.task)
    except BuildError:  # the images of the dataset do not exist yet
        return
    taken = {entry.image.resolve() for entry in others.entries.values()}  # type: ignore[attr-defined]
    for item in items:
        image = stage.source.entries[item].image
        if image.resolve() in taken:
            raise BuildError(f"{image}: is an image of the dataset; train the head on other images")
