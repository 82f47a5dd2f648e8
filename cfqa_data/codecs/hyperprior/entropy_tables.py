"""Probability tables of the hyperprior, computed once and stored as integers.

A table covers the integers ``first .. first + n - 1``; its entry 0 stands for all others (the
escape).  Entries are counts of which the coder makes probabilities ``(count + 1) / 2**24``: the
counts of a table of m entries sum to ``2**24 - m``, for which constriction's conversion from
floats is the identity, so the coder's numbers are the stored ones on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from cfqa_data.errors import CodecError

__all__ = [
    "PRECISION",
    "Tables",
    "bottleneck_tables",
    "density_quantiles",
    "gaussian_tables",
    "scale_table",
]

PRECISION = 24
TAIL = 2.0**-20
"""Probability mass left to the escape."""

COMPRESSAI_TAIL = 1e-9
COMPRESSAI_BITS = 16
"""CompressAI's tables reach as far as COMPRESSAI_TAIL; probabilities are multiples of 2**-16."""


@dataclass(frozen=True)
class Tables:
    """Several tables behind each other.

    Attributes:
        counts: uint32, the entries of all tables.
        sizes: int32 (tables,), entries per table, the escape included.
        firsts: int32 (tables,), the integer that entry 1 stands for.
    """

    counts: np.ndarray
    sizes: np.ndarray
    firsts: np.ndarray

    def __post_init__(self) -> None:
        ends = np.cumsum(self.sizes)
        if self.sizes.ndim != 1 or self.sizes.shape != self.firsts.shape or not len(self.sizes):
            raise CodecError("the probability tables do not fit together")
        if self.sizes.min() < 2 or ends[-1] != len(self.counts):
            raise CodecError("the probability tables do not fit together")
        sums = np.add.reduceat(self.counts.astype(np.int64), ends - self.sizes)
        if (sums + self.sizes != 1 << PRECISION).any():
            raise CodecError("the probability tables are not normalised")

    def __len__(self) -> int:
        return len(self.sizes)

    def table(self, index: int) -> tuple[np.ndarray, int]:
        """Return counts and first integer of one table."""
        start = int(self.sizes[:index].sum())
        return self.counts[start : start + int(self.sizes[index])], int(self.firsts[index])

    @classmethod
    def from_masses(
        cls, masses: list[np.ndarray], firsts: list[int], bits: int | None = None
    ) -> Tables:
        """Make tables of probability masses (one array per table, summing to at most 1).

        With ``bits``, the probabilities are multiples of ``2**-bits``, at least one of them each.
        """
        counts = [_counts(mass) if bits is None else _coarse(mass, bits) for mass in masses]
        return cls(
            counts=np.concatenate(counts).astype(np.uint32),
            sizes=np.array([len(entry) for entry in counts], np.int32),
            firsts=np.array(firsts, np.int32),
        )


def _counts(mass: np.ndarray) -> np.ndarray:
    """Return integer counts, escape first, that sum to 2**PRECISION less their number."""
    mass = np.concatenate([[max(0.0, 1.0 - mass.sum())], mass])
    free = (1 << PRECISION) - len(mass)
    counts = np.floor(mass / mass.sum() * free).astype(np.int64)
    counts[counts.argmax()] += free - counts.sum()
    return counts


def _coarse(mass: np.ndarray, bits: int) -> np.ndarray:
    """Return such counts for probabilities that are multiples of 2**-bits, as CompressAI's are.

    What rounding leaves over is the escape's, which thereby gets much more than its mass; entries
    without a share take one from the entry that has the least to give.
    """
    whole = 1 << bits
    shares = np.rint(np.append(mass, max(0.0, 1.0 - mass.sum())) * whole).astype(np.int64)
    shares = shares * whole // shares.sum()
    shares[-1] += whole - shares.sum()
    for place in np.flatnonzero(shares == 0):
        shares[np.where(shares > 1, shares, whole + 1).argmin()] -= 1
        shares[place] = 1
    return np.roll(shares << PRECISION - bits, 1) - 1


def scale_table(low: float = 0.11, high: float = 256.0, levels: int = 64) -> np.ndarray:
    """Return the standard deviations of the Gaussian tables, evenly spaced in their logarithm."""
    return np.exp(np.linspace(math.log(low), math.log(high), levels))


def gaussian_tables(scales: np.ndarray, tail: float = TAIL, bits: int | None = None) -> Tables:
    """Return the tables of zero-mean Gaussians integrated over unit cells.

    Args:
        scales: standard deviations.
        tail: probability mass that the tables leave out.
        bits: see :meth:`Tables.from_masses`.
    """
    masses, firsts = [], []
    for scale in scales:
        reach = max(1, math.ceil(-NormalDist().inv_cdf(tail / 2) * scale))
        edges = (np.arange(reach + 1) + 0.5) / (scale * math.sqrt(2.0))
        upper = np.array([math.erfc(edge) for edge in edges])
        half = 0.5 * (upper[:-1] - upper[1:])
        masses.append(np.concatenate([half[::-1], [1.0 - upper[0]], half]))
        firsts.append(-reach)
    return Tables.from_masses(masses, firsts, bits)


