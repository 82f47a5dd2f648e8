"""The rendered scenes: geometry against closed forms, and reproducibility by seed."""

from __future__ import annotations

import hashlib
import re

import numpy as np
import pytest

from cfqa_data.builders.sources import get_source, scenes
from cfqa_data.builders.sources.geometry import IGNORE
from cfqa_data.builders.sources.scenes import (
    NUM_CLASSES,
    SceneSpec,
    Solid,
    draw_scene,
    render,
)
from cfqa_data.builders.sources.solids import COLOURS, SHAPES, TEXTURES, intersect
from cfqa_data.errors import BuildError

SHAPE_NAMES = list(SHAPES)


def _solid(shape: str, z: float = 3.0, x: float = 0.0, size: float = 0.5, colour: int = 0) -> Solid:
    return Solid(
        shape=SHAPE_NAMES.index(shape),
        texture=0,
        colour=colour,
        centre=(x, 1.3, z),
        size=(size, size, size),
        yaw=0.0,
        tilt=0.0,
        tint=(0.0, 0.0, 0.0),
        light_tone=False,
    )


def _spec(*solids: Solid) -> SceneSpec:
    return SceneSpec(
        solids=solids,
        room=(6.0, 2.6, 6.0),
        camera=(0.0, 1.3),
        pitch=0.0,
        focal=1.0,
        light=(0.0, 2.4, 1.0),
        wall=(0.6, 0.6, 0.6),
        floor=(0.4, 0.4, 0.4),
        floor_pattern=0,
        noise_seed=0,
    )


def _march(shape: str, origin: np.ndarray, direction: np.ndarray) -> float:
    """Return, by brute force, the first of many points along the ray that is inside the solid."""
    steps = np.linspace(2.0, 7.0, 10_001)
    points = origin + steps[:, None] * direction
    inside = np.zeros(len(points), bool)
    for part in SHAPES[shape]:
        within = np.ones(len(points), bool)
        for *normal, k in part.planes:
            within &= points @ np.array(normal) <= k
        if part.quadric is not None:
            q = part.quadric
            offset = points - np.array(q.centre)
            within &= offset**2 @ np.array(q.diag) <= q.const
            if q.nappe:
                within &= offset[:, 1] * q.nappe >= 0
        inside |= within
    return float(steps[inside.argmax()]) if inside.any() else float("inf")


@pytest.mark.parametrize("shape", SHAPE_NAMES)
def test_rays_enter_solids_where_marching_finds_the_first_inner_point(shape: str) -> None:
    rng = np.random.default_rng(SHAPE_NAMES.index(shape))
    origin = np.array([0.3, 0.4, -4.0])
    targets = rng.uniform(-1.1, 1.1, (40, 3))
    direction = targets - origin
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    found, normal = intersect(
        SHAPES[shape], origin.astype(np.float32), direction.astype(np.float32)
    )
    hits = grazes = 0
    for index, ray in enumerate(direction):
        wanted = _march(shape, origin, ray)
        if np.isinf(wanted) != np.isinf(found[index]):
            grazes += 1
            continue
        if np.isfinite(wanted):
            hits += 1
            assert found[index] == pytest.approx(wanted, abs=1e-3)
            assert normal[index] @ ray < 1e-6
    assert hits >= 10
    assert grazes <= 1  # steps of 0.5 mm miss what is thinner


def test_depth_of_the_room_and_of_a_sphere_is_exact() -> None:
    scene = render(_spec(_solid("sphere")), 111, 111)
    assert scene.depth[55, 55] == pytest.approx(3.0 - 0.5, abs=1e-4)
    # Focal 1: half the image height spans half a metre per metre; the back wall stands at 6 m.
    assert scene.depth[55, 105] == pytest.approx(6.0, abs=1e-4)
    below = scene.depth[110, 5]
    slope = (110.5 - 55.5) / 111
    assert below == pytest.approx(1.3 / slope, rel=1e-4)


def test_the_nearer_solid_hides_the_farther_one() -> None:
    near, far = _solid("cube", z=2.0, size=0.3), _solid("sphere", z=4.0, size=0.8)
    scene = render(_spec(far, near), 112, 112)
    assert scene.owner[56, 56] == 1
    assert scene.depth[56, 56] < 2.0
    assert set(np.unique(scene.owner)) == {-1, 0, 1}


