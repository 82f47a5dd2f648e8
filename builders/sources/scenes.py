"""Rendered scenes: a lit room with one to four textured solids, with the truths of three tasks.

A scene is determined by its integer seed. The ray of a pixel is intersected with the room and the
solids in closed form (see ``solids``); the colour is a texture lit by a point light with soft
shadows. The ray parameter is the metric depth, the solid that is hit is the semantic class, and
the class of the scene is the shape, texture and colour of the solid with the largest visible area.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from cfqa_data.builders.sources.base import Sample, Source
from cfqa_data.builders.sources.geometry import IGNORE
from cfqa_data.builders.sources.solids import COLOURS, SHAPES, TEXTURES, intersect
from cfqa_data.errors import BuildError
from cfqa_data.format.format_1 import TERMS
from cfqa_data.pixels import normalise

__all__ = ["NUM_CLASSES", "Scene", "SceneSpec", "Scenes", "Solid", "draw_scene", "render"]

NUM_SHAPES, NUM_TEXTURES, NUM_COLOURS = len(SHAPES), len(TEXTURES), len(COLOURS)
NUM_CLASSES = NUM_SHAPES * NUM_TEXTURES * NUM_COLOURS

#: The dominant solid has at least this multiple of any other's visible area, and this image share.
DOMINANCE = 3.0
SMALLEST_SHARE = 0.1

_PARTS = tuple(SHAPES.values())
_TEXTURES = tuple(TEXTURES.values())
_COLOURS = np.array(list(COLOURS.values()), np.float32)
#: Extent of each solid below its centre, as a share of its half height.
FOOT = tuple({"cube": 0.8, "roof": 0.7, "dome": 0.0}.get(name, 1.0) for name in SHAPES)


@dataclass(frozen=True)
class Solid:
    """One solid of a scene: indices of shape, texture and colour; pose in metres and radians."""

    shape: int
    texture: int
    colour: int
    centre: tuple[float, ...]
    size: tuple[float, ...]
    yaw: float
    tilt: float
    tint: tuple[float, ...]
    light_tone: bool

    @property
    def label(self) -> int:
        """Class of a scene that this solid dominates, 0..NUM_CLASSES-1."""
        return (self.shape * NUM_TEXTURES + self.texture) * NUM_COLOURS + self.colour


@dataclass(frozen=True)
class SceneSpec:
    """Specification of a scene. Lengths are in metres; the camera looks along +z, y is up."""

    solids: tuple[Solid, ...]
    room: tuple[float, ...]
    camera: tuple[float, float]
    pitch: float
    focal: float
    light: tuple[float, ...]
    wall: tuple[float, ...]
    floor: tuple[float, ...]
    floor_pattern: int
    noise_seed: int


@dataclass(frozen=True)
class Scene:
    """A rendered scene.

    Attributes:
        image: RGB image, uint8 (H, W, 3).
        label: Class of the dominant solid, 0..NUM_CLASSES-1; -1 if no solid has at least three
            times the visible area of every other and a tenth of the image.
        mask: Classes, uint8 (H, W): 0 background, 1 + shape index, 255 along borders (ignored).
        depth: Depth along the optical axis in metres, float32 (H, W).
        owner: Index of the solid that a pixel shows, int8 (H, W); -1 for the room.
    """

    image: np.ndarray
    label: int
    mask: np.ndarray
    depth: np.ndarray
    owner: np.ndarray


def draw_scene(seed: int, aspect: float = 1.0, label: int | None = None) -> SceneSpec:
    """Draw the scene of a seed.

    Args:
        seed: Any non-negative integer; the same seed gives the same scene.
        aspect: Width over height of the image; solids are spread accordingly.
        label: Class of the foremost solid; drawn uniformly if None.

    Returns:
        The scene's specification; the foremost solid comes first.
    """
    rng = np.random.default_rng([seed, 20250607])

    def uniform(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    room = (uniform(4.0, 6.0) * aspect, uniform(2.6, 3.2), uniform(4.5, 7.0))
    camera = (uniform(-0.3, 0.3), uniform(1.0, 1.6))
    focal = uniform(0.95, 1.15)
    count = int(rng.integers(1, 5)) if aspect == 1.0 else int(rng.integers(2, 5))
    solids: list[Solid] = []
    while len(solids) < count:
        front = not solids
        drawn = int(rng.integers(NUM_CLASSES))
        rest, colour = divmod(label if front and label is not None else drawn, NUM_COLOURS)
        shape, texture = divmod(rest, NUM_TEXTURES)
        radius = uniform(0.48, 0.66) if front else uniform(0.32, 0.55)
        away = uniform(1.7, 2.5) if front else uniform(2.2, min(4.5, room[2] - 0.7))
        reach = away * 0.5 / focal * aspect
        across = camera[0] + uniform(-0.55, 0.55) * reach * (1.0 if front else 1.5)
        size = tuple((radius * rng.uniform(0.88, 1.12, 3)).tolist())
        centre = (across, size[1] * FOOT[shape] + uniform(0.0, 0.5), away)
        clear = all(
            np.hypot(s.centre[0] - centre[0], s.centre[2] - centre[2]) > 0.9 * (s.size[0] + radius)
            for s in solids
        )
        yaw, tilt = uniform(-np.pi, np.pi), float(rng.normal(0.0, 0.12))
        tint = tuple(rng.uniform(-0.04, 0.04, 3).tolist())
        light_tone = bool(rng.random() < 0.5)
        if clear or rng.random() < 0.15:
            solids.append(Solid(shape, texture, colour, centre, size, yaw, tilt, tint, light_tone))
    target = solids[0]
    level = float(np.arctan2(camera[1] - target.centre[1], target.centre[2]))
    pitch = level * uniform(0.6, 1.1) + float(rng.normal(0.0, 0.03))
    grey, warm = uniform(0.45, 0.85), uniform(-0.06, 0.06)
    floor_grey, floor_warm = uniform(0.3, 0.6), uniform(-0.02, 0.08)
    return SceneSpec(
        solids=tuple(solids),
        room=room,
        camera=camera,
        pitch=pitch,
        focal=focal,
        light=(uniform(-1.5, 1.5), room[1] - 0.2, uniform(0.2, 2.5)),
        wall=(grey + warm, grey, grey - warm),
        floor=(floor_grey + floor_warm, floor_grey, floor_grey - floor_warm),
        floor_pattern=int(rng.integers(4)),
        noise_seed=int(rng.integers(2**31)),
    )


def _rays(spec: SceneSpec, height: int, width: int, columns: tuple[int, int]) -> np.ndarray:
    """Return ray directions (H*(c1-c0), 3) scaled so that the ray parameter t is the depth."""
    scale = spec.focal * height
    v, u = np.mgrid[0:height, columns[0] : columns[1]].astype(np.float32)
    x = (u + 0.5 - width / 2) / scale
    y = -(v + 0.5 - height / 2) / scale
    sin, cos = np.sin(spec.pitch), np.cos(spec.pitch)
    rays = np.stack([x, y * cos - sin, y * sin + cos], axis=-1)
    return rays.reshape(-1, 3).astype(np.float32)


def _room(
    spec: SceneSpec, origin: np.ndarray, rays: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return depth, inward normal and albedo at the point of the room that each ray hits."""
    half = spec.room[0] / 2
    low = np.array([-half, 0.0, -1.0], np.float32)
    high = np.array([half, spec.room[1], spec.room[2]], np.float32)
    with np.errstate(divide="ignore"):
        exits = np.where(rays > 0, high - origin, low - origin) / np.where(rays == 0, 1e-9, rays)
    exits = np.where(rays == 0, np.inf, exits)
    axis = exits.argmin(axis=1)
    rows = np.arange(len(rays))
    depth = exits[rows, axis]
    normal = np.zeros_like(rays)
    normal[rows, axis] = -np.sign(rays[rows, axis])
    point = origin + depth[:, None] * rays
    albedo = np.broadcast_to(np.array(spec.wall, np.float32), rays.shape).copy()
    albedo[axis == 0] *= 0.92
    ceiling, floor = (axis == 1) & (rays[:, 1] > 0), (axis == 1) & (rays[:, 1] <= 0)
    albedo[ceiling] = 0.9
    x, z = point[floor, 0], point[floor, 2]
    pattern = (
        np.zeros_like(x),
        (np.floor(x * 2.0) + np.floor(z * 2.0)) % 2,
        np.floor(x * 3.0) % 2,
        ((x * 2.5 % 1.0 < 0.06) | (z * 2.5 % 1.0 < 0.06)).astype(np.float32),
    )[spec.floor_pattern]
    albedo[floor] = np.array(spec.floor, np.float32) * (1.0 - 0.22 * pattern[:, None])
    return depth.astype(np.float32), normal, albedo


