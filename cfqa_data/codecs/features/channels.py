"""Fewer channels: the first, those that matter most, projections, or the largest of each token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np

from cfqa_data.codecs.features.formats import FORMATS, Layout, Shape
from cfqa_data.codecs.features.packed import (
    FittedCodec,
    PackedCodec,
    exact_product,
    rounded,
)
from cfqa_data.errors import CodecError
from cfqa_data.format.facts import Parameter

__all__ = ["CHANNELS", "LowRank", "Prune", "Slice", "TopK", "Values"]

CHANNELS = Parameter("channels", "higher", whole=True, lowest=1, highest=65535)

Values: TypeAlias = Literal[
    "float32", "float16", "bfloat16", "e5m2", "e4m3", "int8", "int6", "int4",
    "mxfp8", "mxfp6", "mxfp4", "nvfp4",
]  # fmt: skip
"""Formats of values: the names of `FORMATS`."""

Tables: TypeAlias = Mapping[str, np.ndarray] | None


class _Written(PackedCodec):
    """A codec that keeps k channels of each token, and writes their values in a format."""

    parameter = CHANNELS

    def __init__(self, values: Values = "float32") -> None:
        self.written = FORMATS[values]

    @classmethod
    def grid(cls) -> None:
        """Return None: how many channels there are is not known."""


class _Reduced(_Written):
    """A codec that makes (N, C, T, k) of (N, C, T, D)."""

    def layout(self, parameter: int, shape: Shape) -> Layout:
        """See :meth:`PackedCodec.layout`."""
        return self.written.layout((*shape[:-1], self.check_channels(parameter, shape)))

    def codes(self, feature: np.ndarray, parameter: int) -> Sequence[np.ndarray]:
        """See :meth:`PackedCodec.codes`."""
        return self.written.encode(self.reduce(feature, parameter))

    def values(self, codes: Sequence[np.ndarray], parameter: int, shape: Shape) -> np.ndarray:
        """See :meth:`PackedCodec.values`."""
        return self.restore(self.written.decode(codes), shape)

    def reduce(self, feature: np.ndarray, kept: int) -> np.ndarray:
        """Return what is kept of a feature."""
        return feature[..., :kept]

    def restore(self, kept: np.ndarray, shape: Shape) -> np.ndarray:
        """Return a feature of a shape from what was kept of it."""
        feature = np.zeros(shape)
        feature[..., : kept.shape[-1]] = kept
        return feature


class Slice(_Reduced):
    """The first channels; the others become 0.

    Args:
        values: Format of the values.
    """

    name = "slice"
    title = "the first channels"


class _FittedChannels(_Reduced, FittedCodec):
    def __init__(self, values: Values = "float32", tables: Tables = None) -> None:
        super().__init__(values)
        self.learned = dict(tables or {})

    def mean(self, shape: Shape) -> np.ndarray:
        """Return the training tokens' mean, (C, 1, D)."""
        return self.table("mean", (shape[1], shape[3]))[:, None].astype(np.float64)


class Prune(_FittedChannels):
    """The channels that matter most in training; the others become their training mean.

    Args:
        values: Format of the values.
        importance: What orders a layer's channels: their ``variance``, which is the squared error
            of leaving one out, or their mean ``magnitude``, both over training tokens.
        tables: What :meth:`tables` gave.
    """

    name = "prune"
    title = "the most important channels"

    def __init__(
        self,
        values: Values = "float32",
        importance: Literal["variance", "magnitude"] = "variance",
        tables: Tables = None,
    ) -> None:
        super().__init__(values, tables)
        self.importance = importance

    def learn(self, tokens: np.ndarray, seed: int) -> dict[str, np.ndarray]:
        """See :meth:`FittedCodec.learn`."""
        varies = self.importance == "variance"
        weights = tokens.var(axis=1) if varies else np.abs(tokens).mean(axis=1)
        order = np.argsort(-weights, axis=-1, kind="stable").astype(np.int32)
        return {"mean": tokens.mean(axis=1).astype(np.float32), "order": order}

    def reduce(self, feature: np.ndarray, kept: int) -> np.ndarray:
        """See :meth:`_Reduced.reduce`."""
        return np.take_along_axis(feature, self._places(feature.shape, kept), axis=-1)

    def restore(self, kept: np.ndarray, shape: Shape) -> np.ndarray:
        """See :meth:`_Reduced.restore`."""
        feature = np.broadcast_to(self.mean(shape), shape).copy()
        np.put_along_axis(feature, self._places(shape, kept.shape[-1]), kept, axis=-1)
        return feature

    def _places(self, shape: Shape, kept: int) -> np.ndarray:
        order = self.table("order", (shape[1], shape[3])).astype(np.int64)
        if (np.sort(order) != np.arange(shape[3])).any():
            raise CodecError(
                f"{self.name}: its table 'order' is not a permutation of {shape[3]} channels"
            )
        return np.broadcast_to(order[:, None, :kept], (*shape[:3], kept))


