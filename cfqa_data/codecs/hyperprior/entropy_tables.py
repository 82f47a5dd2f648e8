"""Probability tables of the hyperprior, computed once and stored as integers.

A table covers the integers ``first .. first + n - 1``; its entry 0 stands for all others (the
escape).  Entries are counts of which the coder makes probabilities ``(count + 1) / 2**24``: the
counts of a table of m entries sum to ``2**24 - m``, for which constriction's conversion from
floats is the identity, so the coder's numbers are the stored ones on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from cfqa_data.errors import CodecError

__all__ = [
    "PRECISION",
    "Density",
    "Tables",
    "bottleneck_tables",
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
        fit = self.sizes.ndim == 1 and self.sizes.shape == self.firsts.shape and len(self.sizes)
        if not fit or self.sizes.min() < 2 or ends[-1] != len(self.counts):
            raise CodecError("the probability tables are inconsistent")
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
        scales: Standard deviations.
        tail: Probability mass that the tables leave out.
        bits: See :meth:`Tables.from_masses`.
    """
    return _gaussian_tables(tuple(scales.tolist()), tail, bits)


@lru_cache(maxsize=4)  # all models of a kind have the same
def _gaussian_tables(scales: tuple[float, ...], tail: float, bits: int | None) -> Tables:
    masses, firsts = [], []
    for scale in scales:
        reach = max(1, math.ceil(-NormalDist().inv_cdf(tail / 2) * scale))
        edges = (np.arange(reach + 1) + 0.5) / (scale * math.sqrt(2.0))
        upper = np.array([math.erfc(edge) for edge in edges])
        half = 0.5 * (upper[:-1] - upper[1:])
        masses.append(np.concatenate([half[::-1], [1.0 - upper[0]], half]))
        firsts.append(-reach)
    return Tables.from_masses(masses, firsts, bits)


class Density:
    """The learned factorised density of a state dict.

    It is that of Balle et al., "Variational Image Compression with a Scale Hyperprior" (ICLR 2018,
    appendix 6.1): per channel a small monotone network whose output is the logit of the cumulative
    distribution.

    Args:
        state: Arrays by CompressAI's names; of each layer the matrix (channels, out, in) before the
            softplus, the bias (channels, out, 1), and, but of the last, the factor (channels, out,
            1) before the tanh.

    Raises:
        CodecError: If it holds no whole one.
    """

    def __init__(self, state: Mapping[str, np.ndarray]) -> None:
        keys = (f"entropy_bottleneck._{{}}{layer}" for layer in range(16))
        self.layers = [
            tuple(
                np.asarray(state[name], np.float64)
                for kind in ("matrix", "bias", "factor")
                if (name := key.format(kind)) in state
            )
            for key in keys
            if key.format("matrix") in state or key.format("bias") in state
        ]
        if [len(layer) for layer in self.layers] != [3] * (len(self.layers) - 1) + [2]:
            raise CodecError("the hyperprior's state dict has an incomplete entropy bottleneck")
        self.channels = len(self.layers[0][0])

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Return the logits of the cumulative density at points (channels, n)."""
        value = x[:, None, :]
        for matrix, bias, *factors in self.layers:
            value = np.logaddexp(0.0, matrix) @ value + bias
            for factor in factors:
                value = value + np.tanh(factor) * np.tanh(value)
        result: np.ndarray = value[:, 0, :]
        return result

    def quantiles(self, tail: float = TAIL) -> np.ndarray:
        """Return where half of ``tail`` is below, the median, and where half is above.

        Returns:
            float64 (channels, 3).
        """
        target = math.log(tail / 2 / (1 - tail / 2))
        return np.stack([self._solve(goal) for goal in (target, 0.0, -target)], axis=1)

    def _solve(self, goal: float) -> np.ndarray:
        """Return the points where the logits, which increase, reach ``goal``."""

        def above(x: np.ndarray) -> np.ndarray:
            return self.logits(x[:, None])[:, 0] > goal

        low, high = np.full(self.channels, -1.0), np.full(self.channels, 1.0)
        for _ in range(40):
            low = np.where(above(low), 2 * low, low)
            high = np.where(self.logits(high[:, None])[:, 0] < goal, 2 * high, high)
        for _ in range(80):
            middle = (low + high) / 2
            beyond = above(middle)
            low, high = np.where(beyond, low, middle), np.where(beyond, middle, high)
        return (low + high) / 2


def bottleneck_tables(
    density: Density, quantiles: np.ndarray | None = None, bits: int | None = None
) -> tuple[Tables, np.ndarray]:
    """Return the tables of a learned factorised density, and their centres.

    Args:
        density: Of every channel.
        quantiles: float64 (channels, 3), rising: the tables' first point, what z is counted from,
            and their last point; the density's own lower end, median and upper end if not given.
        bits: See :meth:`Tables.from_masses`.

    Returns:
        One table per channel for the integers ``round(z - centre)``, and the float64 centres.

    Raises:
        CodecError: If the density is not finite, or too wide to tabulate.
    """
    low, centres, high = (density.quantiles() if quantiles is None else quantiles).T
    # Not finite, or out of order, or with an end that is out of reach: all make a sum too large.
    if not np.abs(high - centres).max() + np.abs(centres - low).max() <= 20000:
        raise CodecError("the hyperprior's density of z is too wide to tabulate")
    below = np.maximum(np.ceil(centres - low), 0).astype(int)
    above = np.maximum(np.ceil(high - centres), 0).astype(int)
    masses = []
    for channel, centre in enumerate(centres):
        points = centre + np.arange(-below[channel], above[channel] + 2) - 0.5
        edges = density.logits(np.broadcast_to(points, (len(centres), len(points))))[channel]
        # Difference of two sigmoids, on the side where both are small.
        sign = -np.sign(edges[:-1] + edges[1:])
        masses.append(np.abs(_sigmoid(sign * edges[1:]) - _sigmoid(sign * edges[:-1])))
    return Tables.from_masses(masses, (-below).tolist(), bits), centres


def _sigmoid(x: np.ndarray) -> np.ndarray:
    if x.max() < 0:
        return 0.5 * (1.0 + np.tanh(0.5 * x))
    with np.errstate(over="ignore"):  # infinity is the right divisor
        return 1.0 / (1.0 + np.exp(-x))
