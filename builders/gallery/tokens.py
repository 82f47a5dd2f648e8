"""Pictures of the tokens of a feature: their compression errors, and their similarity."""

from __future__ import annotations

import numpy as np

from cfqa_data.access.grid import TokenGrid

__all__ = ["Tokens"]

LEAST = 4
"""Minimum number of tokens after the prefix for a feature to be drawn."""

GAP = 128
"""Grey value of the column between two views."""


class Tokens:
    """Drawer of versions of one original: a pixel is a token, and views are side by side.

    Attributes:
        drawn: Whether the feature has enough tokens to be drawn.

    Args:
        original: Original, float32 (N, C, T, D).
        prefix: Number of leading tokens without a position.
        grid: Grid of the other tokens; if None, they are drawn in a row.
    """

    def __init__(self, original: np.ndarray, prefix: int, grid: TokenGrid | None) -> None:
        self.original, self.prefix, self.grid = original, prefix, grid
        self.drawn = original.shape[2] - prefix >= LEAST
        if not self.drawn:
            return
        last = self._patches(original, -1)
        self.mean = last.mean(axis=0)
        centred = last - self.mean
        _, axes = np.linalg.eigh(centred.T @ centred)
        axes = axes[:, : -min(3, axes.shape[1]) - 1 : -1]
        self.axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), range(axes.shape[1])])
        self.limits = np.percentile(centred @ self.axes, (1, 99), axis=0)
        self.variance = np.empty(original.shape[:2])
        for index in np.ndindex(self.variance.shape):  # slice by slice, since features may be large
            patches = original[index][prefix:].astype(np.float64)
            self.variance[index] = np.square(patches - patches.mean(axis=0)).mean().clip(1e-30)

    def errors(self, compressed: np.ndarray) -> np.ndarray:
        """Return the error of each token, (rows, columns), NaN between views.

        It is the root mean square over channels and layers, in units of the standard deviation of
        the original's tokens: 1 is the typical error when every token is replaced by their mean.
        """
        total = np.zeros((len(compressed), compressed.shape[2] - self.prefix))
        for layer in range(compressed.shape[1]):
            delta = compressed[:, layer, self.prefix :] - self.original[:, layer, self.prefix :]
            error = np.square(delta, dtype=np.float64).mean(axis=-1)
            total += error / self.variance[:, layer, None] / compressed.shape[1]
        return self._laid_out(np.sqrt(total), np.nan)

    def colours(self, feature: np.ndarray) -> np.ndarray:
        """Return the tokens of the last layer as colours, uint8 (rows, columns, 3).

        Red, green and blue are the first three principal components of the original's tokens.
        """
        low, high = self.limits
        components = (self._patches(feature, -1) - self.mean) @ self.axes
        shares = ((components - low) / (high - low).clip(1e-12)).clip(0, 1)
        colours = np.full((len(components), 3), GAP, np.uint8)
        colours[:, : shares.shape[1]] = (255 * shares).astype(np.uint8)
        views = colours.reshape(len(feature), -1, 3)
        return np.stack([self._laid_out(views[..., c], GAP) for c in range(3)], axis=-1)

    def _patches(self, feature: np.ndarray, layer: int) -> np.ndarray:
        """Return a layer's tokens of all views, without prefixes, float64 (N * tokens, D)."""
        return feature[:, layer, self.prefix :].reshape(-1, feature.shape[-1]).astype(np.float64)

    def _laid_out(self, values: np.ndarray, gap: float) -> np.ndarray:
        """Return values (N, tokens) as (rows, columns), with views side by side."""
        shape = (self.grid.rows, self.grid.columns) if self.grid else (1, values.shape[1])
        views = values.reshape(-1, *shape)
        between = np.full((shape[0], 1), gap, values.dtype)
        parts = [part for view in views for part in (between, view)]
        return np.hstack(parts[1:])
