"""Run networks on large planes in strips of rows, bit-identical to the whole plane.

A strip of the output pulls the rows that it needs through the layers, each layer's own zeros at
the plane's edge included, and drops the rows that the cut made wrong.  Because every sum of
:mod:`cfqa_data.codecs.hyperprior.fixed_point` is exact, strips change no bit of the result.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cfqa_data.codecs.hyperprior.fixed_point import Layer

__all__ = ["BUDGET", "Network"]

BUDGET = 1 << 28
"""Bytes that the largest activation of a strip may have, the overlap of strips not counted."""


class Network:
    """Layers, one after the other."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = layers

    def __call__(self, x: np.ndarray, budget: int | None = None) -> np.ndarray:
        """Return what the layers make of ``x`` (channels, rows, cols), which is left as it is.

        Args:
            x: Multiples of the steps of the layers' grid.
            budget: Bytes; :data:`BUDGET` if not given.
        """
        shapes: list[tuple[int, ...]] = [x.shape]
        for layer in self.layers:
            shapes.append(layer.shape(shapes[-1]))
        height = shapes[-1][1]
        largest = max(8 * int(np.prod(shape)) for shape in shapes)
        count = -(-largest // (BUDGET if budget is None else budget))
        # Strips begin at rows that every deconvolution has an input row for.
        grid = int(np.prod([layer.up for layer in self.layers]))
        strip = -(-height // (min(count, height) * grid)) * grid
        heights = [shape[1] for shape in shapes]
        out = np.empty(shapes[-1])
        for top in range(0, height, strip):
            bottom = min(top + strip, height)
            out[:, top:bottom] = _rows(self.layers, heights, x, top, bottom)
        return out


def _rows(
    layers: Sequence[Layer], heights: list[int], x: np.ndarray, top: int, bottom: int
) -> np.ndarray:
    """Return the rows top..bottom-1 of the last layer's output."""
    if not layers:
        return x[:, top:bottom]
    *before, layer = layers
    up, stride, half = layer.up, layer.stride, layer.half
    low = stride * max(0, top // up - -(-half // stride))
    high = min(heights[len(before)], stride * ((bottom - 1) // up) + half + 1)
    out = layer(_rows(before, heights, x, low, high))
    first = low * up // stride
    return out[:, top - first : bottom - first]
