"""Where the tokens of a view lie in the image."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from cfqa_data.format.facts import TaskEntry

__all__ = ["TokenGrid", "token_grid"]

PUBLISHED_DEPTH = (35, 46)
"""Rows and columns of a depth image's patches in the published benchmark: 490 x 644 pixels."""


class TokenGrid(NamedTuple):
    """The token grid of a view: token `prefix_tokens + row * columns + column` is at (row, column).

    Attributes:
        prefix_tokens: leading tokens that stand for no place, such as a class token.
        rows: patches along a view's height.
        columns: patches along its width.
    """

    prefix_tokens: int
    rows: int
    columns: int

    def unfold(self, values: np.ndarray) -> np.ndarray:
        """Return what belongs to tokens (..., T), without the prefix, as (..., rows, columns)."""
        places = values[..., self.prefix_tokens :]
        return places.reshape(*values.shape[:-1], self.rows, self.columns)


def token_grid(entry: TaskEntry, version: int) -> TokenGrid | None:
    """Return the token grid of a task; None where its tokens have none, or it is not known.

    Manifests of format 1 do not record it: their views are squares, but for published depth.

    Args:
        entry: of the task.
        version: of the manifest's format.
    """
    grid, patches = entry.grid, entry.shape[2] - entry.prefix_tokens
    if grid is None and version == 1:
        side = math.isqrt(patches)
        known = (side, side), PUBLISHED_DEPTH
        grid = next((found for found in known if math.prod(found) == patches), None)
    return None if grid is None else TokenGrid(entry.prefix_tokens, *grid)
