"""Render training scenes once, in several processes, into a memory-mapped array.

Half of the scenes are square, half are windows of images that are 1.5 times as wide, as in
segmentation. Seeds start at 10 000 000 (training) and 5 000 000 (held out), away from those of
evaluation and calibration scenes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cfqa_data.builders.sources import scenes
from cfqa_data.console.terminal import show_progress
from cfqa_data.processes.executor import Executor
from cfqa_data.processes.stage import Stage, drive

__all__ = ["HELD_OUT_SEED", "ROW", "TRAINING_SEED", "render_scenes"]

TRAINING_SEED = 10_000_000
HELD_OUT_SEED = 5_000_000
SIDE, PATCH = 112, 14
GRID = SIDE // PATCH
#: Number of classes of a patch by shape, texture and colour, each with the room as class 0.
SHARES = (scenes.NUM_SHAPES + 1, scenes.NUM_TEXTURES + 1, scenes.NUM_COLOURS + 1)

#: A scene: image; class, -1 if no solid dominates; every second pixel of the mask (255 is ignored)
#: and of the depth in metres; number of pixels of each patch by shape, texture and colour.
ROW = np.dtype(
    [
        ("image", np.uint8, (SIDE, SIDE, 3)),
        ("label", np.int16),
        ("mask", np.uint8, (SIDE // 2, SIDE // 2)),
        ("depth", np.float16, (SIDE // 2, SIDE // 2)),
        ("shares", np.uint8, (GRID * GRID, sum(SHARES))),
    ]
)


def _shares(owner: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Count the pixels of each patch that show each shape, texture and colour, uint8 (64, 33)."""
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
    """Stage that renders the rows of the array, 250 per item."""

    name, unit = "render", "scenes"
    path: Path
    first_seed: int
    count: int

    def items(self) -> Sequence[int]:
        return range(0, self.count, 250)

    def cost(self, item: int) -> int:
        return min(250, self.count - item)

    def run(self, item: int) -> None:
        rows = np.load(self.path, mmap_mode="r+")
        for row in range(item, item + self.cost(item)):
            seed, wide = self.first_seed + row, row % 2
            spec = scenes.draw_scene(seed, aspect=1.5 if wide else 1.0)
            left = int(np.random.default_rng(seed).integers(0, SIDE // 2 + 1)) if wide else 0
            width = SIDE * 3 // 2 if wide else SIDE
            scene = scenes.render(spec, SIDE, width, (left, left + SIDE))
            kinds = [(0, 0, 0)] + [(1 + s.shape, 1 + s.texture, 1 + s.colour) for s in spec.solids]
            shares = _shares(scene.owner, np.array(kinds))
            rows[row] = (
                scene.image,
                scene.label,
                scene.mask[::2, ::2],
                scene.depth[::2, ::2],
                shares,
            )


def render_scenes(folder: Path, first_seed: int, count: int, workers: int = 2) -> np.recarray:
    """Render `count` scenes into `folder`, or open them if they already exist.

    Args:
        folder: Folder of the array, about 56 kB per scene; other scenes in it are replaced.
        first_seed: Seed of the first row.
        count: Number of scenes.
        workers: Number of processes.

    Returns:
        The scenes, memory-mapped: a record array of `ROW`, whose fields are attributes.
    """
    path, done = folder / "scenes.npy", folder / f"done-{first_seed}-{count}"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        for other in folder.glob("done-*"):
            other.unlink()
        np.lib.format.open_memmap(path, mode="w+", dtype=ROW, shape=(count,)).flush()
        with Executor(workers) as executor, show_progress() as progress:
            for _ in drive(Rendering(path, first_seed, count), executor, progress):
                pass
        done.touch()
    return np.load(path, mmap_mode="r").view(np.recarray)
