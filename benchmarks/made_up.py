"""The manifest of folders that benchmarks make up."""

from __future__ import annotations

import pyarrow as pa

from cfqa_data.format.format_1 import read_tasks
from cfqa_data.format.manifest import Manifest, package_versions
from cfqa_data.integrity.health import health
from cfqa_data.recipe.load import Recipe

__all__ = ["manifest_of"]


def manifest_of(
    recipe: Recipe, shape: tuple[int, ...], ids: list[str], labels: pa.Table
) -> Manifest:
    """Return the manifest of a folder of one task, `cls`."""
    told = recipe.to_dict()
    return Manifest(
        name=recipe.name,
        tier="full",
        recipe=told,
        tasks=read_tasks(told, {"cls": {"shape": list(shape), "sources": ids}}),
        versions=package_versions(),
        health=tuple(health(labels)),
    )
