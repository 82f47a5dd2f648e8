"""Training scenes, rendered once into memory-mapped arrays by several processes.

Half of the scenes are square; half are windows of 1.5 times wider images, as segmentation cuts
them. Seeds count up from 10 000 000 (training) and 5 000 000 (held out): no seed of an evaluation
or calibration scene lies there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cfqa_data.builders.processes.executor import Executor
from cfqa_data.builders.processes.stage import Stage, drive
from cfqa_data.builders.sources.scenes import (
    NUM_COLOURS,
    NUM_SHAPES,
    NUM_TEXTURES,
    draw_scene,
    render,
)
from cfqa_data.console.terminal import show_progress

__all__ = ["HELD_OUT_SEED", "TRAINING_SEED", "TrainingScenes", "open_scenes", "render_scenes"]

TRAINING_SEED = 10_000_000
HELD_OUT_SEED = 5_000_000
SIDE, PATCH = 112, 14
GRID = SIDE // PATCH
#: Shares of a patch by shape, texture and colour, each with one more entry, the room's, in front.
SHARES = (NUM_SHAPES + 1, NUM_TEXTURES + 1, NUM_COLOURS + 1)

_FIELDS: dict[str, tuple[tuple[int, ...], type]] = {
    "image": ((SIDE, SIDE, 3), np.uint8),
    "label": ((), np.int16),
    "mask": ((SIDE // 2, SIDE // 2), np.uint8),
    "depth": ((SIDE // 2, SIDE // 2), np.float16),
    "shares": ((GRID * GRID, sum(SHARES)), np.uint8),
}


@dataclass(frozen=True)
class TrainingScenes:
    """Memory-mapped arrays with one row a scene.

    Attributes:
        image: uint8 (n, 112, 112, 3).
        label: int16 (n,), -1 where no solid dominates.
        mask: uint8 (n, 56, 56), every second pixel; 255 ignored.
        depth: float16 (n, 56, 56), metres, every second pixel.
        shares: uint8 (n, 64, 33), pixels of each patch by shape, texture and colour.
    """

    image: np.ndarray
    label: np.ndarray
    mask: np.ndarray
    depth: np.ndarray
    shares: np.ndarray

    def __len__(self) -> int:
        return len(self.label)


def _shares(owner: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Pixels of each patch that show each shape, texture and colour, uint8 (64, 33)."""
    patches = owner.reshape(GRID, PATCH, GRID, PATCH).transpose(0, 2, 1, 3).reshape(GRID * GRID, -1)
    counts = np.stack([(patches == index).sum(1) for index in range(-1, len(kinds) - 1)], axis=1)
    columns = []
    for kind, size in enumerate(SHARES):
        one_hot = np.zeros((len(kinds), size), np.int64)
        one_hot[np.arange(len(kinds)), kinds[:, kind]] = 1
        columns.append(counts @ one_hot)
    return np.concatenate(columns, axis=1).astype(np.uint8)


@dataclass(frozen=True)
class Rendering(Stage):
    """Rows of the arrays, 250 an item."""

    name, unit = "render", "scenes"
    folder: Path
    first_seed: int
    count: int

    def items(self) -> Sequence[int]:
        """Return the first rows of all items."""
        return range(0, self.count, 250)

    def cost(self, item: int) -> int:
        """Return how many rows an item has."""
        return min(250, self.count - item)

    def run(self, item: int) -> None:
        """Render an item's rows."""
        arrays = {name: np.load(self.folder / f"{name}.npy", mmap_mode="r+") for name in _FIELDS}
        for row in range(item, item + self.cost(item)):
            seed = self.first_seed + row
            if row % 2:
                spec = draw_scene(seed, aspect=1.5)
                left = int(np.random.default_rng(seed).integers(0, SIDE // 2 + 1))
                scene = render(spec, SIDE, SIDE * 3 // 2, (left, left + SIDE))
            else:
                spec = draw_scene(seed)
                scene = render(spec, SIDE, SIDE)
            kinds = [(0, 0, 0)] + [(1 + s.shape, 1 + s.texture, 1 + s.colour) for s in spec.solids]
            arrays["image"][row] = scene.image
            arrays["label"][row] = scene.label
            arrays["mask"][row] = scene.mask[::2, ::2]
            arrays["depth"][row] = scene.depth[::2, ::2]
            arrays["shares"][row] = _shares(scene.owner, np.array(kinds))


def render_scenes(folder: Path, first_seed: int, count: int, workers: int = 2) -> TrainingScenes:
    """Render `count` scenes into `folder`, or open them if they are already there.

    Args:
        folder: where the arrays go; about 56 kB a scene.
        first_seed: seed of the first row.
        count: number of scenes.
        workers: number of processes.

    Returns:
        The opened scenes.
    """
    done = folder / f"done-{first_seed}-{count}"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        for name, (shape, dtype) in _FIELDS.items():
            np.lib.format.open_memmap(
                folder / f"{name}.npy", mode="w+", dtype=dtype, shape=(count, *shape)
            ).flush()
        with Executor(workers) as executor, show_progress() as progress:
            for _ in drive(Rendering(folder, first_seed, count), executor, progress):
                pass
        done.touch()
    return open_scenes(folder)


def open_scenes(folder: Path) -> TrainingScenes:
    """Open rendered scenes without reading them."""
    return TrainingScenes(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in _FIELDS))
