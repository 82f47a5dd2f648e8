"""Merge the views of an image into one picture, so that an image codec codes shared pixels once.

A view that mirrors the first one adds no pixels. A view that overlaps the previous one to its left
or above adds only the pixels outside the overlap. Any other view is placed below. The picture and
its layout reproduce all views exactly.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np

from cfqa_data.pixels import normalise, pixels_of

__all__ = ["MAX_PIXELS", "Layout", "merge_views", "split_views"]

MAX_PIXELS = 1 << 24
"""Largest number of pixels of a picture, or of all its views together, that is accepted."""

_HEAD, _POSITION = struct.Struct(">6H"), struct.Struct(">2H?")


class Layout(NamedTuple):
    """Positions of the views in the picture, in pixels.

    Attributes:
        size: Rows and columns of each view without its margins.
        margins: Zero padding of each view: top, bottom, left, right.
        positions: First row, first column, and whether it is mirrored, of each view.
    """

    size: tuple[int, int]
    margins: tuple[int, int, int, int]
    positions: tuple[tuple[int, int, bool], ...]

    def to_bytes(self) -> bytes:
        """Return 12 bytes and 5 per view, or no bytes where the picture is the only view."""
        if self.positions == ((0, 0, False),) and not any(self.margins):
            return b""
        positions = b"".join(_POSITION.pack(*place) for place in self.positions)
        return _HEAD.pack(*self.size, *self.margins) + positions

    @classmethod
    def of(cls, data: bytes, rows: int, columns: int) -> Layout:
        """Return the layout of a picture of ``rows`` x ``columns`` pixels.

        Raises:
            ValueError: If the bytes are no layout, or one that does not fit the picture.
        """
        if not data:
            return cls((rows, columns), (0, 0, 0, 0), ((0, 0, False),))
        try:
            height, width, *margins = _HEAD.unpack_from(data)
            positions = tuple(_POSITION.iter_unpack(data[_HEAD.size :]))
        except struct.error:
            raise ValueError("its layout of views is damaged") from None
        top, bottom, left, right = margins
        outside = any(
            row + height > rows or column + width > columns for row, column, _ in positions
        )
        pixels = len(positions) * (top + height + bottom) * (left + width + right)
        if outside or not (height and width and positions) or pixels > MAX_PIXELS:
            raise ValueError("its layout of views does not fit the picture")
        return cls((height, width), (top, bottom, left, right), positions)


def merge_views(inputs: np.ndarray) -> tuple[np.ndarray, Layout] | None:
    """Merge views (N, 3, H, W) into a picture, uint8 (rows, columns, 3); return its layout, too.

    Return None if a value is not that of an 8-bit pixel normalised with ImageNet's statistics.
    """
    top, bottom = _margins(inputs, (0, 1, 3))
    left, right = _margins(inputs, (0, 1, 2))
    height, width = inputs.shape[2:]
    views = pixels_of(inputs[..., top : height - bottom, left : width - right])
    if views is None:
        return None
    rows, columns = views.shape[1:3]
    last, positions = views[0], [(0, 0, False)]
    row = column = 0  # of the last view that is not mirrored
    for view in views[1:]:
        if np.array_equal(view, views[0][:, ::-1]):
            positions.append((0, 0, True))
            continue
        if (step := _overlap_shift(last, view)) is not None:
            column += step
        elif (step := _overlap_shift(last.swapaxes(0, 1), view.swapaxes(0, 1))) is not None:
            row += step
        else:
            row, column = row + rows, 0
        positions.append((row, column, False))
        last = view
    picture = np.zeros((row + rows, max(p[1] for p in positions) + columns, 3), np.uint8)
    for view, (row, column, mirrored) in zip(views, positions, strict=True):
        if not mirrored:
            picture[row : row + rows, column : column + columns] = view
    return picture, Layout((rows, columns), (top, bottom, left, right), tuple(positions))


def split_views(picture: np.ndarray, layout: Layout) -> np.ndarray:
    """Return the views of a picture, normalised float32 (N, 3, H, W)."""
    rows, columns = layout.size
    top, bottom, left, right = layout.margins
    windows = (
        picture[row : row + rows, column : column + columns] for row, column, _ in layout.positions
    )
    views = [
        window[:, ::-1] if mirrored else window
        for window, (_, _, mirrored) in zip(windows, layout.positions, strict=True)
    ]
    return np.pad(normalise(np.stack(views)), ((0, 0), (0, 0), (top, bottom), (left, right)))


def _margins(inputs: np.ndarray, others: tuple[int, ...]) -> tuple[int, int]:
    """Return the numbers of zeros, which no pixel maps to, at the start and end of an axis."""
    filled = np.asarray(inputs.any(axis=others))
    positions = np.flatnonzero(filled)
    return (int(positions[0]), len(filled) - 1 - int(positions[-1])) if positions.size else (0, 0)


def _overlap_shift(before: np.ndarray, view: np.ndarray) -> int | None:
    """Return how many columns ``view`` is right of ``before``, or None if they do not overlap."""
    same = (before == view[:, :1]).all(axis=(0, 2))
    for step in map(int, np.flatnonzero(same)):
        if np.array_equal(before[:, step:], view[:, : view.shape[1] - step]):
            return step
    return None
