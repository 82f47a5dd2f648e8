"""Pictures of disagreements of a metric and the label: source images and token errors."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cfqa_data.errors import CfqaError
from cfqa_data.extras import extras

with extras("build"):
    from PIL import Image

if TYPE_CHECKING:
    from cfqa_data.access.dataset import Dataset

__all__ = ["Pictures"]

MAX_SIDE = 96
"""Maximum width and height of a source image in pixels."""

BRIGHTEST = 2.0
"""Token error with the brightest colour, in standard deviations of the original's tokens."""


class Pictures:
    """Pictures as data URLs; None where the dataset has no picture.

    Args:
        dataset: The dataset that was scored.
        items: Source, codec and level of the compressed features to show.
    """

    def __init__(self, dataset: Dataset, items: Iterable[tuple[str, str, int]]) -> None:
        self._dataset = dataset
        by_source: dict[str, list[tuple[str, int]]] = {}
        for source, codec, level in dict.fromkeys(items):
            by_source.setdefault(source, []).append((codec, level))
        self._images: dict[str, str | None] = {}
        self._errors: dict[tuple[str, str, int], str | None] = {}
        for source, versions in by_source.items():  # read each original once
            self._images[source] = self._image(source)
            self._errors |= self._error_maps(source, versions)

    @property
    def any(self) -> bool:
        """Whether there is any picture."""
        return any(self._images.values()) or any(self._errors.values())

    def image(self, source: str) -> str | None:
        """Return the image of a source as a data URL."""
        return self._images[source]

    def errors(self, source: str, codec: str, level: int) -> str | None:
        """Return a map of a compressed feature's token errors, from black (0) to `BRIGHTEST`."""
        return self._errors[source, codec, level]

    def _image(self, source: str) -> str | None:
        try:
            image = self._dataset.image(source)
        except CfqaError:  # the images are not available here
            return None
        image.thumbnail((MAX_SIDE, MAX_SIDE))
        return _data_url(image, quality=75)

    def _error_maps(
        self, source: str, versions: list[tuple[str, int]]
    ) -> dict[tuple[str, str, int], str | None]:
        grid = self._dataset.grid(self._dataset._folder.task_of(source))
        if grid is None:
            return {(source, *version): None for version in versions}
        original = self._dataset.original(source)[:, :, grid.prefix_tokens :].astype(np.float64)
        variance = np.square(original - original.mean(axis=2, keepdims=True)).mean(axis=(2, 3))
        maps: dict[tuple[str, str, int], str | None] = {}
        for codec, level in versions:
            compressed = self._dataset.compressed(source, codec, level)[:, :, grid.prefix_tokens :]
            squares = np.square(compressed - original).mean(axis=3)
            error = np.sqrt((squares / variance.clip(1e-30)[..., None]).mean(axis=1))
            views = error.reshape(-1, grid.rows, grid.columns)  # side by side
            maps[source, codec, level] = _data_url(Image.fromarray(_colours(np.hstack(views))))
        return maps


def _colours(errors: NDArray[Any]) -> NDArray[np.uint8]:
    from matplotlib import colormaps  # importing it creates a settings folder

    share = (errors / BRIGHTEST).clip(0, 1)

    return np.asarray(255 * colormaps["inferno"](share)[..., :3], np.uint8)


def _data_url(image: Any, **options: Any) -> str:
    data = io.BytesIO()
    image.save(data, "WEBP", lossless=not options, method=4, **options)
    return "data:image/webp;base64," + base64.b64encode(data.getvalue()).decode()
