"""Recipes: the complete specification of a dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cfqa_data.lazy import lazy_modules

if TYPE_CHECKING:
    from cfqa_data.recipe.load import list_recipes, load_recipe
    from cfqa_data.recipe.spec import BackboneSpec, CodecSpec, Recipe, SourceSpec, TaskSpec

__all__ = [
    "BackboneSpec",
    "CodecSpec",
    "Recipe",
    "SourceSpec",
    "TaskSpec",
    "list_recipes",
    "load_recipe",
]

_HOMES = dict.fromkeys(__all__, "cfqa_data.recipe.spec")
_HOMES |= dict.fromkeys(("list_recipes", "load_recipe"), "cfqa_data.recipe.load")
__getattr__, __dir__ = lazy_modules(__name__, __path__, _HOMES)
