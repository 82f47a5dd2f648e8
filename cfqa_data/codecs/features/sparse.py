"""The largest values of each token, and their places."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cfqa_data.codecs.features.channels import CHANNELS, Values
from cfqa_data.codecs.features.formats import FORMATS, Layout, Shape
from cfqa_data.codecs.features.packed import PackedCodec

__all__ = ["TopK"]


class TopK(PackedCodec):
    """The largest absolute values of each token of a layer; the others become 0.

    Places are a list of indices, or a bit for each channel, whichever is shorter.

    Args:
        values: format of the values.
    """

    name = "topk"
    title = "the largest values"
    parameter = CHANNELS

    def __init__(self, values: Values = "float32") -> None:
        self.written = FORMATS[values]

    @classmethod
    def grid(cls) -> None:
        """Return None: how many channels there are is not known."""

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
