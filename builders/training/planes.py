"""Training data of the learned codec: k-means tables, and planes of features quantised with them.

    python -m cfqa_data.builders.training.planes --recipe mini --out planes.safetensors

Both come from the source's training scenes, which no dataset holds. As published, the 8-bit tables
are fitted on ten features per task, one table per layer.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping

import numpy as np

from cfqa_data.builders.pipeline.context import Models
from cfqa_data.format.packing import pack
from cfqa_data.format.quantizers import KMeansQuantizer, fit_kmeans
from cfqa_data.format.storage import write_tensors
from cfqa_data.paths import expanded
from cfqa_data.recipe.load import load_recipe
from cfqa_data.scripts import run_script

__all__ = ["COUNTS", "FITTED_ON", "fit_tables", "main", "training_features", "training_planes"]

COUNTS: Mapping[str, int] = {"cls": 1500, "seg": 750, "dpt": 400}
"""Features per task that the learned codec is trained on, by default."""

OTHERS = 400
"""Features of any other task."""

FITTED_ON = 10
"""Features per task that its k-means tables are fitted on."""

BITS = 8
PLANE_SEED, TABLE_SEED = 100, 900
_CHUNK = 50


def training_features(models: Models, task: str, count: int, seed: int) -> Iterator[np.ndarray]:
    """Yield float32 (N, C, T, D) features of `count` training images of a task."""
    source = models.source(task)
    for chunk, start in enumerate(range(0, count, _CHUNK)):
        for inputs in source.training_inputs(min(_CHUNK, count - start), seed + chunk):
            yield models.features(task, inputs)


def fit_tables(models: Models, task: str, count: int = FITTED_ON) -> np.ndarray:
    """Return the k-means values of each layer of a task, float32 (C, 256), increasing."""
    features = np.stack(list(training_features(models, task, count, TABLE_SEED)))
    return np.stack(
        [fit_kmeans(features[:, :, layer].ravel(), BITS) for layer in range(features.shape[2])]
    )


def training_planes(models: Models, task: str, centers: np.ndarray, count: int) -> np.ndarray:
    """Return uint8 (count, N*T, C*D): training features as the codec will see them."""
    quantizer = KMeansQuantizer(BITS, tuple(map(tuple, centers.tolist())))
    features = training_features(models, task, count, PLANE_SEED)
    return np.stack([pack(quantizer.quantize(feature)) for feature in features])


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--recipe", default="mini", help="recipe of the backbone, blocks and sources"
    )
    parser.add_argument(
        "--out", type=expanded, required=True, help="safetensors file of the planes"
    )
    parser.add_argument("--tables", type=expanded, help="safetensors file of the tables to write")
    for task, count in COUNTS.items():
        parser.add_argument(f"--{task}", type=int, default=count, help=f"{task} features")
    return run_script(parser, arguments, _write)


def _write(chosen: argparse.Namespace) -> None:
    """Write the tables of a recipe's tasks and their training planes."""
    recipe = load_recipe(chosen.recipe, fitted=False)
    models = Models(recipe)
    tables, planes = {}, {}
    for task in recipe.tasks:
        tables[task] = fit_tables(models, task)
        planes[task] = training_planes(models, task, tables[task], getattr(chosen, task, OTHERS))
        print(f"{task}: {planes[task].shape[0]} planes of {planes[task].shape[1:]}")
    if chosen.tables:
        write_tensors(chosen.tables, tables)
    write_tensors(chosen.out, planes)


if __name__ == "__main__":
    sys.exit(main())
