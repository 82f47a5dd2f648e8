"""Rendered objects that several cameras see, for retrieval and re-identification.

An identity is one object: a shape, texture and colour with its own proportions and tint. A camera
is a place: room, light, height, focal length, exposure and white balance. Each image has its own
pose of the object, other solids and noise. Three identities each have the same shape, texture and
colour and differ only in proportions, tint and second tone. Evaluation and training have no
combination of shape, texture and colour in common.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count as counting
from typing import Any

import numpy as np

from cfqa_data.builders.sources import scenes
from cfqa_data.builders.sources.base import Sample, Source
from cfqa_data.errors import BuildError
from cfqa_data.pixels import normalise

__all__ = ["CAMERAS", "IDENTITIES", "JUNK", "Instances"]

CAMERAS = 6

IDENTITIES = 100
"""Number of identities for evaluation, all of which are in the gallery."""

JUNK = -1
"""Identity of an image that shows too little of its object."""

CALIBRATED = 20
"""Number of identities, the last ones for evaluation, whose queries are for calibration only."""

TRAINED = 600
"""Number of identities for training embeddings; their numbers follow those for evaluation."""

ALIKE = 3
"""Number of identities with the same shape, texture and colour."""

QUERIES = 2
"""Number of successive queries of an identity, by different cameras."""

#: Classes of solids in random order; the first third is for evaluation.
_LOOKS = np.random.default_rng(20251129).permutation(scenes.NUM_CLASSES)
_OTHERS = scenes.NUM_CLASSES // 3

#: First seeds of the scenes from which rooms and other solids are taken.
_ROOMS, _SCENES = 19_000_000, 19_100_000


class Instances(Source):
    """Queries for a gallery of the same identities; the truth is (identity, camera).

    Args:
        seed: Seed of the queries' images, 0 or more; identities and gallery do not depend on it.
        side: Side of the images, in pixels.
        worst_score: Minimum average precision of the original of a query; None for no limit.
    """

    terms = scenes.Scenes.terms

    def __init__(self, seed: int, side: int = 112, worst_score: float | None = None) -> None:
        if not 0 <= seed < 1_000_000:
            raise BuildError(f"the instances' seed {seed} is not in 0..999999")
        self.seed, self.side, self.worst_score = seed, side, worst_score

    def samples(self) -> Iterator[Sample]:
        """Yield two images of each identity in turn, by two cameras, in endless rounds."""
        return self._queries(range(IDENTITIES - CALIBRATED), self.seed)

    def training_samples(self, seed: int) -> Iterator[Sample]:
        """Yield images of the gallery's identities that :meth:`samples` does not query."""
        return self._queries(range(IDENTITIES - CALIBRATED, IDENTITIES), seed)

    def training_inputs(self, count: int, seed: int) -> Iterator[Any]:
        """Yield images of identities that occur neither in evaluation nor in embedding training."""
        first = IDENTITIES + TRAINED + 1_000_000 * seed
        cameras = np.random.default_rng(seed).integers(CAMERAS, size=count)
        return (self._image(first + n, int(camera), 0).inputs for n, camera in enumerate(cameras))

    def gallery_names(self) -> list[str]:
        """Return the ids of the gallery's images: one of each identity by each camera."""
        return _names(range(IDENTITIES))

    def embedding_names(self) -> list[str]:
        """Return the ids of the images on which an embedding is trained."""
        return _names(range(IDENTITIES, IDENTITIES + TRAINED))

    def sample(self, source_id: str) -> Sample:
        """Render the image of an id."""
        prefix, *numbers = source_id.split("-")
        numeric = all(number.isdecimal() and len(number) <= 18 for number in numbers)
        if prefix != "instance" or len(numbers) != 3 or not numeric:  # the truth is int64
            raise BuildError(f"'{source_id}' is not the id of an image of an instance")
        identity, camera, shot = map(int, numbers)
        if camera >= CAMERAS:
            raise BuildError(f"'{source_id}': there are {CAMERAS} cameras")
        return self._image(identity, camera, shot)

    def _queries(self, identities: range, seed: int) -> Iterator[Sample]:
        for turn in counting():
            for identity in identities:
                cameras = np.random.default_rng([seed, turn, identity]).permutation(CAMERAS)
                for camera in cameras[:QUERIES].tolist():
                    sample = self._image(identity, camera, 1 + 1000 * seed + turn)
                    if sample.truth[0] != JUNK:
                        yield sample

    def _image(self, identity: int, camera: int, shot: int) -> Sample:
        rng = np.random.default_rng([identity, camera, shot, 20251129])
        scene = scenes.draw_scene(_SCENES + int(rng.integers(1 << 30)))
        place = scenes.draw_scene(_ROOMS + camera)
        height, gain = _optics(camera)
        away, across = rng.uniform(1.5, 2.2), rng.uniform(-0.25, 0.25)
        solid = _solid(identity)
        centre = (across, solid.size[1] * scenes.FOOT[solid.shape] + rng.uniform(0.0, 0.3), away)
        solid = replace(
            solid, centre=centre, yaw=rng.uniform(-np.pi, np.pi), tilt=rng.normal(0.0, 0.12)
        )
        spec = replace(
            place,
            solids=(solid, *scene.solids[1:3]),
            camera=(0.0, height),
            pitch=np.arctan2(height - centre[1], away) * rng.uniform(0.7, 1.1),
            noise_seed=scene.noise_seed,
        )
        rendered = scenes.render(spec, self.side, self.side)
        image = np.clip(rendered.image * gain + 0.5, 0, 255).astype(np.uint8)
        visible = bool((rendered.owner == 0).mean() >= scenes.SMALLEST_SHARE)
        return Sample(
            f"instance-{identity}-{camera}-{shot}",
            normalise(image[None]),
            np.array([identity if visible else JUNK, camera], np.int64),
            f"identity-{identity}",
        )


def _names(identities: range) -> list[str]:
    """Return the ids of the first image of each identity by each camera."""
    return [
        f"instance-{identity}-{camera}-0" for identity in identities for camera in range(CAMERAS)
    ]


def _solid(identity: int) -> Any:
    """Return the object of an identity, without its final pose."""
    evaluated = identity < IDENTITIES
    looks = _LOOKS[:_OTHERS] if evaluated else _LOOKS[_OTHERS:]
    number = identity if evaluated else identity - IDENTITIES
    scene = scenes.draw_scene(0, label=int(looks[number // ALIKE % len(looks)]))
    rng = np.random.default_rng([identity, 20251130])
    return replace(
        scene.solids[0],
        size=tuple((rng.uniform(0.46, 0.62) * rng.uniform(0.7, 1.3, 3)).tolist()),
        tint=tuple(rng.uniform(-0.18, 0.18, 3).tolist()),
        light_tone=bool(rng.random() < 0.5),
    )


def _optics(camera: int) -> tuple[float, np.ndarray]:
    """Return a camera's height in metres, and its gains of red, green and blue."""
    rng = np.random.default_rng([camera, 20251201])
    return 0.7 + 1.5 * camera / (CAMERAS - 1), rng.uniform(0.85, 1.1, 3).astype(np.float32)
