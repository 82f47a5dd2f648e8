"""Codecs that keep fewer channels: the first, the most important, projections, largest values."""

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
"""Formats of the values that are kept; these are the names in `FORMATS`."""

Tables: TypeAlias = Mapping[str, np.ndarray] | None


class _ChannelCodec(PackedCodec):
    """Base class of codecs that keep k channels per token and write their values in a format."""

    parameter = CHANNELS

    def __init__(self, values: Values = "float32") -> None:
        self.value_format = FORMATS[values]

    @classmethod
    def grid(cls) -> None:
        """Return None, because the number of channels is not known."""


class _ReducedCodec(_ChannelCodec):
    """Base class of codecs that reduce (N, C, T, D) to (N, C, T, k)."""

    def layout(self, parameter: int, shape: Shape) -> Layout:
        return self.value_format.layout((*shape[:-1], self.check_channels(parameter, shape)))

    def codes(self, feature: np.ndarray, parameter: int) -> Sequence[np.ndarray]:
        return self.value_format.encode(self.reduce(feature, parameter))

    def values(self, codes: Sequence[np.ndarray], parameter: int, shape: Shape) -> np.ndarray:
        return self.restore(self.value_format.decode(codes), shape)

    def reduce(self, feature: np.ndarray, kept: int) -> np.ndarray:
        """Return the ``kept`` channels of a feature."""
        return feature[..., :kept]

    def restore(self, kept: np.ndarray, shape: Shape) -> np.ndarray:
        """Return the feature of a shape that :meth:`reduce` made ``kept`` from."""
        feature = np.zeros(shape)
        feature[..., : kept.shape[-1]] = kept
        return feature


class Slice(_ReducedCodec):
    """Keeps the first channels; the others become 0.

    Args:
        values: Format of the values.
    """

    name = "slice"
    title = "the first channels"


class _FittedChannelCodec(_ReducedCodec, FittedCodec):
    def __init__(self, values: Values = "float32", tables: Tables = None) -> None:
        super().__init__(values)
        self.learned = dict(tables or {})

    def mean(self, shape: Shape) -> np.ndarray:
        """Return the mean of the training tokens, (C, 1, D)."""
        return self.table("mean", (shape[1], shape[3]))[:, None].astype(np.float64)


class Prune(_FittedChannelCodec):
    """Keeps the most important channels; the others become their mean over the training tokens.

    Args:
        values: Format of the values.
        importance: The statistic over training tokens that orders the channels of a layer: their
            ``variance``, which is the squared error of dropping one, or their mean ``magnitude``.
        tables: The result of :meth:`tables`.
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
        by_variance = self.importance == "variance"
        weights = tokens.var(axis=1) if by_variance else np.abs(tokens).mean(axis=1)
        order = np.argsort(-weights, axis=-1, kind="stable").astype(np.int32)
        return {"mean": tokens.mean(axis=1).astype(np.float32), "order": order}

    def reduce(self, feature: np.ndarray, kept: int) -> np.ndarray:
        return np.take_along_axis(feature, self._kept_channels(feature.shape, kept), axis=-1)

    def restore(self, kept: np.ndarray, shape: Shape) -> np.ndarray:
        feature = np.broadcast_to(self.mean(shape), shape).copy()
        np.put_along_axis(feature, self._kept_channels(shape, kept.shape[-1]), kept, axis=-1)
        return feature

    def _kept_channels(self, shape: Shape, kept: int) -> np.ndarray:
        order = self.table("order", (shape[1], shape[3])).astype(np.int64)
        if (np.sort(order) != np.arange(shape[3])).any():
            raise CodecError(
                f"{self.name}: its table 'order' is not a permutation of {shape[3]} channels"
            )
        return np.broadcast_to(order[:, None, :kept], (*shape[:3], kept))


class LowRank(_FittedChannelCodec):
    """Projects each layer on the principal axes of its training tokens, by an exact SVD.

    Args:
        values: Format of the projections.
        tables: The result of :meth:`tables`.
    """

    name = "lowrank"
    title = "principal components"

    def learn(self, tokens: np.ndarray, seed: int) -> dict[str, np.ndarray]:
        mean = tokens.mean(axis=1).astype(np.float32)
        # The small triangular factor has the same right singular vectors as the tokens.
        triangles = np.linalg.qr(tokens - mean[:, None], mode="r")
        axes = np.linalg.svd(triangles, full_matrices=True)[2]
        largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=-1)[..., None], axis=-1)
        return {"mean": mean, "axes": rounded(axes * np.sign(largest))}

    def reduce(self, feature: np.ndarray, kept: int) -> np.ndarray:
        axes = self._axes(feature.shape, kept).swapaxes(-1, -2)
        return exact_product(feature - self.mean(feature.shape), axes)

    def restore(self, kept: np.ndarray, shape: Shape) -> np.ndarray:
        return self.mean(shape) + exact_product(kept, self._axes(shape, kept.shape[-1]))

    def _axes(self, shape: Shape, kept: int) -> np.ndarray:
        table = self.table("axes", (shape[1], shape[3], shape[3]))
        return table[:, :kept].astype(np.float64)


class TopK(_ChannelCodec):
    """Keeps the largest magnitudes of each token of a layer; the others become 0.

    Positions are coded as a list of indices or as one bit per channel, whichever is shorter.

    Args:
        values: Format of the values.
    """

    name = "topk"
    title = "the largest values"

    def layout(self, parameter: int, shape: Shape) -> Layout:
        channels, kept = shape[-1], (*shape[:-1], self.check_channels(parameter, shape))
        width = max(1, (channels - 1).bit_length())
        positions = (shape, 1) if channels <= parameter * width else (kept, width)
        return [positions, *self.value_format.layout(kept)]

    def codes(self, feature: np.ndarray, parameter: int) -> Sequence[np.ndarray]:
        order = np.argsort(-np.abs(feature), axis=-1, kind="stable")
        positions = np.sort(order[..., :parameter], axis=-1)
        values = self.value_format.encode(np.take_along_axis(feature, positions, axis=-1))
        if self.layout(parameter, feature.shape)[0][1] == 1:
            mask = np.zeros(feature.shape, np.uint32)
            np.put_along_axis(mask, positions, 1, axis=-1)
            return [mask, *values]
        return [positions, *values]

    def values(self, codes: Sequence[np.ndarray], parameter: int, shape: Shape) -> np.ndarray:
        positions = codes[0].astype(np.int64)
        if positions.shape == shape and self.layout(parameter, shape)[0][1] == 1:
            if (positions.sum(axis=-1) != parameter).any():
                return np.full(shape, np.nan)
            positions = np.nonzero(positions)[3].reshape(*shape[:-1], parameter)
        elif positions.max() >= shape[-1] or (np.diff(positions) <= 0).any():
            return np.full(shape, np.nan)
        feature = np.zeros(shape)
        np.put_along_axis(feature, positions, self.value_format.decode(codes[1:]), axis=-1)
        return feature
