"""Planes for the codecs' tests: features in little, and what features never look like."""

from __future__ import annotations

import numpy as np

SHAPES = [(65, 192), (130, 192), (17, 31), (64, 64)]


def feature_plane(rows: int, cols: int, peak: int, seed: int = 0) -> np.ndarray:
    """Rows that resemble their neighbours, columns with a level and a spread of their own."""
    generator = np.random.default_rng(seed)
    columns = np.random.default_rng(7)
    level = columns.normal(0.5, 0.06, cols)
    spread = 0.02 * np.exp(columns.normal(0, 0.5, cols))
    rough = generator.standard_normal((rows + 4, cols))
    smooth = sum(rough[shift : shift + rows] for shift in range(5)) / np.sqrt(5)
    values = level + spread * (smooth + 0.4 * generator.standard_t(4, (rows, cols)))
    dtype = np.uint8 if peak < 256 else np.uint16
    return np.clip(np.rint(values * (peak + 1)), 0, peak).astype(dtype)


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
