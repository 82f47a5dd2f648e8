"""Compute labels: the task's score and loss and the baseline metrics of decoded features.

The tasks of a finished dataset score features as they did when it was built.
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
"""Scores and losses, float64 (B,) each; losses are NaN where they are not known."""

BATCH_POINTS = 1 << 24
"""Feature points that are labelled at once; their metrics take some 30 bytes each."""


def batch_of_levels(points: int, levels: int) -> int:
    """Return how many levels of a feature of so many points are labelled at once."""
    return min(levels, max(1, BATCH_POINTS // points))


def score(task: Task, features: np.ndarray, truth: Any, what: str) -> Scored:
    """Return the task's scores and losses of features of one source.

    Args:
        task: What scores them.
        features: float32 (B, N, C, T, D).
        truth: The truth of the source.
        what: Names the features in the error.

    Returns:
        Scores and losses, float64 (B,) each; losses are NaN where the task has none.

    Raises:
        BuildError: The task does not take them or the truth, or a score is not finite.
    """
    with prefixed(what, BuildError):
        scores, losses = task.scores(features, truth)
    if not np.isfinite([scores, losses] if task.facts.loss else scores).all():
        raise BuildError(f"{what}: score {scores} or loss {losses} is not a finite number")
    return scores, losses


def baseline_values(original: np.ndarray, decoded: np.ndarray) -> dict[str, np.ndarray]:
    """Return each baseline's float64 (B,) values of decoded features against their one original.

    It is NaN where it is undefined: CKA of a single token.

    Args:
        original: float32 (N, C, T, D).
        decoded: float32 (B, N, C, T, D).
    """
    import torch

    from cfqa_data.eval.metrics import create_metric

    # float64, so that labels do not differ between machines by more than rounding of the inputs
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
        original: float32 (N, C, T, D).
        stored: Codes or values of each level.
        quantizer: Of the codes.
        scored: Scores from a level on decoded features (B, N, C, T, D).
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
    """Return the recipe that a dataset was made with.

    Raises:
        CfqaError: A class of it is not here, or may not be run on a stranger's data.
    """
    recipe = recipe_of(folder.manifest, [_name(plugin) for plugin in folder.plugins])
    if folder.untrusted and not all(found.builtin for _, found in Models(recipe).classes()):
        raise RecipeError("classes of other packages do not run on untrusted data")
    return recipe


def scoring_weights(folder: Folder, recipe: Recipe, task: str) -> dict[str, str]:
    """Return where the weights that a task scores with are, by URI, if not where it says.

    Raises:
        CfqaError: Some are not here, have another hash, or are named by a stranger.
    """
    found = {}
    if task not in recipe.tasks:
        raise RecipeError(f"the recipe has no task {task}")
    for uri in filter(None, (recipe.backbone.weights, recipe.tasks[task].head)):
        if uri not in folder.manifest.weights:
            raise RecipeError(f"{uri} was not used for them")
        if folder.untrusted and not uri.startswith(PACKAGE):
            raise RecipeError(f"{uri} is named by an untrusted recipe")
        path = folder.find_weights(uri)
        if path != named_path(uri):
            found[uri] = str(path)
    return found


def scoring_models(folder: Folder, task: str) -> Models:
    """Return what scores a task's features.

    Raises:
        CfqaError: The dataset was not built, or what scored it is not here.
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
    """Return `module:Class` of a class."""
    return plugin if isinstance(plugin, str) else f"{plugin.__module__}:{plugin.__qualname__}"
