"""JPEG before the backbone: accuracy by quality of a linear and a hypervector head, and t-SNE.

python examples/jpeg_classes.py OUT

Scenes of some shapes are told apart by two heads on the features of the embedded backbone, trained
on uncompressed images and tested on JPEG. Some shapes are held out: their images are to be noticed
as new, and then known by a few features, without training. Writes accuracy.csv, accuracy.png and
classes.png.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from cfqa_data.builders.pipeline.context import Models
from cfqa_data.builders.sources.base import Sample
from cfqa_data.builders.sources.scenes import NUM_COLOURS, NUM_TEXTURES
from cfqa_data.builders.sources.solids import SHAPES
from cfqa_data.builders.tasks.hypervector import HypervectorHead, random_keys
from cfqa_data.builders.training.head import fit_hypervector, fit_linear
from cfqa_data.codecs import get_codec
from cfqa_data.eval.report.classes import embed
from cfqa_data.processes.executor import one_thread
from cfqa_data.recipe.load import load_recipe
from cfqa_data.torch_state import torch_state

QUALITIES = (50, 20, 10, 5, 3, 1)
NAMES = tuple(SHAPES)
HELD_OUT = 3
"""The last shapes are in no training image."""

FEW = 5
"""Features of a new class by which it is known."""


class Features:
    """What both heads take of an image, at each quality; the first row is the image itself."""

    def __init__(self) -> None:
        self.models = Models(load_recipe("mini"))
        self.head = self.models.task("cls").head
        self.codec = get_codec("jpeg")

    @torch_state(grad=False)
    def of(self, inputs: np.ndarray) -> np.ndarray:
        feature = self.models.features("cls", inputs, "an image")
        return self.head.pooled(torch.from_numpy(feature))[0].numpy()

    def ladder(self, inputs: np.ndarray) -> list[np.ndarray]:
        decoded = (self.codec.decode(self.codec.encode(inputs, q)) for q in QUALITIES)
        return [self.of(inputs), *map(self.of, decoded)]


def shape_of(sample: Sample) -> int:
    """Return the number of the shape of the scene's largest solid."""
    return int(sample.truth) // (NUM_TEXTURES * NUM_COLOURS)


def interval(right: np.ndarray) -> tuple[float, float, float]:
    """Return a share and the ends of its 95% interval, by drawing images with replacement."""
    draws = np.random.default_rng(0).integers(0, len(right), (2000, len(right)))
    low, high = np.percentile(right[draws].mean(axis=1), [2.5, 97.5])
    return float(right.mean()), float(low), float(high)


def auroc(known: np.ndarray, new: np.ndarray) -> float:
    """Return how often something new has a higher score than something known."""
    higher = (new[:, None] > known).mean() + (new[:, None] == known).mean() / 2
    return float(higher)


def hypervector_head(tensors: dict[str, np.ndarray]) -> HypervectorHead:
    """Return the head of fitted tensors, for features that are pooled already."""
    hidden, inputs = tensors["hidden.weight"].shape
    classes, dims = tensors["keys"].shape
    head = HypervectorHead(inputs, (hidden, dims, classes))
    state = {name: torch.from_numpy(array) for name, array in tensors.items()}
    state |= {f"linear.{name}": state.pop(name) for name in ("weight", "bias")}
    head.load_state_dict(state, strict=False)
    return head.eval().requires_grad_(False)


def collect(extract: Callable, samples: Iterable[Sample], count: int) -> list[np.ndarray]:
    """Return what is extracted of each of some samples, and the numbers of their shapes."""
    found = [(extract(sample.inputs), shape_of(sample)) for sample in islice(samples, count)]
    return [np.array(part) for part in zip(*found, strict=True)]


