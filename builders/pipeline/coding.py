"""One ladder on some features: quantise, pack, encode, and decode from the bitstreams alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cfqa_data.builders.pipeline.kept import KeptStreams
from cfqa_data.errors import BuildError, CodecError
from cfqa_data.format.packing import pack, plane_shape, unpack
from cfqa_data.format.quantizers import Quantizer

__all__ = ["code_ladder"]


def code_ladder(
    codec: Any,
    quantizer: Quantizer,
    features: np.ndarray,
    parameters: Sequence[float],
    kept: KeptStreams | None = None,
) -> tuple[list[list[bytes]], np.ndarray]:
    """Encode features at every level and decode them again.

    Args:
        codec: encoder and decoder of planes.
        quantizer: between features and the planes' codes.
        features: float32 (S, N, C, T, D).
        parameters: one per level.
        kept: where bitstreams are put as soon as a level is encoded, and taken from.

    Returns:
        Bitstreams [level][source], and the decoded codes (S, L, N, C, T, D).

    Raises:
        CodecError: the codec refuses a plane.
        BuildError: the codec lost a plane.
    """
    shape = tuple(features.shape[1:])
    planes = [pack(codes) for codes in quantizer.quantize(features)]
    decoded = np.empty((len(features), len(parameters), *shape), quantizer.dtype)
    bitstreams: list[list[bytes]] = []
    for level, parameter in enumerate(parameters):
        found = kept.read(level) if kept else None
        streams = codec.encode_many(planes, parameter) if found is None else found
        try:
            restored = codec.decode_many(streams, plane_shape(shape))
        except CodecError as error:
            raise CodecError(f"level {level} at {parameter:g}: {error}") from None
        if len(streams) != len(planes) or len(restored) != len(planes):
            raise BuildError(
                f"{codec.name} gave {len(streams)} bitstreams for {len(planes)} planes"
            )
        if kept and found is None:  # only now: what does not decode is to be encoded again
            kept.write(level, streams)
        for index, plane in enumerate(restored):
            decoded[index, level] = unpack(plane, shape)
        bitstreams.append(streams)
    return bitstreams, decoded