class LowRank(_FittedChannels):
    """Projections on the principal axes of a layer's training tokens, by an exact SVD.

    Args:
        values: Format of the projections.
        tables: What :meth:`tables` gave.
    """

    name = "lowrank"
    title = "principal components"

    def learn(self, tokens: np.ndarray, seed: int) -> dict[str, np.ndarray]:
        """See :meth:`FittedCodec.learn`."""
        mean = tokens.mean(axis=1).astype(np.float32)
        # The triangular factor has the singular vectors of the tokens, and is small.
        triangles = np.linalg.qr(tokens - mean[:, None], mode="r")
        axes = np.linalg.svd(triangles, full_matrices=True)[2]
        largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=-1)[..., None], axis=-1)
        return {"mean": mean, "axes": rounded(axes * np.sign(largest))}

    def reduce(self, feature: np.ndarray, kept: int) -> np.ndarray:
        """See :meth:`_Reduced.reduce`."""
        axes = self._axes(feature.shape, kept).swapaxes(-1, -2)
        return exact_product(feature - self.mean(feature.shape), axes)

    def restore(self, kept: np.ndarray, shape: Shape) -> np.ndarray:
        """See :meth:`_Reduced.restore`."""
        return self.mean(shape) + exact_product(kept, self._axes(shape, kept.shape[-1]))

    def _axes(self, shape: Shape, kept: int) -> np.ndarray:
        table = self.table("axes", (shape[1], shape[3], shape[3]))
        return table[:, :kept].astype(np.float64)


class TopK(_Written):
    """The largest absolute values of each token of a layer; the others become 0.

    Places are a list of indices, or a bit for each channel, whichever is shorter.

    Args:
        values: Format of the values.
    """

    name = "topk"
    title = "the largest values"

    def layout(self, parameter: int, shape: Shape) -> Layout:
        """See :meth:`PackedCodec.layout`."""
        channels, kept = shape[-1], (*shape[:-1], self.check_channels(parameter, shape))
        width = max(1, (channels - 1).bit_length())
        places = (shape, 1) if channels <= parameter * width else (kept, width)
        return [places, *self.written.layout(kept)]

    def codes(self, feature: np.ndarray, parameter: int) -> Sequence[np.ndarray]:
        """See :meth:`PackedCodec.codes`."""
        order = np.argsort(-np.abs(feature), axis=-1, kind="stable")
        places = np.sort(order[..., :parameter], axis=-1)
        values = self.written.encode(np.take_along_axis(feature, places, axis=-1))
        if self.layout(parameter, feature.shape)[0][1] == 1:
            marks = np.zeros(feature.shape, np.uint32)
            np.put_along_axis(marks, places, 1, axis=-1)
            return [marks, *values]
        return [places, *values]

    def values(self, codes: Sequence[np.ndarray], parameter: int, shape: Shape) -> np.ndarray:
        """See :meth:`PackedCodec.values`."""
        places = codes[0].astype(np.int64)
        if places.shape == shape and self.layout(parameter, shape)[0][1] == 1:
            if (places.sum(axis=-1) != parameter).any():
                return np.full(shape, np.nan)
            places = np.nonzero(places)[3].reshape(*shape[:-1], parameter)
        elif places.max() >= shape[-1] or (np.diff(places) <= 0).any():
            return np.full(shape, np.nan)
        feature = np.zeros(shape)
        np.put_along_axis(feature, places, self.written.decode(codes[1:]), axis=-1)
        return feature
