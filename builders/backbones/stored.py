"""A backbone for features that were extracted elsewhere: returns its inputs unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cfqa_data.builders.backbones.base import Backbone
from cfqa_data.errors import BuildError

__all__ = ["Stored"]


class Stored(Backbone):
    """Backbone that returns stored features; used with the source `features`.

    Args:
        prefix_tokens: Number of leading tokens without a position in the input.
        rows: Rows of the grid of a view's other tokens; 0 without a grid.
    """

    name = "stored features"

    def __init__(self, prefix_tokens: int = 0, rows: int = 0) -> None:
        self.prefix_tokens, self.rows = prefix_tokens, rows

    def extract(self, inputs: Any, layers: Sequence[int]) -> np.ndarray:
        """Return the chosen layers of a feature (N, C, T, D)."""
        feature = np.asarray(inputs)
        if feature.ndim != 4 or feature.dtype.kind != "f" or not feature.size:
            raise BuildError(
                f"a feature must be floating point (N, C, T, D), not {feature.dtype} "
                f"{feature.shape}"
            )
        if layers[-1] >= feature.shape[1]:
            raise BuildError(f"a feature has {feature.shape[1]} layer(s), no layer {layers[-1]}")
        return np.ascontiguousarray(feature[:, list(layers)], np.float32)

    def grid(self, inputs: Any) -> tuple[int, int] | None:
        """Return the grid; None if the tokens do not fill the rows."""
        tokens = inputs.shape[2] - self.prefix_tokens
        return (self.rows, tokens // self.rows) if self.rows and not tokens % self.rows else None
