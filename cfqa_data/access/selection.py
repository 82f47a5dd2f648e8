"""Select views, layers and tokens of a feature by index or slice."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, SupportsIndex, TypedDict

import numpy as np

from cfqa_data.errors import CfqaError

__all__ = ["Index", "Part", "Selection"]

Shape = tuple[int, int, int, int]

Index = SupportsIndex | slice | None
"""An index along one axis (negative: from the end), a slice, or None for the whole axis."""


class Part(TypedDict, total=False):
    """Selection along the axes of a feature; an axis that is left out is selected whole."""

    views: Index
    layers: Index
    tokens: Index


@dataclass(frozen=True)
class Selection:
    """The selected indices along the axes N, C and T of a feature (N, C, T, D).

    Attributes:
        views: Indices along N.
        layers: Indices along C.
        tokens: Indices along T.
        full: Shape (N, C, T, D) of the whole feature.
    """

    views: range
    layers: range
    tokens: range
    full: Shape

    @classmethod
    def of(
        cls,
        full: Shape,
        views: Index = None,
        layers: Index = None,
        tokens: Index = None,
    ) -> Selection:
        """Return a selection from a feature of shape ``full`` (N, C, T, D).

        Raises:
            CfqaError: If an index is out of range or is not an integer, or a slice is empty.
        """
        if views is None and layers is None and tokens is None:
            return _all(full)
        n, c, t, d = full
        return cls(
            _indices("view", views, n),
            _indices("layer", layers, c),
            _indices("token", tokens, t),
            (n, c, t, d),
        )

    @cached_property
    def whole(self) -> bool:
        """Whether the whole feature is selected, in order."""
        axes = zip((self.views, self.layers, self.tokens), self.full, strict=False)
        return all(indices == range(size) for indices, size in axes)

    @cached_property
    def slices(self) -> list[tuple[int, int]]:
        """The selected slices (n, c), in order of selection."""
        return [(n, c) for n in self.views for c in self.layers]

    @property
    def span(self) -> range:
        """The contiguous range of tokens from the first to the last selected one, ascending."""
        first, last = self.tokens[0], self.tokens[-1]
        return range(min(first, last), max(first, last) + 1)

    def take(self, feature: np.ndarray) -> np.ndarray:
        """Return the selected part of a whole feature, C-contiguous; the feature itself if all."""
        if self.whole:
            return feature
        return self.take_tokens(feature[_slice(self.views), _slice(self.layers)])

    def take_tokens(self, slices: np.ndarray, first: int = 0) -> np.ndarray:
        """Return the selected tokens of selected slices (N', C', T, D), C-contiguous.

        Args:
            slices: The slices with all tokens, or with those of :attr:`span`.
            first: Index of their first token.
        """
        tokens = range(self.tokens.start - first, self.tokens.stop - first, self.tokens.step)
        if tokens != range(slices.shape[2]):
            slices = slices[:, :, _slice(tokens)]
        return np.ascontiguousarray(slices)


@lru_cache(maxsize=16)
def _all(full: Shape) -> Selection:
    return Selection(range(full[0]), range(full[1]), range(full[2]), full)


def _indices(what: str, part: Any, size: int) -> range:
    if part is None:
        return range(size)
    try:
        if isinstance(part, slice):
            indices = range(*part.indices(size))
        else:
            index = operator.index(part)
            indices = range(size)[index : index + 1 or None]
    except (TypeError, ValueError):
        raise CfqaError(f"{what}s: a whole number or a slice of them, not {part!r}") from None
    if not indices:
        raise CfqaError(f"{what}s: no {what} {part!r}: {what}s are 0 to {size - 1}")
    return indices


def _slice(indices: range) -> slice:
    """Return the slice that selects the indices of a non-empty range."""
    stop = indices.stop if indices.step > 0 or indices.stop >= 0 else None
    return slice(indices.start, stop, indices.step)
