"""Geometry of views: sliding windows, the scored crop of a depth map, and other normalisations.

The defaults are those of the published evaluation; the metadata of a head's file may differ.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cfqa_data.errors import BuildError, prefixed
from cfqa_data.format.fields import Checked, Count, Number
from cfqa_data.pixels import MEAN, STD, normalise

__all__ = [
    "DEPTH_RANGE",
    "IGNORE",
    "DepthGeometry",
    "SegGeometry",
    "from_metadata",
    "normalise",
    "renormalise",
    "window_starts",
]

IGNORE = 255
"""Class of the pixels of a mask that are not scored."""

DEPTH_RANGE = (0.001, 10.0)
"""Range of valid depths in the published evaluation, in metres."""


class _Geometry(Checked):
    error = BuildError
    complete = False
    where_format = "geometry"


@dataclass(frozen=True)
class SegGeometry(_Geometry):
    """Sliding windows over an image whose short side is scaled; all lengths are in pixels."""

    window: Count = 512
    stride: Count = 341
    short_side: Count = 512
    long_side_limit: Count = 2048

    def scaled(self, height: int, width: int) -> tuple[int, int]:
        """Return the size of an image after its short side is scaled to `short_side`.

        Raises:
            BuildError: If the image has no pixel.
        """
        if min(height, width) < 1:
            raise BuildError(f"an image of {height}x{width} has no pixels")
        scale = min(self.long_side_limit / max(height, width), self.short_side / min(height, width))
        return int(height * scale + 0.5), int(width * scale + 0.5)

    def corners(self, rows: int, columns: int) -> list[tuple[int, int]]:
        """Return the top left pixels of the windows over a scaled image, row by row."""
        return [
            (top, left)
            for top in window_starts(rows, self.window, self.stride)
            for left in window_starts(columns, self.window, self.stride)
        ]


@dataclass(frozen=True)
class DepthGeometry(_Geometry):
    """Size of a depth map, and the half-open ranges of rows and columns that are scored."""

    height: Count = 480
    width: Count = 640
    rows: tuple[Number, Number] = (45, 471)
    columns: tuple[Number, Number] = (41, 601)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, end in (("rows", self.height), ("columns", self.width)):
            first, last = span = getattr(self, name)
            self.require(first < last <= end, f".{name} {span!r} is not a range within 0..{end}")


def from_metadata(kind: type[Checked], text: str, origin: str) -> Any:
    """Create a geometry from JSON metadata; missing values are those of the published evaluation.

    Raises:
        BuildError: If the metadata is not JSON, or not a geometry of this kind.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise BuildError(f"{origin}: the geometry in its metadata is not JSON") from None
    with prefixed(origin, BuildError, BuildError):
        return kind.from_dict(values, where="geometry")


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Return the first pixels of the windows that cover an axis; the last is shifted inside."""
    count = max(length - window + stride - 1, 0) // stride + 1
    return [min(index * stride, length - window) for index in range(count)]


def renormalise(images: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Convert images (..., 3, H, W) normalised by ImageNet's statistics to another normalisation.

    Images are returned unchanged if `mean` and `std` are those of ImageNet.
    """
    other_mean, other_std = np.array(mean, np.float32), np.array(std, np.float32)
    if np.allclose(other_mean, MEAN) and np.allclose(other_std, STD):
        return images
    shape = (3, 1, 1)
    scaled = images * STD.reshape(shape) + MEAN.reshape(shape)
    return (scaled - other_mean.reshape(shape)) / other_std.reshape(shape)