def _rotation(yaw: float, tilt: float) -> np.ndarray:
    cy, sy, ct, st = np.cos(yaw), np.sin(yaw), np.cos(tilt), np.sin(tilt)
    about_y = np.array([[cy, 0.0, sy], [0.0, 1.0, 0.0], [-sy, 0.0, cy]])
    about_z = np.array([[ct, -st, 0.0], [st, ct, 0.0], [0.0, 0.0, 1.0]])
    return (about_y @ about_z).astype(np.float32)


def _covers(solid: Solid, origin: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """Return the indices of the rays that pass through the solid's bounding sphere."""
    to_centre = np.array(solid.centre, np.float32) - origin
    along = rays @ to_centre
    squared = (rays**2).sum(axis=1)
    distance2 = float(to_centre @ to_centre) - along**2 / squared
    return np.flatnonzero(distance2 < 3.0 * max(solid.size) ** 2)


def _albedo(solid: Solid, local: np.ndarray) -> np.ndarray:
    base = np.clip(_COLOURS[solid.colour] + np.array(solid.tint, np.float32), 0.02, 1.0)
    second = base * 0.35 + 0.62 if solid.light_tone else base * 0.28
    if solid.light_tone and base.min() > 0.7:
        second = base * 0.55
    share = _TEXTURES[solid.texture](local)[:, None]
    return base * (1 - share) + second * share


def _lit(
    spec: SceneSpec, origin: np.ndarray, point: np.ndarray, normal: np.ndarray, owner: np.ndarray
) -> np.ndarray:
    """Return the light on each point: ambient, point light with soft shadows, camera fill light."""
    normal = normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-6)
    to_light = np.array(spec.light, np.float32) - point
    distance = np.linalg.norm(to_light, axis=1)
    direction = to_light / distance[:, None]
    diffuse = np.maximum((normal * direction).sum(axis=1), 0.0)
    view = origin - point
    fill = np.maximum((normal * view).sum(axis=1), 0.0) / np.linalg.norm(view, axis=1)
    shadow = np.ones(len(point), np.float32)
    for index, solid in enumerate(spec.solids):
        centre = np.array(solid.centre, np.float32) - point
        along = np.clip((centre * direction).sum(axis=1), 0.0, distance)
        miss = np.linalg.norm(centre - along[:, None] * direction, axis=1)
        radius = 0.8 * min(solid.size)
        soft = np.clip((miss - 0.6 * radius) / (0.8 * radius), 0.25, 1.0)
        shadow *= np.where(owner == index, 1.0, soft)
    return 0.34 + 0.16 * fill + diffuse * shadow * (2.2 / (1.0 + 0.25 * distance**2))


