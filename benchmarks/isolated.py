"""What decoding a stranger's bitstreams in a confined process costs over decoding them here.

    python benchmarks/isolated.py [--only x265]

Planes are those of `mini`'s three tasks, at a middle level; of HM and VTM the recorded streams, the
largest of 64 x 80. BLAS has one thread here as it has there. Times are the least of 15, plane by
plane: on a busy machine each isolated call waits for the scheduler twice.
"""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from coding import SHAPES, planes
from measuring import least, turns
from results import Result, figure, run

from cfqa_data.codecs import Codec, get_codec
from cfqa_data.codecs.sandbox.isolated import IsolatedCodec

CODECS = ("x265", "vvenc", "hm", "vtm", "hyperprior_multi_task")


def streams_of(codec: Codec) -> list[tuple[bytes, tuple[int, int]]]:
    """Return bitstreams and the shapes of their planes."""
    if codec.name in ("hm", "vtm"):
        sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
        from reference_streams import recorded_streams

        kept = [one for one in recorded_streams() if one.codec == codec.name and one.data]
        return [(one.data, (one.rows, one.cols)) for one in kept if one.data]
    known = sorted(getattr(codec, "lambdas", [30]))
    parameter = known[len(known) // 2]
    return [
        (stream, shape)
        for shape in SHAPES.values()
        for stream in codec.encode_many(planes(shape, codec.peak)[:4], parameter)
    ]


def measure(given: argparse.Namespace) -> Iterator[Result]:
    """Yield the figures of each codec."""
    for name in given.only or (CODECS[:1] if given.quick else CODECS):
        here, there = get_codec(name), get_codec(name, untrusted=True)
        taken = []
        for stream, shape in streams_of(here):
            calls = [
                lambda: here.decode(stream, shape),  # noqa: B023
                lambda: there.decode(stream, shape),  # noqa: B023
            ]
            taken.append(turns(calls, 3 if given.quick else 15))
        direct, apart = (1e3 * sum(times) / len(taken) for times in zip(*taken, strict=True))
        yield figure(f"{name}: decode a plane isolated", apart, direct)
    yield figure("start an isolated decoder", least(lambda: IsolatedCodec("x265"), 3))


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", action="append", choices=CODECS, help="default: all")


if __name__ == "__main__":
    sys.exit(run(__doc__, measure, options))
