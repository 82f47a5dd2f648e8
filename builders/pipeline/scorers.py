"""The tasks of a finished dataset, which score features as they did when it was built."""

from __future__ import annotations

from cfqa_data.access.folder import Folder
from cfqa_data.access.weights import named_path
from cfqa_data.builders.pipeline.context import Models
from cfqa_data.errors import CfqaError, RecipeError
from cfqa_data.format.resources import PACKAGE
from cfqa_data.recipe.load import Recipe
from cfqa_data.recipe.portable import recipe_of, remedy

__all__ = ["scoring_models", "scoring_recipe", "scoring_weights"]


def scoring_recipe(folder: Folder) -> Recipe:
    """Return the recipe that a dataset was made with.

    Raises:
        CfqaError: a class of it is not here, or may not be run on a stranger's data.
    """
    recipe = recipe_of(folder.manifest, [_name(plugin) for plugin in folder.plugins])
    if folder.untrusted and not all(found.builtin for _, found in Models(recipe).classes()):
        raise RecipeError("classes of other packages are not run on a stranger's data")
    return recipe


def scoring_weights(folder: Folder, recipe: Recipe, task: str) -> dict[str, str]:
    """Return where the weights that a task scores with are, by URI, if not where it says.

    Raises:
        CfqaError: some are not here, have another hash, or are named by a stranger.
    """
    found = {}
    if task not in recipe.tasks:
        raise RecipeError(f"the recipe has no task {task}")
    for uri in filter(None, (recipe.backbone.weights, recipe.tasks[task].head)):
        if uri not in folder.manifest.weights:
            raise RecipeError(f"{uri} had no part in them")
        if folder.untrusted and not uri.startswith(PACKAGE):
            raise RecipeError(f"{uri} is named by a stranger")
        path = folder.find_weights(uri)
        if path != named_path(uri):
            found[uri] = str(path)
    return found


def scoring_models(folder: Folder, task: str) -> Models:
    """Return what scores a task's features.

    Raises:
        CfqaError: the dataset was not built, or what scored it is not here.
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
