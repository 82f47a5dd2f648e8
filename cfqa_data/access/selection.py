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
    """Which part of a feature is asked for; all of every axis that is left out."""

    views: Index
    layers: Index
    tokens: Index


@dataclass(frozen=True)
class Selection:
    """The places along the axes N, C and T of a feature (N, C, T, D) that are asked for.

    Attributes:
        views: places along N.
        layers: places along C.
        tokens: places along T.
        full: (N, C, T, D) of the whole feature.
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
        """Return the selection of a feature of shape ``full`` (N, C, T, D).

        Raises:
            CfqaError: a place is not there, is not a whole number, or a slice holds none.
        """
        if views is None and layers is None and tokens is None:
            return _all(full)
        n, c, t, d = full
        return cls(
            _places("view", views, n),
            _places("layer", layers, c),
            _places("token", tokens, t),
            (n, c, t, d),
        )

    @cached_property
    def whole(self) -> bool:
        """Whether it is the whole feature, in order."""
        axes = zip((self.views, self.layers, self.tokens), self.full, strict=False)
        return all(places == range(size) for places, size in axes)

    @cached_property
    def slices(self) -> list[tuple[int, int]]:
        """The (n, c) slices that it has a part in, in its order."""
        return [(n, c) for n in self.views for c in self.layers]

    @property
    def span(self) -> range:
        """The tokens from its first to its last, in order and without gaps."""
        first, last = self.tokens[0], self.tokens[-1]
        return range(min(first, last), max(first, last) + 1)

    def take(self, feature: np.ndarray) -> np.ndarray:
        """Return the selected part of a whole feature, contiguous; the feature if it is all."""
        if self.whole:
            return feature
        return self.take_tokens(feature[_slice(self.views), _slice(self.layers)])

    def take_tokens(self, slices: np.ndarray, first: int = 0) -> np.ndarray:
        """Return the selected tokens of its slices (N', C', T, D), contiguous.

        Args:
            slices: with all tokens, or those of a span.
            first: which token is the first in them.
        """
        tokens = range(self.tokens.start - first, self.tokens.stop - first, self.tokens.step)
        if tokens != range(slices.shape[2]):
            slices = slices[:, :, _slice(tokens)]
        return np.ascontiguousarray(slices)


@lru_cache(maxsize=16)
def _all(full: Shape) -> Selection:
    return Selection(range(full[0]), range(full[1]), range(full[2]), full)


def _places(what: str, part: Any, size: int) -> range:
    if part is None:
        return range(size)
    try:
        if isinstance(part, slice):
            places = range(*part.indices(size))
        else:
            place = operator.index(part)
            places = range(size)[place : place + 1 or None]
    except (TypeError, ValueError):
        raise CfqaError(f"{what}s: a whole number or a slice of them, not {part!r}") from None
    if not places:
        raise CfqaError(f"{what}s: no {what} {part!r}: {what}s are 0 to {size - 1}")
    return places


def _slice(places: range) -> slice:
    """Return the slice that takes these places, of which there is at least one."""
    stop = places.stop if places.step > 0 or places.stop >= 0 else None
    return slice(places.start, stop, places.step)
