"""Planes for the codecs' tests: features in little, and what features never look like."""

from __future__ import annotations

import numpy as np

from cfqa_data.testing.codecs import feature_plane

__all__ = ["SHAPES", "extreme_planes", "feature_plane", "mse"]

SHAPES = [(65, 192), (130, 192), (17, 31), (64, 64)]


def extreme_planes(rows: int, cols: int, peak: int) -> dict[str, np.ndarray]:
    """Planes far from any feature, by name."""
    generator = np.random.default_rng(3)
    dtype = np.uint8 if peak < 256 else np.uint16
    planes = {
        "zero": np.zeros((rows, cols)),
        "peak": np.full((rows, cols), peak),
        "noise": generator.integers(0, peak + 1, (rows, cols)),
        "binary": generator.integers(0, 2, (rows, cols)) * peak,
    }
    return {name: plane.astype(dtype) for name, plane in planes.items()}


def mse(a: np.ndarray, b: np.ndarray) -> float:
    """Mean squared difference of two planes of codes."""
    return float(np.square(a.astype(float) - b.astype(float)).mean())
