"""Fit a small classification head to features of labelled images.

Both kinds take what a head of `cls` does, the class token of each layer and the mean patch token of
the last after the backbone's final norm. A linear one is a multinomial logistic regression, by
L-BFGS from zero in float64 on all training images at once. One of hypervectors has a hidden layer,
and is trained by AdamW for the least squared error to the key of each image's class. Inputs are
standardised for the fit, and that is folded into the weights.
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
"""Weight of the penalty, half the squared norm of the weights of standardised inputs."""

HELD_OUT = 5
"""One image in so many of each class is held out."""

ITERATIONS = 500

DIMS, HIDDEN = 1000, 1000
"""Of hypervectors: their length, and the units of the hidden layer."""

EPOCHS, BATCH, RATE = 30, 64, 1e-3


class FittedHead(NamedTuple):
    """What was fitted.

    Attributes:
        path: The head's file.
        classes: Names of the classes, in the order of their labels.
        trained: Images that it was fitted to.
        held_out: Images that it was not.
        accuracy: Share of the held-out images that it classifies right.
    """

    path: Path
    classes: tuple[str, ...]
    trained: int
    held_out: int
    accuracy: float


@dataclass(frozen=True)
class PooledFeatures(Stage):
    """Extracts what the linear part takes of each image, float32; an item is an image's id.

    Attributes:
        recipe: Whose backbone it is.
        task: Whose blocks, and whose source if there are no images.
        images: Folder of them.
        ids: Of the images; all in the folder if empty.
    """

    recipe: Recipe
    task: str
    images: str | None = None
    ids: tuple[str, ...] = ()

    name, unit = "extract", "images"

    @cached_property
    def models(self) -> Models:
        """The recipe's backbone."""
        return Models(self.recipe)

    @cached_property
    def source(self) -> Any:
        """The images, in a folder per class, or the task's source."""
        return (
            ImageFolder(self.task, 0, self.images) if self.images else self.models.source(self.task)
        )

    @cached_property
    def head(self) -> ClsHead:
        """An empty head of the backbone's width, with its norm."""
        backbone, layers = self.models.backbone, len(self.recipe.tasks[self.task].blocks)
        if backbone.norm is None or backbone.width is None:
            raise BuildError(f"backbone {backbone.name} has no final norm, which the head needs")
        head = ClsHead(backbone.width * ClsHead.share(layers), 1, layers)
        head.norm = backbone.norm
        return head.requires_grad_(False)

    def items(self) -> list[str]:
        return list(self.ids) or sorted(self.source.entries)

    def run(self, item: str) -> tuple[np.ndarray, Any]:
        """Return what the linear part takes, and the truth."""
        sample = self.source.sample(item)
        feature = self.models.extracted(self.task, sample.inputs, item)
        with torch_state(grad=False):
            return self.head.pooled(torch.from_numpy(feature))[0].numpy(), sample.truth

    def collected(self, workers: int, look: Progress) -> tuple[np.ndarray, np.ndarray]:
        """Return what :meth:`run` returns of all items, in their order."""
        items = self.items()
        with Executor(workers) as executor:
            found = dict(drive(self, executor, look, items))
        inputs, truths = zip(*(found[item] for item in items), strict=True)
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
        recipe: A recipe, its name, or the path of its TOML file; its head need not be there.
        images: Folder of them; no image that the dataset may take as a source.
        out: The file to write, ``.safetensors``.
        task: Whose blocks the head is for; may be left out if there is one task.
        kind: Of the head: for the tasks `classification` and `fidelity`, or for `hypervector`.
        dims: Length of hypervectors.
        workers: Processes.
        progress: Notified of stages and their progress; optional.

    Raises:
        BuildError: There is no such task, the images are the dataset's, or in fewer than two
            classes, or one is damaged.
    """
    check_guard()
    recipe, look = load_recipe(recipe), progress or Silent()
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
    assert stage.head is not None  # before anything is extracted
    pooled, labels = stage.collected(workers, look)
    inputs, held_out = pooled.astype(np.float64), held_out_of(labels)
    look.start("fit", 1, "heads")
    given = inputs[~held_out], labels[~held_out]
    if kind == "linear":
        weight, bias = fit_linear(*given, len(classes))
        tensors = {"weight": weight.astype(np.float32), "bias": bias.astype(np.float32)}
        right = (inputs[held_out] @ weight.T + bias).argmax(axis=1) == labels[held_out]
    else:
        tensors = fit_hypervector(*given, random_keys(len(classes), dims))
        right = predicted_keys(tensors, inputs[held_out]) == labels[held_out]
    look.advance()
    look.finish()
    accuracy = float(right.mean()) if right.size else math.nan
    tensors |= {f"norm.{k}": v.numpy() for k, v in stage.head.norm.state_dict().items()}
    path = Path(out).absolute()
    write_tensors(path, tensors, {"classes": classes, "held_out_accuracy": f"{accuracy:.4f}"})
    return FittedHead(path, classes, int((~held_out).sum()), right.size, accuracy)


def held_out_of(labels: np.ndarray) -> np.ndarray:
    """Return which images are held out: of each class the same one in so many, at random."""
    held_out = np.zeros(len(labels), bool)
    rng = np.random.default_rng(0)
    for label in range(int(labels.max()) + 1):
        places = rng.permutation(np.flatnonzero(labels == label))
        held_out[places[len(places) - len(places) // HELD_OUT :]] = True
    return held_out


def fit_linear(
    inputs: np.ndarray, labels: np.ndarray, classes: int, decay: float = DECAY
) -> tuple[np.ndarray, np.ndarray]:
    """Return weights (classes, D) and biases of a multinomial logistic regression, float64.

    Minimised is the mean cross-entropy plus ``decay / 2`` times the squared norm of the weights of
    the standardised inputs.

    Args:
        inputs: float64 (images, D).
        labels: Whole numbers (images,), below `classes`.
        classes: How many.
        decay: Of the weights.
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
    """Return the tensors, but for the norm, of a head that answers with the keys of classes.

    Args:
        inputs: float64 (images, D).
        labels: Whole numbers (images,), below the number of keys.
        keys: (classes, dims) of -1 and 1.
        seed: Of the first weights and of the order of the images.
    """
    mean, deviation = _moments(inputs)
    dims, rng = keys.shape[1], np.random.default_rng(seed)
    with one_thread(), torch_state(grad=True):
        x = torch.from_numpy(((inputs - mean) / deviation).astype(np.float32))
        target = torch.from_numpy(keys.astype(np.float32)[labels])
        hidden, last = torch.nn.Linear(x.shape[1], HIDDEN), torch.nn.Linear(HIDDEN, dims)
        for layer in (hidden, last):
            bound = 1 / math.sqrt(layer.in_features)  # as torch draws them
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
        found = {name: value.numpy() for name, value in network.state_dict().items()}
    scaled = found["0.weight"] / deviation
    return {
        "hidden.weight": scaled.astype(np.float32),
        "hidden.bias": (found["0.bias"] - scaled @ mean).astype(np.float32),
        "weight": found["2.weight"],
        "bias": found["2.bias"],
        "keys": keys.astype(np.float32),
    }