@one_thread()
@torch_state(grad=False)
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--train", type=int, default=2000, help="training images")
    parser.add_argument("--test", type=int, default=400, help="test images")
    arguments = parser.parse_args()
    arguments.out.mkdir(exist_ok=True)

    features, known = Features(), len(NAMES) - HELD_OUT
    source = features.models.source("cls")
    inputs, shapes = collect(features.of, source.training_samples(seed=7), arguments.train)
    inputs = inputs.astype(np.float64)
    taught = shapes < known
    weight, bias = fit_linear(inputs[taught], shapes[taught], known)
    tensors = fit_hypervector(inputs[taught], shapes[taught], random_keys(known, 1000))
    head = hypervector_head(tensors)

    tests, labels = collect(features.ladder, source.samples(), arguments.test)
    old, new = tests[labels < known], tests[labels >= known]
    truth = labels[labels < known]

    def similarities(pooled: np.ndarray) -> np.ndarray:
        return head.similarities(head.respond(torch.from_numpy(pooled))).numpy()

    def share(pooled: np.ndarray) -> np.ndarray:
        logits = pooled.astype(np.float64) @ weight.T + bias
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        return odds / odds.sum(axis=1, keepdims=True)

    rows = []
    for place, quality in enumerate(("uncompressed", *QUALITIES)):
        for name, certainty in (("linear", share), ("hypervector", similarities)):
            scores = certainty(old[:, place])
            accuracy, low, high = interval(scores.argmax(axis=1) == truth)
            apart = auroc(-scores.max(axis=1), -certainty(new[:, place]).max(axis=1))
            rows.append((quality, name, accuracy, low, high, apart))
            print(f"{quality!s:>12} {name:12} {accuracy:.3f} [{low:.3f}, {high:.3f}] {apart:.3f}")
    with (arguments.out / "accuracy.csv").open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("quality", "head", "accuracy", "low", "high", "auroc of new classes"))
        table.writerows(rows)

    more = head
    for label in range(known, len(NAMES)):
        few = torch.from_numpy(inputs[shapes == label][:FEW].astype(np.float32))
        more = more.with_key(more.respond(few))
    guessed = more.similarities(more.respond(torch.from_numpy(tests[:, 0]))).numpy().argmax(axis=1)
    for what, of in (("known", labels < known), ("new", labels >= known)):
        accuracy, low, high = interval((guessed == labels)[of])
        print(
            f"with {FEW} features of each new class: {what} {accuracy:.3f} [{low:.3f}, {high:.3f}]"
        )

    plot_accuracy(rows, arguments.out / "accuracy.png")
    outputs = [head.respond(torch.from_numpy(old[:, n])).numpy() for n in range(old.shape[1])]
    plot_classes(np.stack(outputs), truth, arguments.out / "classes.png")


def plot_accuracy(rows: list[tuple], path: Path) -> None:
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for name, marker in (("linear", "o"), ("hypervector", "s")):
        of = [row for row in rows if row[1] == name]
        centre, low, high = np.array([row[2:5] for row in of]).T
        axes.errorbar(
            range(len(of)), centre, (centre - low, high - centre), marker=marker, capsize=3
        )
        axes.lines[-1].set_label(name)
    axes.set_xticks(range(len(of)), [str(row[0]) for row in of])
    axes.set(xlabel="JPEG quality", ylabel="accuracy", ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    figure.savefig(path, dpi=100)


def plot_classes(outputs: np.ndarray, truth: np.ndarray, path: Path) -> None:
    places = embed(outputs.reshape(-1, outputs.shape[-1])).reshape(*outputs.shape[:2], 2)
    flat = places.reshape(-1, 2)
    room = 0.04 * np.ptp(flat, axis=0)
    ends = np.stack([flat.min(axis=0) - room, flat.max(axis=0) + room], axis=1)
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    for place, quality in enumerate(("uncompressed", *QUALITIES)):
        axes = figure.add_subplot(2, 4, place + 1, xticks=[], yticks=[])
        axes.set_title(quality if place == 0 else f"quality {quality}")
        for label in np.unique(truth):
            axes.scatter(*places[place, truth == label].T, s=9, label=NAMES[label])
        axes.set(xlim=ends[0], ylim=ends[1])
    figure.legend(*axes.get_legend_handles_labels(), loc="lower right", markerscale=2)
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
