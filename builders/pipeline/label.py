"""Compute labels: the task's score and loss and the baseline metrics of decoded features.

`scoring_models` recreates the tasks of a finished dataset, which score features as in its build.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from cfqa_data.access.folder import Folder
from cfqa_data.access.weights import named_path
from cfqa_data.builders.pipeline.context import Models
from cfqa_data.builders.tasks.base import Task
from cfqa_data.errors import BuildError, CfqaError, RecipeError, prefixed
from cfqa_data.format.quantizers import Quantizer
from cfqa_data.format.resources import PACKAGE
from cfqa_data.format.schema import BASELINES
from cfqa_data.recipe.load import Recipe
from cfqa_data.recipe.portable import recipe_of, remedy

__all__ = [
    "Scored",
    "baseline_values",
    "batch_of_levels",
    "label_values",
    "score",
    "scoring_models",
    "scoring_recipe",
    "scoring_weights",
]

Scored: TypeAlias = tuple[np.ndarray, np.ndarray]
"""Scores and losses, float64 (B,) each; losses are NaN where they are unknown."""

BATCH_POINTS = 1 << 24
"""Maximum feature points per batch; metrics need about 30 bytes of memory for each."""


def batch_of_levels(points: int, levels: int) -> int:
    """Return how many levels of a feature with `points` points are labelled in one batch."""
    return min(levels, max(1, BATCH_POINTS // points))


def score(task: Task, features: np.ndarray, truth: Any, what: str) -> Scored:
    """Return the task's scores and losses of features of one source.

    Args:
        task: Task that scores them.
        features: Decoded features, float32 (B, N, C, T, D).
        truth: Truth of the source.
        what: Description of the features for the error message.

    Returns:
        Scores and losses, float64 (B,) each; losses are NaN where the task has none.

    Raises:
        BuildError: If the task rejects the features or the truth, or a score is not finite.
    """
    with prefixed(what, BuildError):
        scores, losses = task.scores(features, truth)
    if not np.isfinite([scores, losses] if task.facts.loss else scores).all():
        raise BuildError(f"{what}: score {scores} or loss {losses} is not a finite number")
    return scores, losses


def baseline_values(original: np.ndarray, decoded: np.ndarray) -> dict[str, np.ndarray]:
    """Return the float64 (B,) values of each baseline metric between decoded features and original.

    Values are NaN where a metric is undefined, such as the CKA of a single token.

    Args:
        original: Original, float32 (N, C, T, D).
        decoded: Decoded features of that original, float32 (B, N, C, T, D).
    """
    import torch

    from cfqa_data.eval.metrics import create_metric

    # In float64, labels of different machines differ by no more than the rounding of the inputs.
    x, y = torch.from_numpy(original[None]).double(), torch.from_numpy(decoded).double()
    return {
        name: np.asarray(create_metric(name)(x, y), np.float64).reshape(len(decoded))
        for name in BASELINES
    }


def label_values(
    original: np.ndarray,
    stored: Sequence[np.ndarray],
    quantizer: Quantizer | None,
    scored: Callable[[int, np.ndarray], Scored],
) -> dict[str, np.ndarray]:
    """Return score, loss and baseline metrics of a source's decoded levels, float64 (L,) each.

    Args:
        original: Original, float32 (N, C, T, D).
        stored: Codes or values of each level, (N, C, T, D).
        quantizer: Quantiser of the codes; None if `stored` are values.
        scored: Function that scores decoded features (B, N, C, T, D) from a first level on.
    """
    parts = []
    step = batch_of_levels(original.size, len(stored))
    for first in range(0, len(stored), step):
        decoded = np.stack(stored[first : first + step])
        if quantizer is not None:
            decoded = quantizer.dequantize(decoded)
        scores, losses = scored(first, decoded)
        parts.append({"score": scores, "loss": losses, **baseline_values(original, decoded)})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def scoring_recipe(folder: Folder) -> Recipe:
    """Return the recipe that a dataset was built with.

    Raises:
        CfqaError: If a class of the recipe is not installed, or may not run on untrusted data.
    """
    recipe = recipe_of(folder.manifest, [_name(plugin) for plugin in folder.plugins])
    if folder.untrusted and not all(entry.builtin for _, entry in Models(recipe).classes()):
        raise RecipeError("classes of other packages do not run on untrusted data")
    return recipe


def scoring_weights(folder: Folder, recipe: Recipe, task: str) -> dict[str, str]:
    """Return the paths, by URI, of a task's weights that are not at the place of their URI.

    Raises:
        CfqaError: If weights are missing, have another hash, or are named by an untrusted dataset.
    """
    paths = {}
    if task not in recipe.tasks:
        raise RecipeError(f"the recipe has no task {task}")
    for uri in filter(None, (recipe.backbone.weights, recipe.tasks[task].head)):
        if uri not in folder.manifest.weights:
            raise RecipeError(f"{uri} was not used for them")
        if folder.untrusted and not uri.startswith(PACKAGE):
            raise RecipeError(f"{uri} is named by an untrusted recipe")
        path = folder.find_weights(uri)
        if path != named_path(uri):
            paths[uri] = str(path)
    return paths


def scoring_models(folder: Folder, task: str) -> Models:
    """Return the models that score a task's features.

    Raises:
        CfqaError: If the dataset was not built from a recipe, or a class or weights are missing.
    """
    try:
        recipe = scoring_recipe(folder)
        paths = scoring_weights(folder, recipe, task)
        models = Models(recipe.with_paths(lambda uri: paths.get(uri, uri)))
        models.task(task)
    except (CfqaError, OSError) as error:
        where = f"{folder.files.location}: features of {task} cannot be scored"
        raise CfqaError(f"{where}: {error}{remedy(folder.manifest)}") from None
    return models


def _name(plugin: str | type) -> str:
    """Return the name of a plugin as `module:Class`."""
    return plugin if isinstance(plugin, str) else f"{plugin.__module__}:{plugin.__qualname__}"
