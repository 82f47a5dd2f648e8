"""Rendered scenes as a source of the three tasks."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count as counting

import numpy as np

from cfqa_data.builders.sources.base import Sample, normalise
from cfqa_data.builders.sources.scenes import draw_scene, render
from cfqa_data.errors import BuildError

__all__ = ["RenderedScenes"]

#: Seeds of training scenes (k-means, hyperpriors) start here, above every evaluation seed.
_TRAINING_FIRST = 20_000_000
_PREFIX = {"cls": "scene-cls", "seg": "scene-seg", "dpt": "scene-dpt"}


class RenderedScenes:
    """Scenes whose seeds count up from `seed`; a sample's name ends in its seed.

    cls: square image, class of the dominant solid. seg: an image 1.5 times as wide as high, cut
    into two windows that overlap by half, and its mask. dpt: square image, its mirror image as the
    second view, and depth in millimetres.

    Args:
        task: "cls", "seg" or "dpt".
        seed: seed of the first candidate, 0 <= seed < 20 000 000.
        side: height of the images and side of a view, in pixels.

    Raises:
        BuildError: unknown task or impossible seed.
    """

    def __init__(self, task: str, seed: int, side: int = 112) -> None:
        if task not in _PREFIX:
            raise BuildError(f"no scenes for task '{task}'; known are {', '.join(_PREFIX)}")
        if not 0 <= seed < _TRAINING_FIRST:
            raise BuildError(f"the scenes' seed {seed} is not in 0..{_TRAINING_FIRST - 1}")
        self.task, self.seed, self.side = task, seed, side

    def candidates(self) -> Iterator[Sample]:
        """Scenes by rising seed; for cls only those that one solid dominates."""
        for seed in counting(self.seed):
            sample = self._render(seed)
            if self.task != "cls" or int(sample.truth) >= 0:
                yield sample

    def sample(self, source_id: str) -> Sample:
        """Render one scene again by its name.

        Raises:
            BuildError: the name is not one of this source.
        """
        prefix, _, digits = source_id.rpartition("-")
        if prefix != _PREFIX[self.task] or not digits.isdecimal():
            raise BuildError(f"'{source_id}' is not the name of a rendered {self.task} scene")
        return self._render(int(digits))

    def training_views(self, count: int, seed: int) -> np.ndarray:
        """Views of `count` training scenes, float32 (count, N, 3, side, side).

        Args:
            count: number of scenes, at most 100 000.
            seed: which run of scenes; runs of different seeds share none.
        """
        first = _TRAINING_FIRST + 100_000 * (3 * seed + list(_PREFIX).index(self.task))
        return np.stack([self._render(first + index).views for index in range(count)])

    def _render(self, seed: int) -> Sample:
        name = f"{_PREFIX[self.task]}-{seed:08d}"
        side = self.side
        if self.task == "seg":
            wide = side * 3 // 2
            scene = render(draw_scene(seed, aspect=1.5), side, wide)
            windows = [scene.image[:, :side], scene.image[:, wide - side :]]
            return Sample(name, normalise(np.stack(windows)), scene.mask)
        scene = render(draw_scene(seed), side, side)
        if self.task == "cls":
            return Sample(name, normalise(scene.image[None]), np.array(scene.label, np.int64))
        views = np.stack([scene.image, scene.image[:, ::-1]])
        millimetres = np.round(scene.depth * 1000.0).astype(np.uint16)
        return Sample(name, normalise(views), millimetres)
