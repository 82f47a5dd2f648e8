"""Planes for tests of codecs: small feature planes, and extreme ones."""

from __future__ import annotations

import numpy as np

from cfqa_data.codecs.hyperprior.entropy_coder import TableCoder
from cfqa_data.codecs.hyperprior.entropy_tables import PRECISION
from cfqa_data.testing.codecs import feature_plane

__all__ = ["extreme_planes", "feature_plane", "ideal_bits", "mse"]


def extreme_planes(rows: int, cols: int, peak: int) -> dict[str, np.ndarray]:
    """Return planes that are unlike those of features, by name."""
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
    """Return the mean squared difference of two planes of codes."""
    return float(np.square(a.astype(float) - b.astype(float)).mean())


def ideal_bits(coder: TableCoder, values: np.ndarray, indexes: np.ndarray) -> float:
    """Return the code length in bits of integers under the tables, with escapes."""
    total = 0.0
    for index in np.unique(indexes):
        counts, first = coder.tables.table(int(index))
        chosen = values[indexes == index]
        entries = chosen - (first - 1)
        outside = (entries < 1) | (entries >= len(counts))
        if coder.by_distance:
            below, above = 1 - 2 * entries, 2 * (entries - len(counts))
            excess = np.where(entries < 1, below, above)[outside]
            total += float((4 + 4 * np.ceil(np.log2(excess + 1.0) / 4)).sum())
        else:
            total += float((6 + np.floor(np.log2(np.abs(chosen[outside]) + 1.0))).sum())
        entries[outside] = 0
        total += float((PRECISION - np.log2(counts[entries] + 1.0)).sum())
    return total
