"""Product quantisation: groups of channels as the nearest of up to 256 fitted centres.

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

MOST_BITS = 8
ROUNDS = 10
"""Of Lloyd's algorithm."""

MOST_TOKENS = 2560
"""Training tokens of a layer that centres are fitted to."""

GRID = 20
"""Bits of a training value. With 3 more for values beyond, and groups of at most 64 channels, every
sum is exact in float64, whatever its order."""


class ProductQuantizer(FittedCodec):
    """Groups of neighbouring channels, each as the number of its nearest centre.

    The centres of each group of each layer are fitted to training tokens by k-means, those of fewer
    bits to the centres of one bit more. No norm or scale is assumed. Values beyond eight times the
    largest training value are cut there.

    Args:
        group: Channels of a group; the last one may be smaller.
        tables: What :meth:`tables` gave.
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
        """See :meth:`FittedCodec.learn`."""
        generator = np.random.default_rng(seed)
        chosen = generator.permutation(tokens.shape[1])[:MOST_TOKENS]
        step = np.ldexp(1.0, np.frexp(np.abs(tokens).max())[1] - GRID)
        groups = self._groups(np.rint(tokens[:, chosen] / step))
        found = {bits: np.empty((*groups.shape[:2], 1 << bits, self.group)) for bits in range(1, 9)}
        for place in np.ndindex(*groups.shape[:2]):
            points, weights = groups[place], np.ones(len(chosen))
            for bits in range(MOST_BITS, 0, -1):
                points, weights = k_means(points, weights, 1 << bits)
                found[bits][place] = points
        tables = {f"centres_{bits}": (c * step).astype(np.float32) for bits, c in found.items()}
        return tables | {"step": np.full(tokens.shape[0], step)}

    def layout(self, parameter: int, shape: Shape) -> Layout:
        """See :meth:`PackedCodec.layout`."""
        return [((*shape[:3], -(-shape[3] // self.group)), parameter)]

    def codes(self, feature: np.ndarray, parameter: int) -> Sequence[np.ndarray]:
        """See :meth:`PackedCodec.codes`."""
        step = self.table("step", feature.shape[1:2]).max()
        most = 1 << GRID + 3
        tokens = feature.swapaxes(0, 1).astype(np.float64)
        points = self._groups(
            np.clip(np.rint(tokens / step), -most, most).reshape(
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
        """See :meth:`PackedCodec.values`."""
        centres = self._centres(parameter, shape)
        layers, groups = np.ogrid[: shape[1], : centres.shape[1]]
        found = centres[layers[:, None], groups[:, None], codes[0]]
        return found.reshape(*shape[:3], -1)[..., : shape[3]]

    def _centres(self, bits: int, shape: Shape) -> np.ndarray:
        groups = -(-shape[3] // self.group)
        table = self.table(f"centres_{bits}", (shape[1], groups, 1 << bits, self.group))
        return table.astype(np.float64)

    def _groups(self, tokens: np.ndarray) -> np.ndarray:
        """Return (C, groups, tokens, group) of (C, tokens, D); missing channels are 0."""
        layers, count, channels = tokens.shape
        padded = np.pad(tokens, [(0, 0), (0, 0), (0, -channels % self.group)])
        return padded.reshape(layers, count, -1, self.group).swapaxes(1, 2)


def nearest(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Return the number of the nearest centre of each point, the first of equals; whole numbers."""
    return np.argmin((centres**2).sum(axis=1) - 2 * points @ centres.T, axis=1)


def k_means(points: np.ndarray, weights: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return centres of weighted points by Lloyd's algorithm, and the weight of each.

    It begins with the first points; an empty centre stays where it is. Points and centres are whole
    numbers.
    """
    centres = np.resize(points, (count, points.shape[1]))
    for _ in range(ROUNDS):
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
