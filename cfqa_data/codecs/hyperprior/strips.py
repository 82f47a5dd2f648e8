"""Run networks on large planes in strips of rows, bit-identical to the whole plane.

A strip of the output pulls the rows that it needs through the layers, each layer's own zeros at
the plane's edge included, and drops the rows that the cut made wrong.  Because every sum of
:mod:`cfqa_data.codecs.hyperprior.fixed_point` is exact, strips change no bit of the result.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cfqa_data.codecs.hyperprior.fixed_point import GDN, Conv, Deconv

__all__ = ["BUDGET", "Layer", "apply_in_strips"]

Layer = Conv | Deconv | GDN

BUDGET = 1 << 28
"""Bytes that the largest activation of a strip may have, the overlap of strips not counted."""


def apply_in_strips(
    layers: Sequence[Layer], x: np.ndarray, budget: int | None = None
) -> np.ndarray:
    """Return what the layers make of ``x`` (channels, rows, cols), one after the other.

    Args:
        layers: the strides of all convolutions are 2.
        x: left as it is.
        budget: bytes; :data:`BUDGET` if not given.
    """
    shapes = [x.shape]
    for layer in layers:
        shapes.append(_output_shape(layer, shapes[-1]))
    height = shapes[-1][1]
    largest = max(8 * int(np.prod(shape)) for shape in shapes)
    count = -(-largest // (BUDGET if budget is None else budget))
    # Strips begin at rows that every deconvolution has an input row for.
    grid = 2 ** sum(isinstance(layer, Deconv) for layer in layers)
    strip = -(-height // (min(count, height) * grid)) * grid
    heights = [shape[1] for shape in shapes]
    out = np.empty(shapes[-1])
    for top in range(0, height, strip):
        bottom = min(top + strip, height)
        out[:, top:bottom] = _rows(layers, heights, x, top, bottom)
    return out


def _output_shape(layer: Layer, shape: tuple[int, ...]) -> tuple[int, ...]:
    _, rows, cols = shape
    if isinstance(layer, Conv):
        return layer.outputs, -(-rows // layer.stride), -(-cols // layer.stride)
    return (layer.outputs, 2 * rows, 2 * cols) if isinstance(layer, Deconv) else shape


def _rows(
    layers: Sequence[Layer], heights: list[int], x: np.ndarray, top: int, bottom: int
) -> np.ndarray:
    """Return the rows top..bottom-1 of the last layer's output."""
    if not layers:
        return x[:, top:bottom]
    layer, height = layers[-1], heights[len(layers) - 1]
    low, high, first = _source(layer, top, bottom, height)
    out = layer(_rows(layers[:-1], heights, x, low, high))
    return out[:, top - first : bottom - first]


def _source(layer: Layer, top: int, bottom: int, height: int) -> tuple[int, int, int]:
    """Return the input rows low..high-1 that output rows need, and the output row of the first."""
    if isinstance(layer, Conv):
        step, half = layer.stride, layer.kernel // 2
        first = max(0, top - -(-half // step))
        return step * first, min(height, step * (bottom - 1) + half + 1), first
    if isinstance(layer, Deconv):
        low = max(0, top // 2 - 1)
        return low, min(height, (bottom - 1) // 2 + 2), 2 * low
    return top, bottom, top