def test_mask_classes_borders_and_the_dominant_label() -> None:
    scene = render(_spec(_solid("cone", z=2.0), _solid("dome", z=4.0, x=1.2)), 112, 112)
    cone, dome = SHAPE_NAMES.index("cone") + 1, SHAPE_NAMES.index("dome") + 1
    assert set(np.unique(scene.mask)) == {0, cone, dome, IGNORE}
    inner = scene.mask != IGNORE
    owners = np.array([0, cone, dome])[scene.owner.astype(int) + 1]
    assert np.array_equal(scene.mask[inner], owners[inner])
    assert scene.label == _solid("cone").label
    across = scene.owner[:, 1:] != scene.owner[:, :-1]
    assert (scene.mask[:, 1:][across] == IGNORE).all()


def test_no_label_when_no_solid_dominates() -> None:
    twins = _solid("cube", x=-0.7), _solid("cube", x=0.7, colour=3)
    assert render(_spec(*twins), 112, 112).label == -1


@pytest.mark.parametrize("aspect", [1.0, 1.5])
def test_a_seed_is_a_scene(aspect: float) -> None:
    width = int(64 * aspect)
    first, again = (render(draw_scene(7, aspect), 64, width) for _ in range(2))
    other = render(draw_scene(8, aspect), 64, width)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.depth, again.depth)
    assert not np.array_equal(first.image, other.image)


def test_a_seed_gives_the_scene_that_it_always_gave() -> None:
    """Earlier builds can be reproduced."""
    specs = [draw_scene(seed, aspect) for seed in range(20) for aspect in (1.0, 1.5)]
    told = re.sub(r"-?\d+\.\d+(e-?\d+)?", lambda found: f"{float(found[0]):.4f}", repr(specs))
    assert hashlib.sha256(told.encode()).hexdigest()[:16] == "7f40e4a2ed9a8eac"


@pytest.mark.parametrize("seed", range(3))
def test_rays_that_are_left_out_meet_nothing(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = draw_scene(seed, 1.5)
    scene = render(spec, 56, 84)
    monkeypatch.setattr(scenes, "_covers", lambda _, __, rays: np.arange(len(rays)))
    every = render(spec, 56, 84)
    assert np.array_equal(scene.owner, every.owner)
    assert np.array_equal(scene.depth, every.depth)
    assert set(np.unique(scene.owner)) == {-1, *range(len(spec.solids))}


def test_columns_are_a_crop_of_the_whole_image() -> None:
    spec = draw_scene(3, 1.5)
    whole, part = render(spec, 56, 84), render(spec, 56, 84, (20, 76))
    assert np.array_equal(whole.image[:, 20:76], part.image)
    assert np.array_equal(whole.depth[:, 20:76], part.depth)


def test_labels_cover_shape_texture_and_colour() -> None:
    assert NUM_CLASSES == len(SHAPES) * len(TEXTURES) * len(COLOURS) == 960
    assert draw_scene(5, label=959).solids[0].label == 959
    labels = {draw_scene(seed).solids[0].label for seed in range(300)}
    assert len(labels) > 200
    assert all(0 <= label < NUM_CLASSES for label in labels)


@pytest.mark.parametrize("task", ["cls", "seg", "dpt"])
def test_the_source_gives_the_views_and_truth_of_its_task(task: str) -> None:
    source = get_source("scenes")(task, 1_000_000)
    sample = next(source.samples())
    again = source.sample(sample.source_id)
    assert np.array_equal(sample.inputs, again.inputs)
    assert np.array_equal(sample.truth, again.truth)
    assert sample.inputs.dtype == np.float32
    if task == "cls":
        assert sample.inputs.shape == (1, 3, 112, 112)
        assert 0 <= int(sample.truth) < NUM_CLASSES
    elif task == "seg":
        assert sample.inputs.shape == (2, 3, 112, 112)
        assert sample.truth.shape == (112, 168)
        # The windows overlap by half: the right half of one is the left half of the other.
        assert np.array_equal(sample.inputs[0][..., 56:], sample.inputs[1][..., :56])
    else:
        assert np.array_equal(sample.inputs[0][..., ::-1], sample.inputs[1])
        assert sample.truth.dtype == np.uint16
        assert 500 < sample.truth.min() < sample.truth.max() < 10_000


def test_training_views_share_nothing_with_candidates_or_other_runs() -> None:
    source = get_source("scenes")("cls", 1_000_000)
    first, second = (np.stack(list(source.training_inputs(2, seed))) for seed in (0, 1))
    assert first.shape == (2, 1, 3, 112, 112)
    assert not np.array_equal(first, second)
    assert np.array_equal(first, list(source.training_inputs(2, seed=0)))


def test_the_source_names_what_is_wrong() -> None:
    with pytest.raises(BuildError, match="unknown source 'imagnet'"):
        get_source("imagnet")
    with pytest.raises(BuildError, match="seed -1"):
        get_source("scenes")("cls", -1)
    with pytest.raises(BuildError, match="not the id"):
        get_source("scenes")("cls", 0).sample("scene-dpt-00000001")
