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


def over_slices(score: Callable[[Array, Array], float], x: Array, y: Array) -> float:
    return float(np.mean([score(a, b) for a, b in slices(x, y)]))


def hsic_1(k: Array, l: Array) -> float:  # noqa: E741
    """The unbiased estimator of Song et al. 2012, from raw Gram matrices."""
    m = len(k)
    k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))  # noqa: E741
    ones = np.ones(m)
    whole = (ones @ k @ ones) * (ones @ l @ ones) / ((m - 1) * (m - 2))
    mixed = 2 / (m - 2) * (ones @ k @ l @ ones)
    return (np.trace(k @ l) + whole - mixed) / (m * (m - 3))


def twin_cka_debiased(x: Array, y: Array) -> float:
    def score(a: Array, b: Array) -> float:
        if len(a) < 4:
            return 0.0
        k, l = a @ a.T, b @ b.T  # noqa: E741
        return hsic_1(k, l) / math.sqrt(hsic_1(k, k) * hsic_1(l, l))

    return over_slices(score, x, y)


def distances(a: Array) -> Array:
    return np.array([[math.sqrt(sum((u - v) ** 2)) for v in a] for u in a])


def lower_median(d: Array) -> float:
    pairs = sorted(d[i, j] for i in range(len(d)) for j in range(i))
    return pairs[(len(pairs) - 1) // 2]


def twin_cka_rbf(x: Array, y: Array) -> float:
    def kernel(a: Array) -> Array:
        d = distances(a)
        width = lower_median(d)
        if width == 0:
            return (d == 0).astype(float)
        return np.array([[math.exp(-((e / width) ** 2) / 2) for e in row] for row in d])

    def score(a: Array, b: Array) -> float:
        if len(a) == 1:
            return 0.0
        h = np.eye(len(a)) - 1 / len(a)
        k, l = kernel(a), kernel(b)  # noqa: E741
        hsic = [np.trace(p @ h @ q @ h) for p, q in ((k, l), (k, k), (l, l))]
        return float(hsic[0] / math.sqrt(hsic[1] * hsic[2]))

    return over_slices(score, x, y)


def twin_distance_correlation(x: Array, y: Array) -> float:
    def centred(d: Array) -> Array:
        n = len(d)
        rows, whole = [sum(row) / n for row in d], d.sum() / n**2
        return np.array([[d[i, j] - rows[i] - rows[j] + whole for j in range(n)] for i in range(n)])

    def covariance(a: Array, b: Array) -> float:
        """Squared distance covariance of Szekely et al. 2007."""
        return (a * b).sum() / len(a) ** 2

    def score(a: Array, b: Array) -> float:
        if len(a) == 1:
            return 0.0
        p, q = centred(distances(a)), centred(distances(b))
        return math.sqrt(covariance(p, q) / math.sqrt(covariance(p, p) * covariance(q, q)))

    return over_slices(score, x, y)


STRUCTURE_TWINS: dict[str, Callable[..., Any]] = {
    "cka": twin_cka,
    "cka_debiased": twin_cka_debiased,
    "cka_rbf": twin_cka_rbf,
    "distance_correlation": twin_distance_correlation,
}
