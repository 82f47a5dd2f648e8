"""Probability tables of the hyperprior, computed once and stored as integers.

A table covers the integers ``first .. first + n - 1``; its entry 0 is the escape, which stands for
all others. The entropy coder turns counts into probabilities ``(count + 1) / 2**24``. The counts of
a table of m entries sum to ``2**24 - m``, for which constriction's conversion from floats is the
identity, so the coder uses exactly the stored numbers on every machine.
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
"""Probability mass of the escape."""

COMPRESSAI_TAIL = 1e-9
COMPRESSAI_BITS = 16
"""CompressAI's tables leave out a mass of 1e-9; their probabilities are multiples of 2**-16."""


@dataclass(frozen=True)
class Tables:
    """Concatenated probability tables.

    Attributes:
        counts: uint32, the entries of all tables.
        sizes: int32 (tables,), entries per table, including the escape.
        firsts: int32 (tables,), the integer of entry 1.
    """

    counts: np.ndarray
    sizes: np.ndarray
    firsts: np.ndarray

    def __post_init__(self) -> None:
        ends = np.cumsum(self.sizes)
        valid = self.sizes.ndim == 1 and self.sizes.shape == self.firsts.shape and len(self.sizes)
        if not valid or self.sizes.min() < 2 or ends[-1] != len(self.counts):
            raise CodecError("the probability tables are inconsistent")
        sums = np.add.reduceat(self.counts.astype(np.int64), ends - self.sizes)
        if (sums + self.sizes != 1 << PRECISION).any():
            raise CodecError("the probability tables are not normalised")

    def __len__(self) -> int:
        return len(self.sizes)

    def table(self, index: int) -> tuple[np.ndarray, int]:
        """Return the counts and the first integer of one table."""
        start = int(self.sizes[:index].sum())
        return self.counts[start : start + int(self.sizes[index])], int(self.firsts[index])

    @classmethod
    def from_masses(
        cls, masses: list[np.ndarray], firsts: list[int], bits: int | None = None
    ) -> Tables:
        """Make tables from probability masses, one array per table with a sum of at most 1.

        With ``bits``, the probabilities are positive multiples of ``2**-bits``.
        """
        counts = [
            _counts(mass) if bits is None else _quantised_counts(mass, bits) for mass in masses
        ]
        return cls(
            counts=np.concatenate(counts).astype(np.uint32),
            sizes=np.array([len(entry) for entry in counts], np.int32),
            firsts=np.array(firsts, np.int32),
        )


def _counts(mass: np.ndarray) -> np.ndarray:
    """Return integer counts, escape first, with a sum of 2**PRECISION less their number."""
    mass = np.concatenate([[max(0.0, 1.0 - mass.sum())], mass])
    free = (1 << PRECISION) - len(mass)
    counts = np.floor(mass / mass.sum() * free).astype(np.int64)
    counts[counts.argmax()] += free - counts.sum()
    return counts


def _quantised_counts(mass: np.ndarray, bits: int) -> np.ndarray:
    """Return such counts for probabilities that are multiples of 2**-bits, as in CompressAI.

    The escape gets what rounding leaves over, which is much more than its mass. Each entry of 0
    takes one from the smallest entry that is larger than 1.
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
    """Return the standard deviations of the Gaussian tables, with logarithmic spacing."""
    return np.exp(np.linspace(math.log(low), math.log(high), levels))


def gaussian_tables(scales: np.ndarray, tail: float = TAIL, bits: int | None = None) -> Tables:
    """Return the tables of zero-mean Gaussians integrated over unit cells.

    Args:
        scales: Standard deviations.
        tail: Probability mass outside the tables.
        bits: See :meth:`Tables.from_masses`.
    """
    return _gaussian_tables(tuple(scales.tolist()), tail, bits)


@lru_cache(maxsize=4)  # all models of a ladder share the tables
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
    appendix 6.1): per channel, a small monotone network returns the logit of the cumulative
    distribution.

    Args:
        state: Arrays by CompressAI's names: for each layer, the matrix (channels, out, in) before
            the softplus, the bias (channels, out, 1) and, except for the last layer, the factor
            (channels, out, 1) before the tanh.

    Raises:
        CodecError: If an array is missing.
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
        """Return the lower end, the median and the upper end of the density.

        Half of ``tail`` lies below the lower end, and half above the upper end.

        Returns:
            float64 (channels, 3).
        """
        low = math.log(tail / 2 / (1 - tail / 2))
        return np.stack([self._solve(logit) for logit in (low, 0.0, -low)], axis=1)

    def _solve(self, target: float) -> np.ndarray:
        """Return the points where the increasing logits reach ``target``, by bisection."""

        def above(x: np.ndarray) -> np.ndarray:
            return self.logits(x[:, None])[:, 0] > target

        low, high = np.full(self.channels, -1.0), np.full(self.channels, 1.0)
        for _ in range(40):
            low = np.where(above(low), 2 * low, low)
            high = np.where(self.logits(high[:, None])[:, 0] < target, 2 * high, high)
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
        density: The density of every channel.
        quantiles: float64 (channels, 3), increasing: the first point, the centre and the last point
            of the tables; by default, those of :meth:`Density.quantiles`.
        bits: See :meth:`Tables.from_masses`.

    Returns:
        One table per channel for the integers ``round(z - centre)``, and the float64 centres.

    Raises:
        CodecError: If the density is not finite, or too wide to tabulate.
    """
    low, centres, high = (density.quantiles() if quantiles is None else quantiles).T
    # NaN, wrong order and unreachable ends all fail this comparison.
    if not np.abs(high - centres).max() + np.abs(centres - low).max() <= 20000:
        raise CodecError("the hyperprior's density of z is too wide to tabulate")
    below = np.maximum(np.ceil(centres - low), 0).astype(int)
    above = np.maximum(np.ceil(high - centres), 0).astype(int)
    masses = []
    for channel, centre in enumerate(centres):
        points = centre + np.arange(-below[channel], above[channel] + 2) - 0.5
        edges = density.logits(np.broadcast_to(points, (len(centres), len(points))))[channel]
        # The difference of two sigmoids is accurate on the side where both are small.
        sign = -np.sign(edges[:-1] + edges[1:])
        masses.append(np.abs(_sigmoid(sign * edges[1:]) - _sigmoid(sign * edges[:-1])))
    return Tables.from_masses(masses, (-below).tolist(), bits), centres


def _sigmoid(x: np.ndarray) -> np.ndarray:
    if x.max() < 0:
        return 0.5 * (1.0 + np.tanh(0.5 * x))
    with np.errstate(over="ignore"):  # infinity is the right divisor
        return 1.0 / (1.0 + np.exp(-x))
