"""Pictures of items on which a metric and the label disagree: source image, errors of tokens."""

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

SIDE = 96
"""Pixels of a source image, at most, along either side."""

WORST = 2.0
"""Error of a token, in units of the spread of the original's, from which on it is bright."""


class Pictures:
    """Makes pictures as data addresses; each once, and None where a dataset has none.

    Args:
        dataset: The dataset that was scored.
        items: Source, codec and level of all that are to be shown.
    """

    def __init__(self, dataset: Dataset, items: Iterable[tuple[str, str, int]]) -> None:
        self._dataset = dataset
        found: dict[str, list[tuple[str, int]]] = {}
        for source, codec, level in dict.fromkeys(items):
            found.setdefault(source, []).append((codec, level))
        self._images: dict[str, str | None] = {}
        self._errors: dict[tuple[str, str, int], str | None] = {}
        for source, versions in found.items():  # an original is read once
            self._images[source] = self._image(source)
            self._errors |= self._maps(source, versions)

    @property
    def any(self) -> bool:
        """Whether there is a picture of anything."""
        return any(self._images.values()) or any(self._errors.values())

    def image(self, source: str) -> str | None:
        """Return the source's image."""
        return self._images[source]

    def errors(self, source: str, codec: str, level: int) -> str | None:
        """Return the errors of a compressed feature's tokens: black is none, bright is `WORST`."""
        return self._errors[source, codec, level]

    def _image(self, source: str) -> str | None:
        try:
            image = self._dataset.image(source)
        except CfqaError:  # its source cannot give it here
            return None
        image.thumbnail((SIDE, SIDE))
        return _address(image, quality=75)

    def _maps(
        self, source: str, versions: list[tuple[str, int]]
    ) -> dict[tuple[str, str, int], str | None]:
        grid = self._dataset.grid(self._dataset._folder.task_of(source))
        if grid is None:
            return {(source, *version): None for version in versions}
        original = self._dataset.original(source)[:, :, grid.prefix_tokens :].astype(np.float64)
        spread = np.square(original - original.mean(axis=2, keepdims=True)).mean(axis=(2, 3))
        found: dict[tuple[str, str, int], str | None] = {}
        for codec, level in versions:
            compressed = self._dataset.compressed(source, codec, level)[:, :, grid.prefix_tokens :]
            squares = np.square(compressed - original).mean(axis=3)
            error = np.sqrt((squares / spread.clip(1e-30)[..., None]).mean(axis=1))
            views = error.reshape(-1, grid.rows, grid.columns)  # side by side
            found[source, codec, level] = _address(Image.fromarray(_colours(np.hstack(views))))
        return found


def _colours(errors: NDArray[Any]) -> NDArray[np.uint8]:
    share = (errors / WORST).clip(0, 1)
    from matplotlib import colormaps  # makes its folder of settings when it is imported

    return np.asarray(255 * colormaps["inferno"](share)[..., :3], np.uint8)


def _address(image: Any, **how: Any) -> str:
    data = io.BytesIO()
    image.save(data, "WEBP", lossless=not how, method=4, **how)
    return "data:image/webp;base64," + base64.b64encode(data.getvalue()).decode()
