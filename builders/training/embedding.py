"""Train the embedding of a retrieval task, and compute its gallery.

    python -m cfqa_data.builders.training.embedding --recipe ret --features pooled.safetensors --out head_ret.safetensors

The pooled features of all images are extracted once, into the file `--features`. The loss is a
triplet loss (the farthest image of the same identity against the nearest of another) over batches
of several images per identity, plus the cross-entropy of a linear classifier of identities, which
is discarded. The same features give the same bytes.

References: Hermans, Beyer and Leibe, In defense of the triplet loss for person re-identification,
2017; Luo et al., Bag of tricks and a strong baseline for deep person re-identification, 2019.
"""  # noqa: E501

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cfqa_data.builders.sources.instances import JUNK, Instances
from cfqa_data.builders.tasks.retrieval import GALLERY, Embedder, average_precision, ranked
from cfqa_data.builders.training.head import PooledFeatures
from cfqa_data.console.terminal import show_progress
from cfqa_data.errors import BuildError
from cfqa_data.format.checkpoints import read_tensors
from cfqa_data.format.storage import write_tensors
from cfqa_data.paths import expanded
from cfqa_data.processes.executor import one_thread
from cfqa_data.recipe.load import Recipe, load_recipe
from cfqa_data.scripts import run_script
from cfqa_data.torch_state import torch_state

__all__ = ["average_precisions", "main", "pooled_features", "train"]

IDENTITIES, IMAGES = 32, 4
"""Identities in a batch, and images of each."""

STEPS, RATE, DECAY, MARGIN, SMOOTHING = 800, 1e-3, 1e-2, 0.3, 0.1

QUERIES = 200
"""Number of queries on which the mean average precision is reported."""

PARTS = ("gallery", "training", "queries")

Module = TypeVar("Module", bound=nn.Module)


def pooled_features(
    recipe: Recipe, task: str, path: Path, workers: int = 2
) -> dict[str, np.ndarray]:
    """Return the embedding's inputs for all images, from a file that is created if missing.

    Returns:
        Arrays ``gallery``, ``training`` and ``queries`` of inputs, float32 (images, inputs); and
        ``gallery_truths`` etc. of identity and camera, int64 (images, 2).

    Raises:
        BuildError: If the source has no gallery, or shares an identity with the training set.
    """
    if not path.exists():
        source = PooledFeatures(recipe, task).source
        if not isinstance(source, Instances):
            raise BuildError(f"the source of {task} has no gallery or no training identities")
        queries = (sample.source_id for sample in islice(source.samples(), QUERIES))
        names = (source.gallery_names(), source.embedding_names(), queries)
        extracted = {}
        with show_progress() as progress:
            for part, ids in zip(PARTS, names, strict=True):
                stage = PooledFeatures(recipe, task, ids=tuple(ids))
                extracted[part], extracted[f"{part}_truths"] = stage.collect(workers, progress)
        write_tensors(path, extracted)
    arrays = {name: tensor.numpy() for name, tensor in read_tensors(path).items()}
    gallery, trained, _ = ({*arrays[f"{part}_truths"][:, 0].tolist()} - {JUNK} for part in PARTS)
    if both := sorted(gallery & trained):
        raise BuildError(f"{path}: identity {both[0]} is both in the gallery and in training")
    return arrays


