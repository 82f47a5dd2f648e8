"""Map the tokens of a view to patches of the image."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from cfqa_data.format.facts import TaskEntry

__all__ = ["TokenGrid", "token_grid"]

PUBLISHED_DEPTH = (35, 46)
"""Rows and columns of patches of the published benchmark's depth images, 490 x 644 pixels."""


class TokenGrid(NamedTuple):
    """The token grid of a view: token `prefix_tokens + row * columns + column` is at (row, column).

    Attributes:
        prefix_tokens: Number of leading tokens without a position, such as a class token.
        rows: Number of patches along the height of a view.
        columns: Number of patches along its width.
    """

    prefix_tokens: int
    rows: int
    columns: int

    def unfold(self, values: np.ndarray) -> np.ndarray:
        """Reshape values per token (..., T) to (..., rows, columns), without the prefix tokens."""
        patches = values[..., self.prefix_tokens :]
        return patches.reshape(*values.shape[:-1], self.rows, self.columns)


def token_grid(entry: TaskEntry, version: int) -> TokenGrid | None:
    """Return the token grid of a task; None if its tokens have no grid, or an unknown one.

    Manifests of format 1 do not record the grid. Their views are squares, except for the depth
    images of the published benchmark.

    Args:
        entry: Manifest entry of the task.
        version: Format version of the manifest.
    """
    grid, patches = entry.grid, entry.shape[2] - entry.prefix_tokens
    if grid is None and version == 1:
        side = math.isqrt(patches)
        known = (side, side), PUBLISHED_DEPTH
        grid = next((shape for shape in known if math.prod(shape) == patches), None)
    return None if grid is None else TokenGrid(entry.prefix_tokens, *grid)
