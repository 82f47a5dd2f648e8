"""Targets of the fuzzer: bitstreams of every codec, decoded here and in a sandboxed process."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from codec_samples import extreme_planes, feature_plane
from fuzzing import Target, register
from mutations import Mutation, of_bytes
from reference_streams import recorded_streams
from stream_edits import in_header, in_sets

from cfqa_data.codecs import Codec, get_codec

__all__ = ["CODECS", "codec_of", "decode", "stream_samples"]

SHAPES = ((16, 24), (33, 40))
PARAMETERS: dict[str, Sequence[float]] = {"x265": (4, 24, 51), "vvenc": (10, 32, 63)}

CODECS: Mapping[str, tuple[Sequence[Mutation], int]] = {
    "x265": ((of_bytes, of_bytes, in_sets), 1),
    "vvenc": ((of_bytes, of_bytes, in_sets), 1),
    "hm": ((of_bytes, of_bytes, in_sets), 2),
    "vtm": ((of_bytes, of_bytes, in_sets), 2),
    "hyperprior_multi_task": ((of_bytes, in_header), 4),
    "hyperprior_task_specific": ((of_bytes, in_header), 4),
}
"""Codec -> mutations of its streams, and cost of a case."""


def _compressai(folder: Path) -> Path:
    """Write a ladder of one model in the layout of CompressAI."""
    import official_compressai as official

    from cfqa_data.codecs.hyperprior.weights import PAPER_PAD, HyperpriorWeights, write_ladder

    figures = json.loads(official.FIGURES.read_text())["far"]
    state = {name: value.numpy() for name, value in official.weights("far").items()}
    state = {_older(name): value for name, value in state.items()}
    quantiles = np.array(figures["quantiles"], np.float32)
    state["entropy_bottleneck.quantiles"] = quantiles.reshape(official.N, 1, 3)
    path = folder / "models.safetensors"
    weights = HyperpriorWeights.from_state(state, PAPER_PAD, published=True)
    write_ladder(path, "far", [(0.01, weights)])
    return path


def _older(name: str) -> str:
    """Return the former name of a parameter of the density, which ladders use."""
    for new, old in (("matrices.", "_matrix"), ("biases.", "_bias"), ("factors.", "_factor")):
        name = name.replace(f"entropy_bottleneck.{new}", f"entropy_bottleneck.{old}")
    return name


@functools.cache
def codec_of(name: str, folder: Path, untrusted: bool) -> Codec:
    """Return a codec, with the models in the folder if it uses some."""
    options: dict[str, Any] = {}
    if name == "hyperprior_task_specific":
        options["models"] = folder / "models.safetensors"
    return get_codec(name, untrusted=untrusted, **options)


def stream_samples(name: str, folder: Path) -> dict[str, bytes]:
    """Return real bitstreams of a codec, named ``RxC/...`` by the shape of their planes."""
    if name in ("hm", "vtm"):
        return {
            f"{stream.rows}x{stream.cols}/{stream.qp}": stream.data
            for stream in recorded_streams()
            if stream.codec == name and stream.data
        }
    if name == "hyperprior_task_specific":
        _compressai(folder)
    codec, streams = codec_of(name, folder, False), {}
    known: Sequence[float] = getattr(codec, "lambdas", ())
    for rows, cols in SHAPES:
        planes = extreme_planes(rows, cols, codec.peak) | {
            "feature": feature_plane(rows, cols, codec.peak)
        }
        kinds = ("feature", "noise", "peak")
        for parameter in PARAMETERS.get(name, known[:: max(1, len(known) // 2)]):
            encoded = codec.encode_many([planes[kind] for kind in kinds], parameter)
            for kind, stream in zip(kinds, encoded, strict=True):
                streams[f"{rows}x{cols}/{kind}/{parameter}"] = stream
    return streams


def decode(codec: Codec, key: str, data: bytes) -> None:
    """Decode a stream, and check the plane's shape, dtype and range."""
    rows, cols = map(int, key.split("/")[0].split("x"))
    plane = codec.decode(data, (rows, cols))
    assert plane.shape == (rows, cols), plane.shape
    assert plane.dtype == codec.dtype, plane.dtype
    assert int(plane.max()) <= codec.peak, plane.max()


def _targets(name: str, untrusted: bool) -> Target:
    def samples(folder: Path) -> dict[str, bytes]:
        return stream_samples(name, folder)

    def read(key: str, data: bytes, folder: Path) -> object:
        return decode(codec_of(name, folder, untrusted), key, data)

    mutations, cost = CODECS[name]
    return Target(
        f"{name}-isolated" if untrusted else name,
        samples,
        read,
        mutations,
        seconds=30.0 if untrusted else 10.0,
        cost=2 * cost if untrusted else cost,
        isolates=untrusted,
    )


for _name in CODECS:
    register(_targets(_name, False))
    register(_targets(_name, True))
