"""Brute-force float64 twins of the metrics that compare how tokens lie to one another.

See `twins_tokens`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from twins_tokens import Array, slices


def twin_cka(x: Array, y: Array) -> float:
    per_slice = []
    for a, b in slices(x, y):
        tokens = len(a)
        h = (
            np.eye(tokens) - 1 / tokens
        )  # HSIC as Kornblith et al. write it, centring matrix and all
        k, l = a @ a.T, b @ b.T  # noqa: E741
        hsic = [np.trace(p @ h @ q @ h) for p, q in ((k, l), (k, k), (l, l))]
        per_slice.append(hsic[0] / math.sqrt(hsic[1] * hsic[2]) if tokens > 1 else 0.0)
    return sum(per_slice) / len(per_slice)


STRUCTURE_TWINS: dict[str, Callable[..., Any]] = {
    "cka": twin_cka,
}
