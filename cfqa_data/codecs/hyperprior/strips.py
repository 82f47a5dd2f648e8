"""Run networks on large planes in strips of rows, bit-identical to the whole plane.

To compute a strip of the output, each layer gets only the input rows that it needs, with its own
zero padding at the plane's edge, and output rows that the cut made wrong are dropped. Strips do not
change the result because every sum of :mod:`cfqa_data.codecs.hyperprior.fixed_point` is exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cfqa_data.codecs.hyperprior.fixed_point import Layer

__all__ = ["BUDGET", "Network"]

BUDGET = 1 << 28
"""Bytes that the largest activation of a strip may have, without the overlap of strips."""


class Network:
    """A sequence of layers."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = layers

    def __call__(self, x: np.ndarray, budget: int | None = None) -> np.ndarray:
        """Return the output of the layers for ``x`` (channels, rows, cols), which is not modified.

        Args:
            x: Values on the layers' grid.
            budget: Bytes per activation; :data:`BUDGET` by default.
        """
        shapes: list[tuple[int, ...]] = [x.shape]
        for layer in self.layers:
            shapes.append(layer.shape(shapes[-1]))
        height = shapes[-1][1]
        largest = max(8 * int(np.prod(shape)) for shape in shapes)
        count = -(-largest // (BUDGET if budget is None else budget))
        # Strips begin at rows that correspond to an input row of every deconvolution.
        grid = int(np.prod([layer.up for layer in self.layers]))
        strip = -(-height // (min(count, height) * grid)) * grid
        heights = [shape[1] for shape in shapes]
        out = np.empty(shapes[-1])
        for top in range(0, height, strip):
            bottom = min(top + strip, height)
            out[:, top:bottom] = _compute_rows(self.layers, heights, x, top, bottom)
        return out


def _compute_rows(
    layers: Sequence[Layer], heights: list[int], x: np.ndarray, top: int, bottom: int
) -> np.ndarray:
    """Return the rows top..bottom-1 of the last layer's output."""
    if not layers:
        return x[:, top:bottom]
    *before, layer = layers
    up, stride, half = layer.up, layer.stride, layer.half
    low = stride * max(0, top // up - -(-half // stride))
    high = min(heights[len(before)], stride * ((bottom - 1) // up) + half + 1)
    out = layer(_compute_rows(before, heights, x, low, high))
    first = low * up // stride
    return out[:, top - first : bottom - first]
