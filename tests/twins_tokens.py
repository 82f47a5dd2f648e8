"""Brute-force float64 twins of the metrics that compare token with token, or values with values.

Plain loops over slices and tokens, straight from the definitions. A twin takes one original and one
compressed feature, float64 (N, C, T, D), and the metric's options.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray


def slices(x: Array, y: Array) -> list[tuple[Array, Array]]:
    n, c = x.shape[:2]
    return [(x[i, j], y[i, j]) for i in range(n) for j in range(c)]


def twin_mse(x: Array, y: Array) -> float:
    return sum((b - a) ** 2 for a, b in zip(x.ravel(), y.ravel(), strict=True)) / x.size


def twin_cosine(x: Array, y: Array) -> float:
    per_slice = []
    for a, b in slices(x, y):
        tokens = [
            (u @ v) / ((math.sqrt(u @ u) + 1e-8) * (math.sqrt(v @ v) + 1e-8))
            for u, v in zip(a, b, strict=True)
        ]
        per_slice.append(sum(tokens) / len(tokens))
    return sum(per_slice) / len(per_slice)


TOKEN_TWINS: dict[str, Callable[..., Any]] = {
    "mse": twin_mse,
    "cosine": twin_cosine,
}
