"""One picture of all views of an image, so that an image codec compresses what they share once.

A view that mirrors the first one takes no place in it; one that is a window of the same image
beside or below the view before it adds what it does not share; any other stands below. All pixels
come back exactly from the picture and its layout.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np

from cfqa_data.pixels import normalise, pixels_of

__all__ = ["MOST_PIXELS", "Layout", "lay_out", "views_of"]

MOST_PIXELS = 1 << 24
"""Pixels of a picture, or of all its views, beyond which it is refused."""

_HEAD, _PLACE = struct.Struct(">6H"), struct.Struct(">2H?")


class Layout(NamedTuple):
    """Where the views lie in the picture, in pixels.

    Attributes:
        size: Rows and columns of each view without its margins.
        margins: Of zeros around each view: above, below, left, right.
        places: Top, left, and whether it is mirrored, of each view.
    """

    size: tuple[int, int]
    margins: tuple[int, int, int, int]
    places: tuple[tuple[int, int, bool], ...]

    def to_bytes(self) -> bytes:
        """Return 12 bytes and 5 per view; none where the picture is the only view."""
        if self.places == ((0, 0, False),) and not any(self.margins):
            return b""
        places = b"".join(_PLACE.pack(*place) for place in self.places)
        return _HEAD.pack(*self.size, *self.margins) + places

    @classmethod
    def of(cls, data: bytes, rows: int, columns: int) -> Layout:
        """Return the layout of a picture of so many rows and columns.

        Raises:
            ValueError: If the bytes are none of such a picture.
        """
        if not data:
            return cls((rows, columns), (0, 0, 0, 0), ((0, 0, False),))
        try:
            height, width, *margins = _HEAD.unpack_from(data)
            places = tuple(_PLACE.iter_unpack(data[_HEAD.size :]))
        except struct.error:
            raise ValueError("its layout of views is damaged") from None
        above, below, left, right = margins
        outside = any(top + height > rows or at + width > columns for top, at, _ in places)
        pixels = len(places) * (above + height + below) * (left + width + right)
        if outside or not (height and width and places) or pixels > MOST_PIXELS:
            raise ValueError("its layout of views does not fit the picture")
        return cls((height, width), (above, below, left, right), places)


def lay_out(inputs: np.ndarray) -> tuple[np.ndarray, Layout] | None:
    """Return the picture, uint8 (rows, columns, 3), of views (N, 3, H, W), and its layout.

    None if some value is that of no pixel of an image normalised by ImageNet's statistics.
    """
    above, below = _margins(inputs, (0, 1, 3))
    left, right = _margins(inputs, (0, 1, 2))
    height, width = inputs.shape[2:]
    views = pixels_of(inputs[..., above : height - below, left : width - right])
    if views is None:
        return None
    rows, columns = views.shape[1:3]
    last, places = views[0], [(0, 0, False)]
    top = at = 0  # of the last view that is not mirrored
    for view in views[1:]:
        if np.array_equal(view, views[0][:, ::-1]):
            places.append((0, 0, True))
            continue
        if (step := _step(last, view)) is not None:
            at += step
        elif (step := _step(last.swapaxes(0, 1), view.swapaxes(0, 1))) is not None:
            top += step
        else:
            top, at = top + rows, 0
        places.append((top, at, False))
        last = view
    picture = np.zeros((top + rows, max(p[1] for p in places) + columns, 3), np.uint8)
    for view, (top, at, mirrored) in zip(views, places, strict=True):
        if not mirrored:
            picture[top : top + rows, at : at + columns] = view
    return picture, Layout((rows, columns), (above, below, left, right), tuple(places))


def views_of(picture: np.ndarray, layout: Layout) -> np.ndarray:
    """Return the views, normalised float32 (N, 3, H, W), of a picture."""
    rows, columns = layout.size
    above, below, left, right = layout.margins
    windows = (picture[top : top + rows, at : at + columns] for top, at, _ in layout.places)
    views = [
        window[:, ::-1] if mirrored else window
        for window, (_, _, mirrored) in zip(windows, layout.places, strict=True)
    ]
    return np.pad(normalise(np.stack(views)), ((0, 0), (0, 0), (above, below), (left, right)))


def _margins(inputs: np.ndarray, others: tuple[int, ...]) -> tuple[int, int]:
    """Return how many places of zeros, which are no pixels, begin and end an axis."""
    filled = np.asarray(inputs.any(axis=others))
    places = np.flatnonzero(filled)
    return (int(places[0]), len(filled) - 1 - int(places[-1])) if places.size else (0, 0)


def _step(before: np.ndarray, view: np.ndarray) -> int | None:
    """Return by how many columns a view lies to the right of another one that it overlaps."""
    same = (before == view[:, :1]).all(axis=(0, 2))
    for step in map(int, np.flatnonzero(same)):
        if np.array_equal(before[:, step:], view[:, : view.shape[1] - step]):
            return step
    return None
