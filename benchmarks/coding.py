"""What coding a feature costs: ours over the bare encoder's, in one run, and milliseconds.

    python benchmarks/coding.py [--models LADDER.safetensors] [--only x265] [--no-large]

The bare encoder of x265 is PyAV's encode call on a frame that is ready; of VVenC, an ffmpeg
process fed the same bytes and read to its end.  The hyperprior's is its networks alone (the
matrix products and what lies between), without entropy coding and bitstream.  One feature of the
published benchmark's largest size is coded as well, and there quantising and packing count.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from measuring import turns
from results import Result, figure, run

from cfqa_data.codecs import Codec, get_codec
from cfqa_data.format.packing import pack, unpack
from cfqa_data.format.quantizers import UniformQuantizer

SHAPES = {"cls": (65, 192), "seg": (130, 192), "dpt": (130, 768)}
QPS = (10, 30, 45)
BATCH = 10

LARGE = (3222, 6144)
LARGE_SHAPE = (2, 4, 1611, 1536)
CODECS = ("x265", "vvenc", "hyperprior")


def planes(shape: tuple[int, int], peak: int) -> list[np.ndarray]:
    """Rows that resemble their neighbours, columns with their own level and spread."""
    generator = np.random.default_rng(0)
    rows, cols = shape
    level, spread = generator.normal(0.5, 0.06, cols), generator.uniform(0.01, 0.06, cols)
    made = []
    for _ in range(BATCH):
        rough = generator.standard_normal((rows + 2, cols))
        values = level + spread * (rough[:-2] + rough[1:-1] + rough[2:]) / 1.7
        dtype = np.uint8 if peak < 256 else np.uint16
        made.append(np.clip(np.rint(values * peak), 0, peak).astype(dtype))
    return made


def bare_x265(batch: list[np.ndarray], qp: int) -> Callable[[], object]:
    """Return the encoding of ready frames by PyAV alone."""
    import av

    from cfqa_data.codecs.h26x.hevc import X265

    frames = [av.VideoFrame.from_ndarray(plane, format="gray10le") for plane in batch]
    settings = ":".join(f"{key}={value}" for key, value in {"qp": qp, **X265().parameters}.items())

    def encode() -> None:
        for frame in frames:
            context = av.CodecContext.create("libx265", "w")
            context.height, context.width = frame.height, frame.width
            context.pix_fmt, context.time_base = "gray10le", Fraction(1, 25)
            context.thread_count = 1
            context.options = {"preset": "medium", "x265-params": settings}
            [*context.encode(frame), *context.encode(None)]

    return encode


def bare_vvenc(batch: list[np.ndarray], qp: int) -> Callable[[], object]:
    """Return the ffmpeg process alone."""
    from cfqa_data.codecs.h26x.vvc import VVenC

    rows, cols = batch[0].shape
    command = VVenC()._command(rows, cols, qp)
    chroma = np.full(2 * ((rows + 1) // 2) * ((cols + 1) // 2), 512, np.uint16).tobytes()
    data = b"".join(plane.tobytes() + chroma for plane in batch)
    return lambda: subprocess.run(command, input=data, capture_output=True, check=True)


def bare_hyperprior(codec: Codec, batch: list[np.ndarray], lmbda: float) -> Callable[[], object]:
    """Return the networks of the encoder alone."""
    model = codec._model(codec._index[lmbda])  # type: ignore[attr-defined]
    return lambda: [model.latents(plane / 256.0) for plane in batch]


def small(codec: Codec, bare: str, parameters: tuple[float, ...], quick: bool) -> Iterator[Result]:
    """Yield the figures of each shape and parameter of `mini`, and of all of them together."""
    total = [0.0, 0.0]
    for task in ("cls",) if quick else SHAPES:
        batch = planes(SHAPES[task], codec.peak)
        for parameter in parameters:
            if bare == "x265":
                reference = bare_x265(batch, int(parameter))
            elif bare == "vvenc":
                reference = bare_vvenc(batch, int(parameter))
            else:
                reference = bare_hyperprior(codec, batch, parameter)
            streams = codec.encode_many(batch, parameter)  # also the warm-up
            calls = [
                reference,
                lambda: codec.encode_many(batch, parameter),  # noqa: B023
                lambda: codec.decode_many(streams, SHAPES[task]),  # noqa: B023
            ]
            taken = turns(calls, 2 if quick else 7)
            alone, encode, decode = (1e3 * value / BATCH for value in taken)
            total = [total[0] + encode, total[1] + alone]
            name = f"{codec.name}, {task} at {parameter:g}"
            yield Result(f"{name}: encode a plane", encode, "ms", "alone", alone)
            yield Result(f"{name}: decode a plane", decode, "ms", "encode", encode)
            yield Result(f"{name}: size", sum(map(len, streams)) / BATCH, "bytes")
    yield figure(f"{codec.name}: encode mini's planes", *total)


def large(codec: Codec, bare: Callable[..., Callable[[], object]], qp: int) -> Iterator[Result]:
    """Yield the figures of a dpt feature of 2 x 4 x 1611 x 1536: float32 to bitstream, and back."""
    plane = planes(LARGE, codec.peak)[0]
    quantizer = UniformQuantizer(bits=10, lo=(-4.0,) * 4, hi=(4.0,) * 4)
    feature = quantizer.dequantize(unpack(plane, LARGE_SHAPE))
    stream = codec.encode(plane, qp)
    alone, encode, decode = turns(
        [
            bare([plane], qp),
            lambda: codec.encode(pack(quantizer.quantize(feature)), qp),
            lambda: quantizer.dequantize(unpack(codec.decode(stream, LARGE), LARGE_SHAPE)),
        ],
        repeats=2,
    )
    name = f"{codec.name}: a full-size dpt feature at QP {qp}"
    yield figure(name, encode, alone)
    yield Result(f"{name}, decode", decode, "s", "encode", encode)
    yield Result(f"{name}, size", len(stream) / 1e6, "MB")


def measure(given: argparse.Namespace) -> Iterator[Result]:
    """Yield the figures of each codec."""
    chosen = given.only or (["x265"] if given.quick else list(CODECS))
    for name in ("x265", "vvenc"):
        if name in chosen:
            yield from small(get_codec(name), name, QPS[1:2] if given.quick else QPS, given.quick)
    if "hyperprior" in chosen:
        learned = get_codec("hyperprior_multi_task", models=given.models)
        lambdas = sorted(learned.lambdas)  # type: ignore[attr-defined]
        ends = tuple(dict.fromkeys((lambdas[-1], lambdas[0])))
        yield from small(learned, "hyperprior", ends, given.quick)
    if not given.no_large and not given.quick:
        if "x265" in chosen:
            for qp in (10, 30):
                yield from large(get_codec("x265"), bare_x265, qp)
        if "vvenc" in chosen:
            yield from large(get_codec("vvenc"), bare_vvenc, 30)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", type=Path, help="a ladder other than the shipped one")
    parser.add_argument("--only", action="append", choices=CODECS, help="default: all")
    parser.add_argument("--no-large", action="store_true", help="only planes of mini's size")


if __name__ == "__main__":
    sys.exit(run(__doc__, measure, options))
