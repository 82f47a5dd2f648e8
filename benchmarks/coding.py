"""What coding a feature costs: ours over the bare encoder's, in one run, and milliseconds.

    python benchmarks/coding.py [--json] [--models LADDER.safetensors] [--large]

The bare encoder of x265 is PyAV's encode call on a frame that is ready; of VVenC, an ffmpeg
process fed the same bytes and read to its end.  The hyperprior's is its networks alone (the
matrix products and what lies between), without entropy coding and bitstream.  --large codes one
feature of the published benchmark's largest size instead, and counts quantising and packing in.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np

from cfqa_data.codecs import Codec, get_codec
from cfqa_data.packing import pack, unpack
from cfqa_data.quantizers import UniformQuantizer

SHAPES = {"cls": (65, 192), "seg": (130, 192), "dpt": (130, 768)}
QPS = (10, 30, 45)
BATCH = 10


LARGE = (3222, 6144)
LARGE_SHAPE = (2, 4, 1611, 1536)


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


def milliseconds(
    calls: list[Callable[[], object]], repeats: int = 7, count: int = BATCH
) -> list[float]:
    """Return each call's least wall time per plane; the calls take turns, so load hits all."""
    taken: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for times, call in zip(taken, calls, strict=True):
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
    return [1e3 * min(times) / count for times in taken]


def bare_x265(batch: list[np.ndarray], qp: int) -> Callable[[], object]:
    """Return the encoding of ready frames by PyAV alone."""
    import av

    from cfqa_data.codecs.hevc import PARAMETERS

    frames = [av.VideoFrame.from_ndarray(plane, format="gray10le") for plane in batch]
    settings = ":".join(f"{key}={value}" for key, value in {"qp": qp, **PARAMETERS}.items())

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
    from cfqa_data.codecs.vvc import VVenC

    rows, cols = batch[0].shape
    command = VVenC()._command(rows, cols, qp)
    chroma = np.full(2 * ((rows + 1) // 2) * ((cols + 1) // 2), 512, np.uint16).tobytes()
    data = b"".join(plane.tobytes() + chroma for plane in batch)
    return lambda: subprocess.run(command, input=data, capture_output=True, check=True)


def bare_hyperprior(codec: Codec, batch: list[np.ndarray], lmbda: float) -> Callable[[], object]:
    """Return the networks of the encoder alone."""
    model = codec._model(codec._index[lmbda])  # type: ignore[attr-defined]
    return lambda: [model.latents(plane / 256.0) for plane in batch]


def measure(codec: Codec, bare: str, parameters: tuple[float, ...]) -> list[dict]:
    """Return one row per shape and parameter."""
    rows = []
    for task, shape in SHAPES.items():
        batch = planes(shape, codec.peak)
        for parameter in parameters:
            if bare == "x265":
                reference = bare_x265(batch, int(parameter))
            elif bare == "vvenc":
                reference = bare_vvenc(batch, int(parameter))
            else:
                reference = bare_hyperprior(codec, batch, parameter)
            streams = codec.encode_many(batch, parameter)  # also the warm-up
            bare_time, encode, decode = milliseconds(
                [
                    reference,
                    lambda: codec.encode_many(batch, parameter),  # noqa: B023
                    lambda: codec.decode_many(streams, shape),  # noqa: B023
                ]
            )
            rows.append(
                {
                    "codec": codec.name,
                    "task": task,
                    "shape": list(shape),
                    "parameter": parameter,
                    "bytes": round(sum(map(len, streams)) / BATCH),
                    "encode_ms": round(encode, 2),
                    "bare_ms": round(bare_time, 2),
                    "ratio": round(encode / bare_time, 3),
                    "decode_ms": round(decode, 2),
                }
            )
    return rows


def measure_large(codec: Codec, bare: Callable[..., Callable[[], object]], qp: int) -> dict:
    """Return one row: a dpt feature of 2 x 4 x 1611 x 1536 from float32 to bitstream, and back."""
    plane = planes(LARGE, codec.peak)[0]
    quantizer = UniformQuantizer(bits=10, lo=(-4.0,) * 4, hi=(4.0,) * 4)
    feature = quantizer.dequantize(unpack(plane, LARGE_SHAPE))
    stream = codec.encode(plane, qp)
    bare_time, encode, decode = milliseconds(
        [
            bare([plane], qp),
            lambda: codec.encode(pack(quantizer.quantize(feature)), qp),
            lambda: quantizer.dequantize(unpack(codec.decode(stream, LARGE), LARGE_SHAPE)),
        ],
        repeats=2,
        count=1,
    )
    return {
        "codec": codec.name,
        "task": "dpt",
        "shape": list(LARGE),
        "parameter": qp,
        "bytes": len(stream),
        "encode_ms": round(encode, 2),
        "bare_ms": round(bare_time, 2),
        "ratio": round(encode / bare_time, 3),
        "decode_ms": round(decode, 2),
    }


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--models", type=Path, help="a ladder other than the shipped one")
    parser.add_argument("--large", action="store_true", help="the video codecs at paper size")
    given = parser.parse_args()
    if given.large:
        rows = [measure_large(get_codec("x265"), bare_x265, qp) for qp in (10, 30)]
        rows.append(measure_large(get_codec("vvenc"), bare_vvenc, 30))
    else:
        rows = [row for name in ("x265", "vvenc") for row in measure(get_codec(name), name, QPS)]
        learned = get_codec("hyperprior_multi_task", models=given.models)
        lambdas = sorted(learned.parameters)  # type: ignore[attr-defined]
        rows += measure(learned, "hyperprior", tuple(dict.fromkeys((lambdas[-1], lambdas[0]))))
    if given.json:
        print(json.dumps(rows, indent=1))
        return
    print(
        f"{'codec':22}{'plane':12}{'at':>7}{'bytes':>8}{'bare':>9}{'ours':>9}{'x':>7}{'decode':>9}"
    )
    for row in rows:
        size = "{} x {}".format(*row["shape"])
        print(
            f"{row['codec']:22}{size:12}{row['parameter']:7g}{row['bytes']:8}{row['bare_ms']:9.2f}"
            f"{row['encode_ms']:9.2f}{row['ratio']:7.2f}{row['decode_ms']:9.2f}"
        )


if __name__ == "__main__":
    main()