def bottleneck_tables(
    matrices: list[np.ndarray],
    biases: list[np.ndarray],
    factors: list[np.ndarray],
    quantiles: np.ndarray | None = None,
    bits: int | None = None,
) -> tuple[Tables, np.ndarray]:
    """Return the tables of a learned factorised density, and their centres.

    The density is that of Balle et al., "Variational Image Compression with a Scale Hyperprior"
    (ICLR 2018, appendix 6.1): per channel a small monotone network whose output is the logit of
    the cumulative distribution.

    Args:
        matrices: (channels, out, in) per layer, before the softplus.
        biases: (channels, out, 1) per layer.
        factors: (channels, out, 1) per layer but the last, before the tanh.
        quantiles: float64 (channels, 3), rising: the tables' first point, what z is counted from,
            and their last point; the density's own lower end, median and upper end if not given.
        bits: see :meth:`Tables.from_masses`.

    Returns:
        One table per channel for the integers ``round(z - centre)``, and the float64 centres.

    Raises:
        CodecError: the density is not finite, or too wide to tabulate.
    """
    logits, channels = _logits(matrices, biases, factors), len(matrices[0])
    if quantiles is None:
        quantiles = density_quantiles(matrices, biases, factors)
    low, centres, high = quantiles.T
    # Not finite, or out of order, or with an end that is out of reach: all make a sum too large.
    if not np.abs(high - centres).max() + np.abs(centres - low).max() <= 20000:
        raise CodecError("the hyperprior's density of z is too wide to tabulate")
    below = np.maximum(np.ceil(centres - low), 0).astype(int)
    above = np.maximum(np.ceil(high - centres), 0).astype(int)
    masses, firsts = [], []
    for channel in range(channels):
        reach = np.arange(-below[channel], above[channel] + 2) - 0.5
        points = np.broadcast_to(centres[channel] + reach, (channels, len(reach)))
        edges = logits(points)[channel]
        # Difference of two sigmoids, on the side where both are small.
        sign = -np.sign(edges[:-1] + edges[1:])
        masses.append(np.abs(_sigmoid(sign * edges[1:]) - _sigmoid(sign * edges[:-1])))
        firsts.append(-int(below[channel]))
    return Tables.from_masses(masses, firsts, bits), centres


def density_quantiles(
    matrices: list[np.ndarray],
    biases: list[np.ndarray],
    factors: list[np.ndarray],
    tail: float = TAIL,
) -> np.ndarray:
    """Return where a learned density leaves half of ``tail`` below, its median, and half above.

    Returns:
        float64 (channels, 3).
    """
    logits = _logits(matrices, biases, factors)
    target = math.log(tail / 2 / (1 - tail / 2))
    goals = (target, 0.0, -target)
    return np.stack([_solve(logits, len(matrices[0]), goal) for goal in goals], axis=1)


def _logits(
    matrices: list[np.ndarray], biases: list[np.ndarray], factors: list[np.ndarray]
) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function whose sigmoid is the cumulative density of points (channels, n)."""
    matrices, biases, factors = (
        [np.asarray(array, np.float64) for array in arrays]
        for arrays in (matrices, biases, factors)
    )
    positive = [np.logaddexp(0.0, matrix) for matrix in matrices]

    def logits(x: np.ndarray) -> np.ndarray:
        value = x[:, None, :]
        for layer, (matrix, bias) in enumerate(zip(positive, biases, strict=True)):
            value = matrix @ value + bias
            if layer < len(factors):
                value = value + np.tanh(factors[layer]) * np.tanh(value)
        result: np.ndarray = value[:, 0, :]
        return result

    return logits


def _sigmoid(x: np.ndarray) -> np.ndarray:
    if x.max() < 0:
        return 0.5 * (1.0 + np.tanh(0.5 * x))
    with np.errstate(over="ignore"):  # infinity is the right divisor
        return 1.0 / (1.0 + np.exp(-x))


def _solve(logits, channels: int, goal: float) -> np.ndarray:  # type: ignore[no-untyped-def]
    """Return the points where the increasing function ``logits`` reaches ``goal``."""
    low, high = np.full(channels, -1.0), np.full(channels, 1.0)
    for _ in range(40):
        low = np.where(logits(low[:, None])[:, 0] > goal, 2 * low, low)
        high = np.where(logits(high[:, None])[:, 0] < goal, 2 * high, high)
    for _ in range(80):
        middle = (low + high) / 2
        above = logits(middle[:, None])[:, 0] > goal
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return (low + high) / 2