def predicted_keys(tensors: dict[str, np.ndarray], inputs: np.ndarray) -> np.ndarray:
    """Return the places of the nearest keys, (images,), by tensors of :func:`fit_hypervector`."""
    hidden = np.maximum(inputs @ tensors["hidden.weight"].T + tensors["hidden.bias"], 0)
    return ((hidden @ tensors["weight"].T + tensors["bias"]) @ tensors["keys"].T).argmax(axis=1)


def _moments(inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of each input; 1 for those that are constant."""
    mean, deviation = inputs.mean(axis=0), inputs.std(axis=0)
    deviation[deviation < 1e-9 * max(1.0, float(deviation.max()))] = 1.0
    return mean, deviation


def _check_apart(stage: PooledFeatures, items: Sequence[str]) -> None:
    """Check that no image is one that the dataset may take as a source."""
    spec = stage.recipe.tasks[stage.task].source
    if spec.kind != "image_folder":
        return
    try:
        others = stage.models.source(stage.task)
    except BuildError:  # its images are not there yet
        return
    taken = {entry.image.resolve() for entry in others.entries.values()}  # type: ignore[attr-defined]
    for item in items:
        image = stage.source.entries[item].image
        if image.resolve() in taken:
            raise BuildError(f"{image}: is an image of the dataset; train the head on other images")
