"""Recreate the input of a source, an image or a text, by the dataset's source."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from cfqa_data.builders.pipeline.context import Models
from cfqa_data.builders.pipeline.label import scoring_recipe
from cfqa_data.builders.sources.base import Source, check_image
from cfqa_data.errors import CfqaError
from cfqa_data.extras import extras
from cfqa_data.recipe.portable import remedy
from cfqa_data.recipe.spec import SOURCE_PATHS
from cfqa_data.registry import naming_user_code

if TYPE_CHECKING:
    from PIL.Image import Image

    from cfqa_data.access.dataset import Dataset
    from cfqa_data.access.folder import Folder

__all__ = ["source_image", "source_input", "source_of"]


@extras("build")
def source_image(dataset: Dataset, source_id: str) -> Image:
    """Return the image of a source; see :meth:`cfqa_data.Dataset.image`."""
    from PIL import Image

    content = source_input(dataset, source_id)
    if not isinstance(content, np.ndarray):
        what = "a text" if isinstance(content, str) else "not an image"
        raise CfqaError(f"{dataset.location}: {source_id!r} has no image: its input is {what}")
    return Image.fromarray(content)


def source_input(dataset: Dataset, source_id: str) -> np.ndarray | str | None:
    """Return the input of a source: an image, uint8 RGB (H, W, 3), or a text; None for others.

    Raises:
        CfqaError: If there is no such source, or its input is not available.
    """
    folder = dataset._folder
    task = folder.task_of(source_id)
    try:
        with naming_user_code(CfqaError):
            source = source_of(folder, task)
            image = source.image(source_id)
            text = None if image is not None else source.sample(source_id).inputs
    except (CfqaError, OSError) as error:
        where = f"{dataset.location}: {source_id!r} has no image here"
        raise CfqaError(f"{where}: {error}{remedy(dataset.manifest)}") from None
    if image is None:
        return text if isinstance(text, str) else None
    return check_image(image, f"{type(source).__name__}.image")


def source_of(folder: Folder, task: str) -> Source:
    """Return the source of a task's samples, created once per open folder.

    Raises:
        CfqaError: If the source or its data are missing, or an untrusted recipe names its files.
    """
    sources = _SOURCES.setdefault(folder, {})
    if task not in sources:
        sources[task] = _make_source(folder, task)
    return sources[task]


def _make_source(folder: Folder, task: str) -> Source:
    recipe = scoring_recipe(folder)
    if task not in recipe.tasks:
        raise CfqaError(f"the recipe has no task {task}")
    options: dict[str, Any] = dict(recipe.tasks[task].source.options)
    if folder.untrusted and (named := [key for key in SOURCE_PATHS if options.get(key)]):
        raise CfqaError(
            f"its source reads files that an untrusted recipe names ({', '.join(named)})"
        )
    return Models(recipe).source(task, truths=False)


_SOURCES: WeakKeyDictionary[Folder, dict[str, Source]] = WeakKeyDictionary()
"""Open folder -> task -> source."""
