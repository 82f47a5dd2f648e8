"""Brute-force float64 twins of the metrics that compare relations between tokens.

See `twins_tokens`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg
import scipy.stats
from scipy.spatial.distance import pdist
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
            return math.nan
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


def centred_pair(a: Array, b: Array) -> tuple[Array, Array]:
    return a - a.mean(0), b - b.mean(0)


def twin_procrustes(x: Array, y: Array) -> float:
    def score(a: Array, b: Array) -> float:
        a, b = centred_pair(a, b)
        turn, _ = scipy.linalg.orthogonal_procrustes(b, a)
        return float(np.linalg.norm(b @ turn - a) ** 2)

    return over_slices(score, x, y)


def twin_procrustes_normalized(x: Array, y: Array) -> float:
    def score(a: Array, b: Array) -> float:
        if len(a) == 1:
            return 2.0
        a, b = (z / np.linalg.norm(z) for z in centred_pair(a, b))
        turn, _ = scipy.linalg.orthogonal_procrustes(b, a)
        return float(np.linalg.norm(b @ turn - a) ** 2)

    return over_slices(score, x, y)


def twin_angular_shape(x: Array, y: Array) -> float:
    def score(a: Array, b: Array) -> float:
        if len(a) == 1:
            return math.pi / 2
        a, b = (z / np.linalg.norm(z) for z in centred_pair(a, b))
        return math.acos(min(1.0, scipy.linalg.svdvals(a.T @ b).sum()))

    return over_slices(score, x, y)


def twin_rsa(x: Array, y: Array) -> float:
    def score(a: Array, b: Array) -> float:
        before, after = pdist(a), pdist(b)
        if min(np.ptp(z) if len(z) else 0 for z in (before, after)) == 0:
            return 0.0
        return float(scipy.stats.spearmanr(before, after).statistic)

    return over_slices(score, x, y)


def cosines(a: Array) -> Array:
    lengths = [math.sqrt(u @ u) for u in a]
    return np.array(
        [
            [u @ v / (p * q) if p * q else 0.0 for v, q in zip(a, lengths, strict=True)]
            for u, p in zip(a, lengths, strict=True)
        ]
    )


def twin_rsm_difference(x: Array, y: Array) -> float:
    def score(a: Array, b: Array) -> float:
        change = cosines(b) - cosines(a)
        others = [change[i, j] ** 2 for i in range(len(a)) for j in range(len(a)) if i != j]
        return math.sqrt(sum(others) / len(others)) if others else 0.0

    return over_slices(score, x, y)


def neighbourhood(apart: Array, token: int, k: int) -> dict[int, float]:
    """Return the share of each other token in the k nearest ones; ties share the ranks."""
    others = sorted(set(range(len(apart))) - {token}, key=lambda other: apart[token, other])
    last = apart[token, others[k - 1]]
    tied = [other for other in others if abs(apart[token, other] - last) < 1e-12]
    nearer = others[: others.index(tied[0])]
    share = (k - len(nearer)) / len(tied)
    return dict.fromkeys(nearer, 1.0) | dict.fromkeys(tied, share)


def neighbourhoods(p: Array, q: Array, k: int) -> list[list[tuple[float, float]]]:
    """Return the membership of each token in each other's neighbourhood, before and after."""
    k = min(k, max(1, (len(p) - 1) // 2))
    both = [(neighbourhood(p, t, k), neighbourhood(q, t, k)) for t in range(len(p))]
    return [[(one.get(s, 0.0), two.get(s, 0.0)) for s in range(len(p))] for one, two in both]


def twin_mutual_knn(x: Array, y: Array, k: int) -> float:
    def score(a: Array, b: Array) -> float:
        if len(a) == 1:
            return 0.0
        shared = [
            sum(min(pair) for pair in of_token) / sum(one for one, _ in of_token)
            for of_token in neighbourhoods(-cosines(a), -cosines(b), k)
        ]
        return float(np.mean(shared))

    return over_slices(score, x, y)


def twin_jaccard_knn(x: Array, y: Array, k: int) -> float:
    def score(a: Array, b: Array) -> float:
        if len(a) == 1:
            return 0.0
        shared = [
            sum(min(pair) for pair in of_token) / sum(max(pair) for pair in of_token)
            for of_token in neighbourhoods(distances(a), distances(b), k)
        ]
        return float(np.mean(shared))

    return over_slices(score, x, y)


STRUCTURE_TWINS: dict[str, Callable[..., Any]] = {
    "cka": twin_cka,
    "cka_debiased": twin_cka_debiased,
    "cka_rbf": twin_cka_rbf,
    "distance_correlation": twin_distance_correlation,
    "procrustes": twin_procrustes,
    "procrustes_normalized": twin_procrustes_normalized,
    "angular_shape": twin_angular_shape,
    "rsa": twin_rsa,
    "rsm_difference": twin_rsm_difference,
    "mutual_knn": twin_mutual_knn,
    "jaccard_knn": twin_jaccard_knn,
}