def train(
    make: Callable[[], Module],
    inputs: np.ndarray,
    truths: np.ndarray,
    *,
    steps: int = STEPS,
    identities: int = IDENTITIES,
    rate: float = RATE,
    seed: int = 0,
) -> Module:
    """Train a module to embed inputs so that identities can be distinguished.

    Args:
        make: Function that creates the module, which maps (B, inputs) to (B, D).
        inputs: Training inputs, float32 (images, inputs).
        truths: Identity and camera of each image, int64 (images, 2); junk images are not used.
        steps: Number of training steps.
        identities: Number of identities in a batch, with four images each.
        rate: Maximum learning rate.
        seed: Seed of weights and batches.

    Returns:
        The trained module, in evaluation mode.

    Raises:
        BuildError: If there are fewer than three steps.
    """
    if steps < 3:
        raise BuildError(f"steps must be at least 3, not {steps}")
    usable = truths[:, 0] != JUNK
    _, labels = np.unique(truths[usable, 0], return_inverse=True)
    images = [np.flatnonzero(labels == label) for label in range(labels.max() + 1)]
    images = [indices for indices in images if len(indices) >= IMAGES]
    rng = np.random.default_rng(seed)
    with one_thread(), torch.random.fork_rng(devices=[]), torch_state(grad=True):
        torch.manual_seed(seed)
        x, y, module = torch.from_numpy(inputs[usable]), torch.from_numpy(labels), make().train()
        width = module(x[:2]).shape[1]
        linear = nn.Linear(width, int(labels.max()) + 1, bias=False)
        nn.init.normal_(linear.weight, std=0.001)
        classifier = nn.Sequential(nn.BatchNorm1d(width), linear)
        weights = [*(w for w in module.parameters() if w.requires_grad), *classifier.parameters()]
        optimiser = torch.optim.AdamW(weights, lr=rate, weight_decay=DECAY)
        warmup = max(0.05, 2 / steps)  # OneCycleLR needs at least one step of warm-up
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, steps, pct_start=warmup)
        for _ in range(steps):
            chosen = rng.choice(len(images), min(identities, len(images)), replace=False)
            batch = np.concatenate([rng.choice(images[n], IMAGES, replace=False) for n in chosen])
            embeddings = module(x[batch])
            loss = triplet_loss(embeddings, y[batch]) + functional.cross_entropy(
                classifier(embeddings), y[batch], label_smoothing=SMOOTHING
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return module.eval()


def triplet_loss(embeddings: Tensor, labels: Tensor) -> Tensor:
    """Return the batch-hard triplet loss of embeddings (B, D) with labels (B,)."""
    distances = torch.cdist(embeddings, embeddings)
    same = labels[:, None] == labels
    farthest = distances.masked_fill(~same, -torch.inf).amax(dim=1)
    nearest = distances.masked_fill(same, torch.inf).amin(dim=1)
    loss: Tensor = functional.relu(farthest - nearest + MARGIN).mean()
    return loss


def average_precisions(
    queries: np.ndarray, truths: np.ndarray, gallery: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Return the average precision of each query, float64 (queries,).

    Args:
        queries: Embeddings of the queries, (queries, D).
        truths: Identity and camera of each query.
        gallery: Gallery, as for :func:`ranked`.
    """
    pairs = zip(queries, truths, strict=True)
    return np.array([average_precision(*ranked(*pair, gallery)) for pair in pairs])


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="ret", help="recipe of the backbone, blocks and source")
    parser.add_argument("--task", default="ret", help="the task of the recipe")
    parser.add_argument("--features", type=expanded, required=True, help="file of the inputs")
    parser.add_argument("--out", type=expanded, required=True, help="file of the head")
    parser.add_argument("--steps", type=int, default=STEPS, help="batches")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    return run_script(parser, arguments, _write)


def _write(options: argparse.Namespace) -> None:
    """Train an embedding and write it with its gallery, in float16."""
    recipe = load_recipe(options.recipe)
    arrays = pooled_features(recipe, options.task, options.features, options.workers)
    norm = PooledFeatures(recipe, options.task).head.norm
    layers, inputs = len(recipe.tasks[options.task].blocks), arrays["training"].shape[1]
    head = train(
        lambda: Embedder(inputs, inputs, layers),
        arrays["training"],
        arrays["training_truths"],
        steps=options.steps,
    )
    head.norm = norm
    state = head.half().state_dict()  # also rounds the head, which is measured below
    tensors = {name.removeprefix("linear."): tensor.numpy() for name, tensor in state.items()}
    embedded = {
        part: embeddings(head.float(), arrays[part]).astype(np.float16)
        for part in ("gallery", "queries")
    }
    tensors |= dict(zip(GALLERY, (embedded["gallery"], arrays["gallery_truths"]), strict=True))
    identities, cameras = arrays["gallery_truths"].T
    gallery = {"embeddings": embedded["gallery"], "identities": identities, "cameras": cameras}
    scores = average_precisions(embedded["queries"], arrays["queries_truths"], gallery)
    write_tensors(options.out, tensors, {"mean_average_precision": f"{scores.mean():.4f}"})
    share = np.mean(scores >= 0.5)
    print(f"mAP of {len(scores)} queries {scores.mean():.3f}, {share:.0%} of them at 0.5 or more")


@torch_state(grad=False)
def embeddings(module: nn.Module, inputs: np.ndarray) -> np.ndarray:
    """Return the embeddings of inputs, float32 (images, D)."""
    with one_thread():
        outputs: np.ndarray = module(torch.from_numpy(inputs)).numpy()
    return outputs


if __name__ == "__main__":
    sys.exit(main())
