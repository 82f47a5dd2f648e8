"""Brute-force float64 twins of the metrics that compare token with token, or values with values.

Plain loops over slices and tokens, straight from the definitions. A twin takes one original and one
compressed feature, float64 (N, C, T, D), and the metric's options.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
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


def mean(values: Iterable[float]) -> float:
    numbers = [float(value) for value in values]
    return math.fsum(numbers) / len(numbers)


def length(u: Array) -> float:
    return math.sqrt(sum(a * a for a in u.ravel()))


def token_pairs(x: Array, y: Array) -> list[tuple[Array, Array]]:
    return [(u, v) for a, b in slices(x, y) for u, v in zip(a, b, strict=True)]


def over(part: float, whole: float) -> float:
    """Return a ratio, with the stated value for a zero denominator."""
    return part / whole if whole else float(part != 0)


def cosine_of(u: Array, v: Array) -> float:
    lengths = length(u) * length(v)
    return float(u.ravel() @ v.ravel()) / lengths if lengths else 0.0


def pearson(u: Array, v: Array) -> float:
    return cosine_of(u - mean(u), v - mean(v)) if len(u) > 1 else 0.0


def twin_mae(x: Array, y: Array) -> float:
    return mean(abs(b - a) for a, b in zip(x.ravel(), y.ravel(), strict=True))


def twin_nmse(x: Array, y: Array) -> float:
    return mean(over(length(b - a) ** 2, length(a) ** 2) for a, b in slices(x, y))


def twin_psnr(x: Array, y: Array, value_range: Array) -> float:
    decibels = []
    for place, (a, b) in enumerate(slices(x, y)):
        peak, error = value_range[place % x.shape[1]], mean(((b - a) ** 2).ravel())
        decibels.append(min(100.0, 10 * math.log10(peak**2 / error)) if error else 100.0)
    return mean(decibels)


def twin_snr_distance(x: Array, y: Array) -> float:
    return mean(over(np.var(v - u), np.var(u)) for u, v in token_pairs(x, y))


def twin_cosine_class(x: Array, y: Array) -> float:
    return mean(cosine_of(a[0], b[0]) for a, b in slices(x, y))


def twin_cosine_flat(x: Array, y: Array) -> float:
    return mean(cosine_of(a, b) for a, b in slices(x, y))


def twin_cosine_p5(x: Array, y: Array) -> float:
    def worst(a: Array, b: Array) -> float:
        return float(np.percentile([cosine_of(u, v) for u, v in zip(a, b, strict=True)], 5))

    return mean(worst(a, b) for a, b in slices(x, y))


def twin_norm_error(x: Array, y: Array) -> float:
    return mean(over(abs(length(v) - length(u)), length(u)) for u, v in token_pairs(x, y))


def twin_angle(x: Array, y: Array) -> float:
    return mean(math.acos(max(-1, min(1, cosine_of(u, v)))) for u, v in token_pairs(x, y))


def twin_pearson_token(x: Array, y: Array) -> float:
    return mean(pearson(u, v) for u, v in token_pairs(x, y))


def twin_ccc(x: Array, y: Array) -> float:
    def concordance(a: Array, b: Array) -> float:
        a, b = a.ravel(), b.ravel()
        covariance = mean((a - mean(a)) * (b - mean(b)))
        whole = np.var(a) + np.var(b) + (mean(a) - mean(b)) ** 2
        return 2 * covariance / whole if whole else 1.0

    return mean(concordance(a, b) for a, b in slices(x, y))


def twin_mse_whitened(x: Array, y: Array, deviation: Array, floor: float) -> float:
    squares = []
    for place, (a, b) in enumerate(slices(x, y)):
        deviations = deviation[place % x.shape[1]]
        least = floor * math.sqrt(np.median(deviations**2) or mean(deviations**2))
        for u, v in zip(a, b, strict=True):
            for before, after, sigma in zip(u, v, deviations, strict=True):
                squares.append(((after - before) / (max(sigma, least) or 1.0)) ** 2)
    return mean(squares)


def twin_mahalanobis(x: Array, y: Array, covariance: Array, shrinkage: float) -> float:
    lengths = []
    for place, (a, b) in enumerate(slices(x, y)):
        matrix = covariance[place % x.shape[1]]
        usual = np.median(np.diag(matrix)) or mean(np.diag(matrix)) or 1.0
        matrix = matrix + shrinkage * usual * np.eye(len(matrix))
        lengths += [(v - u) @ np.linalg.solve(matrix, v - u) for u, v in zip(a, b, strict=True)]
    return mean(lengths)


def softmax(u: Array) -> list[float]:
    powers = [math.exp(value - max(u)) for value in u]
    return [power / sum(powers) for power in powers]


def kl(p: Iterable[float], q: Iterable[float]) -> float:
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a)


def twin_kl_softmax(x: Array, y: Array) -> float:
    return mean(kl(softmax(u), softmax(v)) for u, v in token_pairs(x, y))


def twin_js_softmax(x: Array, y: Array) -> float:
    def js(p: list[float], q: list[float]) -> float:
        middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
        return (kl(p, middle) + kl(q, middle)) / 2

    return mean(js(softmax(u), softmax(v)) for u, v in token_pairs(x, y))


def twin_sliced_wasserstein(x: Array, y: Array, projections: int, seed: int) -> float:
    directions = np.random.default_rng(seed).normal(size=(projections, x.shape[-1]))

    def distance(a: Array, b: Array) -> float:
        squares = []
        for direction in directions:
            unit = direction / length(direction)
            before, after = sorted(u @ unit for u in a), sorted(v @ unit for v in b)
            squares += [(q - p) ** 2 for p, q in zip(before, after, strict=True)]
        return math.sqrt(mean(squares))

    return mean(distance(a, b) for a, b in slices(x, y))


def matrix_root(matrix: Array) -> Array:
    """Return the D x D square root of a covariance, without rounding errors in its null space."""
    values, vectors = np.linalg.eigh(matrix)
    values[values < 1e-12 * max(values[-1], 1e-300)] = 0.0
    return (vectors * np.sqrt(values)) @ vectors.T


def twin_frechet(x: Array, y: Array) -> float:
    def distance(a: Array, b: Array) -> float:
        s, t = (np.cov(z, rowvar=False, bias=True).reshape(z.shape[1], -1) for z in (a, b))
        # The eigenvalues of S T are the squared singular values of S^(1/2) T^(1/2).
        shared = np.linalg.svd(matrix_root(s) @ matrix_root(t), compute_uv=False).sum()
        return length(a.mean(0) - b.mean(0)) ** 2 + np.trace(s) + np.trace(t) - 2 * shared

    return mean(distance(a, b) for a, b in slices(x, y))


def twin_moments(x: Array, y: Array) -> float:
    return mean(
        (np.mean(v) - np.mean(u)) ** 2 + (np.std(v) - np.std(u)) ** 2
        for a, b in slices(x, y)
        for u, v in zip(a.T, b.T, strict=True)
    )


TOKEN_TWINS: dict[str, Callable[..., Any]] = {
    "mse": twin_mse,
    "mae": twin_mae,
    "nmse": twin_nmse,
    "psnr": twin_psnr,
    "snr_distance": twin_snr_distance,
    "cosine": twin_cosine,
    "cosine_class": twin_cosine_class,
    "cosine_flat": twin_cosine_flat,
    "cosine_p5": twin_cosine_p5,
    "norm_error": twin_norm_error,
    "angle": twin_angle,
    "pearson_token": twin_pearson_token,
    "ccc": twin_ccc,
    "mse_whitened": twin_mse_whitened,
    "mahalanobis": twin_mahalanobis,
    "kl_softmax": twin_kl_softmax,
    "js_softmax": twin_js_softmax,
    "sliced_wasserstein": twin_sliced_wasserstein,
    "frechet": twin_frechet,
    "moments": twin_moments,
}
