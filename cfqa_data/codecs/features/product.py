"""Product quantisation: each group of channels is coded as the nearest of up to 256 fitted centres.

Reference: Jégou, Douze, Schmid, Product quantization for nearest neighbor search, PAMI 2011.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from cfqa_data.codecs.features.formats import Layout, Shape
from cfqa_data.codecs.features.packed import FittedCodec
from cfqa_data.errors import CodecError
from cfqa_data.format.facts import Parameter

__all__ = ["ProductQuantizer"]

MAX_BITS = 8
ITERATIONS = 10
"""Iterations of Lloyd's algorithm."""

MAX_TOKENS = 2560
"""Training tokens per layer to which centres are fitted."""

VALUE_BITS = 20
"""Bits to which values are rounded. With 3 more for values beyond the training values, and groups
of at most 64 channels, every sum is exact in float64 in any order."""


class ProductQuantizer(FittedCodec):
    """Codes each group of neighbouring channels as the index of its nearest centre.

    The centres of each group and layer are fitted by k-means: those of 8 bits to training tokens,
    those of fewer bits to the centres of one bit more. Values are not normalised. Values beyond
    eight times the largest training value are clipped.

    Args:
        group: Channels per group; the last group may be smaller.
        tables: The result of :meth:`tables`.
    """

    name = "pq"
    title = "product quantisation"
    parameter = Parameter("bits", "higher", unit="bits per group", whole=True, lowest=1, highest=8)
    cost = 0.5

    def __init__(self, group: int = 4, tables: Mapping[str, np.ndarray] | None = None) -> None:
        if not 1 <= group <= 64:
            raise CodecError(f"pq: a group must have 1 to 64 channels, got {group}")
        self.group = group
        self.learned = dict(tables or {})

    def learn(self, tokens: np.ndarray, seed: int) -> dict[str, np.ndarray]:
        generator = np.random.default_rng(seed)
        sample = generator.permutation(tokens.shape[1])[:MAX_TOKENS]
        step = np.ldexp(1.0, np.frexp(np.abs(tokens).max())[1] - VALUE_BITS)
        groups = self._groups(np.rint(tokens[:, sample] / step))
        centres = {
            bits: np.empty((*groups.shape[:2], 1 << bits, self.group))
            for bits in range(1, MAX_BITS + 1)
        }
        for index in np.ndindex(*groups.shape[:2]):
            points, weights = groups[index], np.ones(len(sample))
            for bits in range(MAX_BITS, 0, -1):
                points, weights = k_means(points, weights, 1 << bits)
                centres[bits][index] = points
        tables = {f"centres_{bits}": (c * step).astype(np.float32) for bits, c in centres.items()}
        return tables | {"step": np.full(tokens.shape[0], step)}

    def layout(self, parameter: int, shape: Shape) -> Layout:
        return [((*shape[:3], -(-shape[3] // self.group)), parameter)]

    def codes(self, feature: np.ndarray, parameter: int) -> Sequence[np.ndarray]:
        step = self.table("step", feature.shape[1:2]).max()
        limit = 1 << VALUE_BITS + 3
        tokens = feature.swapaxes(0, 1).astype(np.float64)
        points = self._groups(
            np.clip(np.rint(tokens / step), -limit, limit).reshape(
                feature.shape[1], -1, feature.shape[3]
            )
        )
        centres = np.rint(self._centres(parameter, feature.shape) / step)
        codes = np.stack(
            [
                [nearest(p, c) for p, c in zip(*layer, strict=True)]
                for layer in zip(points, centres, strict=True)
            ]
        )  # (C, groups, N * T)
        n, c, t, _ = feature.shape
        return [codes.reshape(c, -1, n, t).transpose(2, 0, 3, 1)]

    def values(self, codes: Sequence[np.ndarray], parameter: int, shape: Shape) -> np.ndarray:
        centres = self._centres(parameter, shape)
        layers, groups = np.ogrid[: shape[1], : centres.shape[1]]
        decoded = centres[layers[:, None], groups[:, None], codes[0]]
        return decoded.reshape(*shape[:3], -1)[..., : shape[3]]

    def _centres(self, bits: int, shape: Shape) -> np.ndarray:
        groups = -(-shape[3] // self.group)
        table = self.table(f"centres_{bits}", (shape[1], groups, 1 << bits, self.group))
        return table.astype(np.float64)

    def _groups(self, tokens: np.ndarray) -> np.ndarray:
        """Return tokens (C, tokens, D) as (C, groups, tokens, group), padded with zeros."""
        layers, count, channels = tokens.shape
        padded = np.pad(tokens, [(0, 0), (0, 0), (0, -channels % self.group)])
        return padded.reshape(layers, count, -1, self.group).swapaxes(1, 2)


def nearest(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Return the index of the nearest centre of each point, the first of ties.

    Points and centres are integers.
    """
    return np.argmin((centres**2).sum(axis=1) - 2 * points @ centres.T, axis=1)


def k_means(points: np.ndarray, weights: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the centres of weighted points by Lloyd's algorithm, and the weight of each centre.

    The first points are the initial centres; an empty centre stays in place. Points and centres are
    integers.
    """
    centres = np.resize(points, (count, points.shape[1]))
    for _ in range(ITERATIONS):
        codes = nearest(points, centres)
        totals = np.bincount(codes, weights, count)
        sums = np.stack([np.bincount(codes, weights * x, count) for x in points.T], axis=1)
        moved = np.where(
            totals[:, None] > 0, np.rint(sums / np.maximum(totals, 1)[:, None]), centres
        )
        if (moved == centres).all():
            break
        centres = moved
    return centres, np.bincount(nearest(points, centres), weights, count)
