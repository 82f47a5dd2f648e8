"""The planes that hyperpriors are trained on: the file, its split, and random patches."""

from __future__ import annotations

import numpy as np

from cfqa_data.errors import BuildError
from cfqa_data.format.first import TASKS

__all__ = ["read_planes", "sample_batch"]

HELD_OUT = 0.1


def read_planes(path: str, task: str | None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return training and held-out planes per task, uint8 (count, rows, cols).

    Args:
        path: safetensors with one tensor per task.
        task: the only one wanted, or None for all.

    Raises:
        BuildError: the file is not one of planes.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise BuildError(f"{path}: not a file of planes ({error})") from None
    planes = {}
    for name in TASKS if task is None else (task,):
        found = tensors.get(name)
        if found is None or found.ndim != 3 or found.dtype != np.uint8 or len(found) < 2:
            raise BuildError(f"{path}: needs a tensor {name!r}, uint8 (count > 1, rows, cols)")
        held_out = max(1, round(HELD_OUT * len(found)))
        planes[name] = (found[:-held_out], found[-held_out:])
    return planes


def sample_batch(
    planes: list[np.ndarray],
    count: int,
    patch: tuple[int, int],
    stride: int,
    generator: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Return random patches on the stride's grid, the tasks in turn, and which samples count.

    Args:
        planes: per task, uint8 (count, rows, cols).
        count: patches in the batch.
        patch: (rows, cols) of a patch, multiples of the stride.
        stride: patches begin at its multiples.
        generator: draws planes and places.

    Returns:
        float32 patches (count, 1, rows, cols) in [0, 1) and a mask of the same shape: 0 where
        a patch reaches over the plane's edge into the padding.
    """
    rows, cols = patch
    patches = np.empty((count, 1, rows, cols), np.float32)
    mask = np.zeros_like(patches)
    start = int(generator.integers(len(planes)))
    for place in range(count):
        source = planes[(start + place) % len(planes)]
        plane = source[generator.integers(len(source))]
        corner = [
            stride * int(generator.integers(max(0, -(-(side - wanted) // stride)) + 1))
            for side, wanted in zip(plane.shape, (rows, cols), strict=True)
        ]
        piece = plane[corner[0] : corner[0] + rows, corner[1] : corner[1] + cols]
        margins = ((0, rows - piece.shape[0]), (0, cols - piece.shape[1]))
        patches[place, 0] = np.pad(piece, margins, mode="edge") / np.float32(256.0)
        mask[place, 0, : piece.shape[0], : piece.shape[1]] = 1.0
    return patches, mask
