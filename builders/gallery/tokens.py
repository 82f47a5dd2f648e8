"""Pictures of the tokens of a feature: where compression errs, and what tokens are alike."""

from __future__ import annotations

import numpy as np

from cfqa_data.access.grid import TokenGrid

__all__ = ["Tokens"]

LEAST = 4
"""Tokens beside the prefix below which there is nothing to draw."""

GAP = 128
"""Grey of the column of places between two views."""


class Tokens:
    """Draws versions of one original feature; a pixel is a token, views stand side by side.

    Attributes:
        drawn: Whether the feature has tokens enough; nothing is drawn of others.

    Args:
        original: float32 (N, C, T, D).
        prefix: Leading tokens that stand for no place.
        grid: Where the others lie; they are drawn in a row where they have none.
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
        self.ends = np.percentile(centred @ self.axes, (1, 99), axis=0)
        self.spread = np.empty(original.shape[:2])
        for place in np.ndindex(self.spread.shape):  # one by one: features may be large
            patches = original[place][prefix:].astype(np.float64)
            self.spread[place] = np.square(patches - patches.mean(axis=0)).mean().clip(1e-30)

    def errors(self, compressed: np.ndarray) -> np.ndarray:
        """Return the error of each token, (rows, columns), NaN between views.

        It is root mean square over channels and layers, in units of the spread of the original's
        tokens about their mean: 1 is as wrong as that mean in place of every token.
        """
        total = np.zeros((len(compressed), compressed.shape[2] - self.prefix))
        for layer in range(compressed.shape[1]):
            gap = compressed[:, layer, self.prefix :] - self.original[:, layer, self.prefix :]
            error = np.square(gap, dtype=np.float64).mean(axis=-1)
            total += error / self.spread[:, layer, None] / compressed.shape[1]
        return self._laid_out(np.sqrt(total), np.nan)

    def colours(self, feature: np.ndarray) -> np.ndarray:
        """Return the tokens of the last layer as colours, uint8 (rows, columns, 3).

        Red, green and blue are the three principal components of the original's tokens.
        """
        low, high = self.ends
        found = (self._patches(feature, -1) - self.mean) @ self.axes
        shares = ((found - low) / (high - low).clip(1e-12)).clip(0, 1)
        colours = np.full((len(found), 3), GAP, np.uint8)
        colours[:, : shares.shape[1]] = (255 * shares).astype(np.uint8)
        of_views = colours.reshape(len(feature), -1, 3)
        return np.stack([self._laid_out(of_views[..., c], GAP) for c in range(3)], axis=-1)

    def _patches(self, feature: np.ndarray, layer: int) -> np.ndarray:
        """Return a layer's tokens of all views, float64 (N * places, D)."""
        return feature[:, layer, self.prefix :].reshape(-1, feature.shape[-1]).astype(np.float64)

    def _laid_out(self, values: np.ndarray, gap: float) -> np.ndarray:
        """Return values (N, places) as (rows, columns), views side by side."""
        shape = (self.grid.rows, self.grid.columns) if self.grid else (1, values.shape[1])
        views = values.reshape(-1, *shape)
        between = np.full((shape[0], 1), gap, values.dtype)
        parts = [part for view in views for part in (between, view)]
        return np.hstack(parts[1:])
