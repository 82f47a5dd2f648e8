"""Encode features with one codec at every level, and decode them from the bitstreams."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cfqa_data.builders.pipeline.context import check_feature, read_tensors
from cfqa_data.errors import BuildError, CodecError, prefixed
from cfqa_data.format.packing import pack, plane_shape, unpack
from cfqa_data.format.storage import write_tensors
from cfqa_data.recipe.load import CodecSpec

__all__ = ["Coded", "StreamCache", "check_decoded", "code"]


@dataclass(frozen=True)
class StreamCache:
    """Bitstreams of a work item on disk, so that an interrupted item does not encode again.

    Attributes:
        folder: Of the item; one safetensors file per level.
        whole: The file of all levels, once it is there.
        names: Of the sources, in the order of the features.
    """

    folder: Path
    whole: Path
    names: Sequence[str]

    def read(self, level: int) -> list[bytes] | None:
        """Return a level's bitstreams in the order of the features, or None if it is not cached."""
        for path in (self.whole, self._path(level)):
            with suppress(OSError, BuildError):
                found = read_tensors(path, [f"{name}/{level}" for name in self.names])
                return [stream.tobytes() for stream in found.values()]
        return None

    def write(self, level: int, streams: Sequence[bytes]) -> None:
        """Cache a level's bitstreams."""
        named = zip(self.names, streams, strict=True)
        arrays = {f"{name}/{level}": np.frombuffer(stream, np.uint8) for name, stream in named}
        write_tensors(self._path(level), arrays)

    def remove(self) -> None:
        """Remove all levels: the item is done."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, level: int) -> Path:
        return self.folder / f"{level}.safetensors"


@dataclass(frozen=True)
class Coded:
    """The result of coding some features; each field is indexed by [feature][level].

    Attributes:
        bitstreams: Input of the decoder.
        bits: As the codec counts them; None where they are unknown.
        stored: Codes (N, C, T, D) of a codec on planes, else the float32 features.
    """

    bitstreams: list[list[bytes]]
    bits: list[list[int | None]]
    stored: list[list[np.ndarray]]


def code(
    spec: CodecSpec,
    codec: Any,
    names: Sequence[str],
    features: Sequence[np.ndarray],
    inputs: Sequence[Any],
    extract: Callable[[Any], np.ndarray],
    cache: StreamCache | None = None,
    rehearse: bool = False,
) -> Coded:
    """Encode features at every level and decode them again.

    Args:
        spec: Quantiser and levels.
        codec: Encoder and decoder.
        names: Of the sources, for errors.
        features: Originals, float32 (N, C, T, D).
        inputs: What they were extracted from, for a codec on inputs.
        extract: Gives the feature of inputs, for a codec on inputs.
        cache: Bitstreams of levels that are already encoded; new ones are added.
        rehearse: Encode the first feature, and decode the first level, twice, to see that the codec
            is deterministic.

    Raises:
        CodecError: The codec refuses one.
        BuildError: The codec returns too few results, or a feature of another shape.
    """
    on, quantizer = spec.facts.on, spec.quantizer
    shapes = [feature.shape for feature in features]
    items: Sequence[Any] = inputs if on == "inputs" else features
    if quantizer is not None:
        items = [pack(quantizer.quantize(feature)) for feature in features]

    def encode(parameter: float) -> list[bytes]:
        if on == "inputs":
            return [codec.encode(item, parameter) for item in items]
        return _by_shape(codec, items, shapes, lambda part, _: codec.encode_many(part, parameter))

    def decode(streams: list[bytes]) -> list[np.ndarray]:
        if on == "inputs":
            return [extract(codec.decode(stream)) for stream in streams]
        size = plane_shape if on == "planes" else tuple
        return _by_shape(
            codec, streams, shapes, lambda part, shape: codec.decode_many(part, size(shape))
        )

    coded = Coded([[] for _ in items], [[] for _ in items], [[] for _ in items])
    for level, parameter in enumerate(spec.levels):
        cached = cache.read(level) if cache else None
        streams = encode(parameter) if cached is None else cached
        if rehearse and level == 0 and codec.encode(items[0], parameter) != streams[0]:
            raise CodecError(
                f"level 0 at {parameter:g}: {codec.name} is not deterministic: two bitstreams of "
                f"{names[0]} differ"
            )
        with prefixed(f"level {level} at {parameter:g}", CodecError, CodecError):
            decoded = decode(streams)
            twice = decode(streams)[0] if rehearse and level == 0 else decoded[0]
        if not np.array_equal(twice, decoded[0]):
            raise CodecError(
                f"level 0 at {parameter:g}: {codec.name} is not deterministic: two decodings of "
                f"{names[0]} differ"
            )
        # After decoding, so that a damaged bitstream is never cached.
        if cache and codec.slow and cached is None:
            cache.write(level, streams)
        for n, (stream, array, shape) in enumerate(zip(streams, decoded, shapes, strict=True)):
            what = f"level {level} at {parameter:g}: what {codec.name} decodes to for {names[n]}"
            coded.bitstreams[n].append(stream)
            coded.bits[n].append(codec.rate(stream, inputs[n] if on == "inputs" else shape))
            if quantizer is None:
                coded.stored[n].append(check_feature(array, what, shape))
            else:
                check_decoded(codec, array, plane_shape(shape), what)
                coded.stored[n].append(unpack(array, shape))
    return coded


def check_decoded(codec: Any, plane: Any, shape: tuple[int, int], what: str) -> None:
    """Check the plane that a codec decoded.

    Args:
        codec: That decoded it, which states type and peak.
        plane: What it gave.
        shape: That the plane must have.
        what: Names it in the error.

    Raises:
        CodecError: It is of another type or shape, or has codes that are not in 0..peak.
    """
    wanted = f"not {np.dtype(codec.dtype)} {shape} of 0..{codec.peak}"
    if not isinstance(plane, np.ndarray):
        raise CodecError(f"{what} is a {type(plane).__name__}, {wanted}")
    low, high = (plane.min(), plane.max()) if plane.size else (0, 0)
    if (plane.dtype, plane.shape) != (codec.dtype, shape) or low < 0 or high > codec.peak:
        raise CodecError(f"{what} is {plane.dtype} {plane.shape} of {low}..{high}, {wanted}")


def _by_shape(
    codec: Any,
    items: Sequence[Any],
    shapes: Sequence[tuple[int, ...]],
    function: Callable[[list[Any], Any], Sequence[Any]],
) -> list[Any]:
    """Apply a function to the items in batches of equal feature shape."""
    results: dict[int, Any] = {}
    for shape in dict.fromkeys(shapes):
        places = [place for place, other in enumerate(shapes) if other == shape]
        cached = function([items[place] for place in places], shape)
        if len(cached) != len(places):
            raise BuildError(f"{codec.name} gave {len(cached)} results for {len(places)} features")
        results.update(zip(places, cached, strict=True))
    return [results[place] for place in range(len(items))]
