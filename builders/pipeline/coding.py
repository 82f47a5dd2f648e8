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
    """On-disk cache of a work item's bitstreams: an interrupted item does not encode them again.

    Attributes:
        folder: Folder of the item, with one safetensors file per level.
        whole: File of all levels; it may not exist yet.
        names: Ids of the sources, in the order of the features.
    """

    folder: Path
    whole: Path
    names: Sequence[str]

    def read(self, level: int) -> list[bytes] | None:
        """Return a level's bitstreams in the order of the features, or None if it is not cached."""
        for path in (self.whole, self._path(level)):
            with suppress(OSError, BuildError):
                streams = read_tensors(path, [f"{name}/{level}" for name in self.names])
                return [stream.tobytes() for stream in streams.values()]
        return None

    def write(self, level: int, streams: Sequence[bytes]) -> None:
        """Cache a level's bitstreams."""
        named = zip(self.names, streams, strict=True)
        arrays = {f"{name}/{level}": np.frombuffer(stream, np.uint8) for name, stream in named}
        write_tensors(self._path(level), arrays)

    def remove(self) -> None:
        """Remove the cached levels, once the item is done."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, level: int) -> Path:
        return self.folder / f"{level}.safetensors"


@dataclass(frozen=True)
class Coded:
    """The result of coding features; each field is indexed by [feature][level].

    Attributes:
        bitstreams: Bitstreams, the input of the decoder.
        bits: Number of bits as counted by the codec; None where it is unknown.
        stored: Decoded (N, C, T, D) arrays: codes for a codec on planes, else float32 features.
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
        spec: Specification of the codec, with its quantiser and levels.
        codec: The codec itself.
        names: Ids of the sources, for error messages.
        features: Originals, float32 (N, C, T, D) each.
        inputs: Inputs that the features were extracted from, for a codec on inputs.
        extract: Function that extracts the feature of an input, for a codec on inputs.
        cache: Cache that supplies bitstreams which are already encoded, and stores new ones.
        rehearse: Encode the first feature and decode the first level twice, to check that the
            codec is deterministic.

    Raises:
        CodecError: If the codec rejects a feature or is not deterministic.
        BuildError: If the codec returns too few results, or a feature of another shape.
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
        # Cache after decoding, so that a damaged bitstream is never cached.
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
        codec: The codec, which states dtype and peak.
        plane: The object that its decoder returned.
        shape: Required shape of the plane.
        what: Description of the plane for the error message.

    Raises:
        CodecError: If the plane has another type or shape, or codes outside 0..peak.
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
    """Apply a function to batches of items with equal feature shape; keep the items' order."""
    results: dict[int, Any] = {}
    for shape in dict.fromkeys(shapes):
        indices = [index for index, other in enumerate(shapes) if other == shape]
        batch = function([items[index] for index in indices], shape)
        if len(batch) != len(indices):
            raise BuildError(f"{codec.name} gave {len(batch)} results for {len(indices)} features")
        results.update(zip(indices, batch, strict=True))
    return [results[index] for index in range(len(items))]
