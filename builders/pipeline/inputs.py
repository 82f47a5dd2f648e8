"""Hash every file of a recipe that decides a dataset's bytes, except the images.

Those are the weights, the lists that choose sources or give their truth, and, of a folder of
images, the names in it and their labels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from cfqa_data.access.hub_weights import hub_weights
from cfqa_data.access.weights import hash_weights, resolve_weights
from cfqa_data.builders.sources.base import Source
from cfqa_data.format.manifest import hash_file
from cfqa_data.format.resources import HUB, locate
from cfqa_data.recipe.load import Recipe
from cfqa_data.recipe.portable import rename

__all__ = ["hash_sources", "hash_uris", "pinned", "weights_of"]


def pinned(recipe: Recipe) -> Recipe:
    """Return the recipe with the commit of all weights on the Hub, which are fetched for that.

    Raises:
        CfqaError: some are not there, or cannot be reached.
    """
    if not any(uri.startswith(HUB) for uri in recipe.paths):
        return recipe
    return recipe.with_paths(lambda uri: hub_weights(uri).pinned() if uri.startswith(HUB) else uri)


def weights_of(recipe: Recipe) -> list[str]:
    """Return the URIs of all weights of a recipe, sorted: backbone, heads, models of codecs."""
    uris = {recipe.backbone.weights, *(spec.head for spec in recipe.tasks.values())}
    for spec in recipe.tasks.values():
        uris.update(*(codec_spec.weights for codec_spec in spec.codecs.values()))
    return sorted(uri for uri in uris if uri)


def hash_uris(uris: Iterable[str]) -> dict[str, str]:
    """Return the hash of weights by their URI.

    Raises:
        CfqaError: some are not there.
    """
    return {uri: hash_weights(resolve_weights(uri)) for uri in sorted(uris)}


def hash_sources(recipe: Recipe, sources: Mapping[str, Source]) -> dict[str, str]:
    """Return the hashes of what decides which images the sources give, and with which truth.

    Args:
        recipe: that the sources are of.
        sources: by task.

    Returns:
        Name -> SHA-256: of each list by its URI, or by that of the option that it lies in or
        beside; of the images' names and labels, by the URI of their root.
    """
    hashes: dict[str, str] = {}
    values_by_root: dict[str, list[Any]] = {}  # of all tasks with images below a root
    paths = recipe.paths
    for task, source in sources.items():
        options = recipe.tasks[task].source.options
        uris = [str(value) for value in options.values() if value in paths]
        names = {locate(uri).as_posix(): uri for uri in uris}
        files, values = source.decides()
        for path in files:
            hashes[rename(path.as_posix(), names)] = hash_file(path)
        if values is not None:
            root = str(options.get("root", f"tasks.{task}.source"))
            values_by_root.setdefault(root, []).append(values)
    for root, lists in values_by_root.items():
        text = json.dumps(lists if len(lists) > 1 else lists[0])
        hashes.setdefault(root, hashlib.sha256(text.encode()).hexdigest())
    return hashes
