"""Recipes: everything that decides what a dataset holds."""

from cfqa_data.recipe.load import list_recipes, load_recipe
from cfqa_data.recipe.spec import BackboneSpec, Ladder, Recipe, SourceSpec, TaskSpec

__all__ = [
    "BackboneSpec",
    "Ladder",
    "Recipe",
    "SourceSpec",
    "TaskSpec",
    "list_recipes",
    "load_recipe",
]
