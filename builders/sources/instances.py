"""Rendered objects that are seen again by other cameras, for retrieval and re-identification.

An identity is one object: shape, texture and colour, with proportions and a tint of its own. A
camera is a place: room, light, height, focal length, exposure and white balance. Each image has its
own pose of the object, other solids and noise. Identities come in threes of one shape, texture and
colour, told apart by proportions, tint and second tone alone; those of evaluation and those of
training share no combination of the three.
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
"""Identities of evaluation, all of which are in the gallery."""

JUNK = -1
"""What stands for the identity of an image that shows too little of its object."""

CALIBRATED = 20
"""The last identities of evaluation, of which only calibration has queries."""

TRAINED = 600
"""Identities that an embedding is trained on; their numbers begin where evaluation's end."""

ALIKE = 3
"""Identities of one shape, texture and colour."""

QUERIES = 2
"""Of an identity one after the other, by two cameras."""

#: Classes of solids: the first third are evaluation's.
_LOOKS = np.random.default_rng(20251129).permutation(scenes.NUM_CLASSES)
_OTHERS = scenes.NUM_CLASSES // 3

#: Seeds of the scenes that rooms and other solids are taken from.
_ROOMS, _SCENES = 19_000_000, 19_100_000


class Instances(Source):
    """Queries for a gallery of the same identities; the truth is (identity, camera).

    Args:
        seed: Of the queries' images, 0 or more; identities and gallery are always the same.
        side: Of the images, in pixels.
        worst_score: Average precision that queries have uncompressed, or more; None: any.
    """

    terms = scenes.Scenes.terms

    def __init__(self, seed: int, side: int = 112, worst_score: float | None = None) -> None:
        if not 0 <= seed < 1_000_000:
            raise BuildError(f"the instances' seed {seed} is not in 0..999999")
        self.seed, self.side, self.worst_score = seed, side, worst_score

    def samples(self) -> Iterator[Sample]:
        """Images of the identities in turn, two of each, by two cameras; then others of them."""
        return self._queries(range(IDENTITIES - CALIBRATED), self.seed)

    def training_samples(self, seed: int) -> Iterator[Sample]:
        """Images of the gallery's other identities, of which there are no queries."""
        return self._queries(range(IDENTITIES - CALIBRATED, IDENTITIES), seed)

    def training_inputs(self, count: int, seed: int) -> Iterator[Any]:
        """Images of identities that neither evaluation nor the training of embeddings has."""
        first = IDENTITIES + TRAINED + 1_000_000 * seed
        cameras = np.random.default_rng(seed).integers(CAMERAS, size=count)
        return (self._image(first + n, int(camera), 0).inputs for n, camera in enumerate(cameras))

    def gallery_names(self) -> list[str]:
        """Return the names of the gallery's images: one of each identity by each camera."""
        return _names(range(IDENTITIES))

    def embedding_names(self) -> list[str]:
        """Return the names of the images that an embedding is trained on."""
        return _names(range(IDENTITIES, IDENTITIES + TRAINED))

    def sample(self, source_id: str) -> Sample:
        """Render one image again by its name."""
        prefix, *numbers = source_id.split("-")
        if prefix != "instance" or len(numbers) != 3 or not all(map(str.isdecimal, numbers)):
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
        found = scenes.render(spec, self.side, self.side)
        image = np.clip(found.image * gain + 0.5, 0, 255).astype(np.uint8)
        shown = bool((found.owner == 0).mean() >= scenes.SMALLEST_SHARE)
        return Sample(
            f"instance-{identity}-{camera}-{shot}",
            normalise(image[None]),
            np.array([identity if shown else JUNK, camera], np.int64),
            f"identity-{identity}",
        )


def _names(identities: range) -> list[str]:
    """Return the names of the first image of each identity by each camera."""
    return [
        f"instance-{identity}-{camera}-0" for identity in identities for camera in range(CAMERAS)
    ]


def _solid(identity: int) -> Any:
    """Return an identity's object, in no place yet."""
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
    """Return a camera's height in metres, and its gain of red, green and blue."""
    rng = np.random.default_rng([camera, 20251201])
    return 0.7 + 1.5 * camera / (CAMERAS - 1), rng.uniform(0.85, 1.1, 3).astype(np.float32)