def _border(owner: np.ndarray) -> np.ndarray:
    edge = np.zeros(owner.shape, bool)
    across, down = owner[:, 1:] != owner[:, :-1], owner[1:] != owner[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    return edge


def render(
    spec: SceneSpec, height: int, width: int, columns: tuple[int, int] | None = None
) -> Scene:
    """Render a scene, or a range of the columns of its image.

    Args:
        spec: Specification of the scene.
        height: Height of the whole image, in pixels.
        width: Width of the whole image, in pixels.
        columns: Half-open range of columns to render; all if None.

    Returns:
        The rendered scene; its images have the requested columns only.
    """
    start, stop = columns or (0, width)
    origin = np.array([spec.camera[0], spec.camera[1], 0.0], np.float32)
    rays = _rays(spec, height, width, (start, stop))
    depth, normal, albedo = _room(spec, origin, rays)
    owner = np.full(len(rays), -1, np.int8)
    for index, solid in enumerate(spec.solids):
        seen = _covers(solid, origin, rays)
        if not len(seen):
            continue
        rotation = _rotation(solid.yaw, solid.tilt)
        size = np.array(solid.size, np.float32)
        local_origin = (rotation.T @ (origin - np.array(solid.centre, np.float32))) / size
        local_rays = (rays[seen] @ rotation) / size
        t, n = intersect(_PARTS[solid.shape], local_origin, local_rays)
        front = t < depth[seen]
        seen, t, n = seen[front], t[front], n[front]
        depth[seen] = t
        normal[seen] = (n / size) @ rotation.T
        albedo[seen] = _albedo(solid, local_origin + t[:, None] * local_rays[front])
        owner[seen] = index
    point = origin + depth[:, None] * rays
    colour = albedo * _lit(spec, origin, point, normal, owner)[:, None]
    rng = np.random.default_rng(spec.noise_seed)
    noise = rng.standard_normal((height, width, 3), np.float32)[:, start:stop].reshape(-1, 3)
    image = np.clip(colour, 0.0, 1.0) ** (1 / 2.2) * 255.0 + 2.0 * noise
    shape = (height, stop - start)
    owners = owner.reshape(shape)
    classes = np.array([0] + [1 + solid.shape for solid in spec.solids], np.uint8)
    mask = classes[owners + 1]
    mask[_border(owners)] = IGNORE
    return Scene(
        image=np.clip(image + 0.5, 0, 255).astype(np.uint8).reshape(*shape, 3),
        label=_dominant(spec, owners),
        mask=mask,
        depth=depth.reshape(shape),
        owner=owners,
    )


def _dominant(spec: SceneSpec, owner: np.ndarray) -> int:
    areas = np.array([(owner == index).sum() for index in range(len(spec.solids))])
    order = np.argsort(areas)[::-1]
    first = areas[order[0]]
    second = areas[order[1]] if len(order) > 1 else 0
    if first < SMALLEST_SHARE * owner.size or first < DOMINANCE * second:
        return -1
    return spec.solids[int(order[0])].label


#: Seeds of training scenes (k-means, hyperpriors) start here, above every evaluation seed.
_TRAINING_FIRST = 20_000_000
_PREFIX = {"cls": "scene-cls", "seg": "scene-seg", "dpt": "scene-dpt"}


class Scenes(Source):
    """Scenes of successive seeds from `seed` on; a sample's id ends with its seed.

    cls: square image, class of the dominant solid. seg: an image 1.5 times as wide as high, cut
    into two windows that overlap by half, and its mask. dpt: square image, its mirror image as the
    second view, and depth in millimetres.

    Args:
        task: One of "cls", "seg" and "dpt".
        seed: Seed of the first sample, 0 <= seed < 20 000 000.
        side: Height of the images and side of a view, in pixels.
        worst_score: Worst score that the original of a sample may have; None for no limit.

    Raises:
        BuildError: If the task is unknown or the seed out of range.
    """

    terms = TERMS["scenes"]

    def __init__(
        self, task: str, seed: int, side: int = 112, worst_score: float | None = None
    ) -> None:
        if task not in _PREFIX:
            raise BuildError(f"no scenes for task '{task}'; known are {', '.join(_PREFIX)}")
        if not 0 <= seed < _TRAINING_FIRST:
            raise BuildError(f"the scenes' seed {seed} is not in 0..{_TRAINING_FIRST - 1}")
        self.task, self.seed, self.side, self.worst_score = task, seed, side, worst_score
        if task == "seg":
            self.classes = ("background", *SHAPES)
        elif task == "cls":
            looks = itertools.product(SHAPES, TEXTURES, COLOURS)
            self.classes = [f"{colour} {shape}, {texture}" for shape, texture, colour in looks]

    def samples(self) -> Iterator[Sample]:
        """Yield scenes by ascending seed; for cls, only those with a dominant solid."""
        return self._scenes_from(self.seed)

    def _scenes_from(self, first: int) -> Iterator[Sample]:
        for seed in itertools.count(first):
            sample = self._render(seed)
            if self.task != "cls" or int(sample.truth) >= 0:
                yield sample

    def sample(self, source_id: str) -> Sample:
        """Render the scene of an id."""
        prefix, _, digits = source_id.rpartition("-")
        if prefix != _PREFIX[self.task] or not digits.isdecimal():
            raise BuildError(f"'{source_id}' is not the id of a rendered {self.task} scene")
        return self._render(int(digits))

    def training_inputs(self, count: int, seed: int) -> Iterator[Any]:
        """Yield views of at most 100 000 scenes; different seeds have no scene in common."""
        first = self._training_first(seed)
        return (self._render(first + index).inputs for index in range(count))

    def training_samples(self, seed: int) -> Iterator[Sample]:
        """Yield training scenes of a seed; for cls, only those with a dominant solid."""
        return self._scenes_from(self._training_first(seed))

    def _training_first(self, seed: int) -> int:
        return _TRAINING_FIRST + 100_000 * (3 * seed + list(_PREFIX).index(self.task))

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
