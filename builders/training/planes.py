"""Create training data of the learned codec: k-means tables, and planes quantised with them.

    python -m cfqa_data.builders.training.planes --recipe mini --out planes.safetensors

Both are computed from the source's training inputs, which are in no dataset. As in the published
code, the 8-bit tables are fitted to ten features per task, with one table per layer.
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
"""Task -> default number of features on which the learned codec is trained."""

OTHERS = 400
"""Number of features of any other task."""

FITTED_ON = 10
"""Number of features per task to which k-means tables are fitted."""

BITS = 8
PLANE_SEED, TABLE_SEED = 100, 900
_CHUNK = 50


def training_features(models: Models, task: str, count: int, seed: int) -> Iterator[np.ndarray]:
    """Yield the features of `count` training inputs of a task, float32 (N, C, T, D)."""
    source = models.source(task)
    for chunk, start in enumerate(range(0, count, _CHUNK)):
        for inputs in source.training_inputs(min(_CHUNK, count - start), seed + chunk):
            yield models.features(task, inputs)


def fit_tables(models: Models, task: str, count: int = FITTED_ON) -> np.ndarray:
    """Return the increasing k-means centres of each layer of a task, float32 (C, 256)."""
    features = np.stack(list(training_features(models, task, count, TABLE_SEED)))
    return np.stack(
        [fit_kmeans(features[:, :, layer].ravel(), BITS) for layer in range(features.shape[2])]
    )


def training_planes(models: Models, task: str, centers: np.ndarray, count: int) -> np.ndarray:
    """Return training features as planes of codes, uint8 (count, N*T, C*D)."""
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


def _write(options: argparse.Namespace) -> None:
    """Write the tables of a recipe's tasks and their training planes."""
    recipe = load_recipe(options.recipe, fitted=False)
    models = Models(recipe)
    tables, planes = {}, {}
    for task in recipe.tasks:
        tables[task] = fit_tables(models, task)
        planes[task] = training_planes(models, task, tables[task], getattr(options, task, OTHERS))
        print(f"{task}: {planes[task].shape[0]} planes of {planes[task].shape[1:]}")
    if options.tables:
        write_tensors(options.tables, tables)
    write_tensors(options.out, planes)


if __name__ == "__main__":
    sys.exit(main())
