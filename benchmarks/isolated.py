"""What decoding a stranger's bitstreams in a confined process costs over decoding them here.

    python benchmarks/isolated.py [--only x265]

Planes are those of `mini`'s three tasks, at a middle level; of HM and VTM the recorded streams, the
largest of 64 x 80. BLAS has one thread here as it has there.
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
from cfqa_data.codecs.isolated import IsolatedCodec

CODECS = ("x265", "vvenc", "hm", "vtm", "hyperprior_multi_task")
Streams = list[tuple[list[bytes], tuple[int, int]]]


def streams_of(codec: Codec) -> Streams:
    """Return bitstreams by the shape of their planes."""
    if codec.name in ("hm", "vtm"):
        sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
        from reference_streams import recorded_streams

        kept = [one for one in recorded_streams() if one.codec == codec.name and one.data]
        return [([one.data] * 10, (one.rows, one.cols)) for one in kept if one.data]
    known = sorted(getattr(codec, "lambdas", [30]))
    parameter = known[len(known) // 2]
    return [
        (codec.encode_many(planes(shape, codec.peak), parameter), shape)
        for shape in SHAPES.values()
    ]


def measure(given: argparse.Namespace) -> Iterator[Result]:
    """Yield the figures of each codec."""
    for name in given.only or (CODECS[:1] if given.quick else CODECS):
        here, there = get_codec(name), get_codec(name, untrusted=True)
        streams = streams_of(here)
        count = sum(len(group) for group, _ in streams)

        def decode(codec: Codec) -> None:
            for group, shape in streams:  # noqa: B023
                codec.decode_many(group, shape)

        decode(there)
        repeats = 2 if given.quick else 7
        direct, apart = turns([lambda: decode(here), lambda: decode(there)], repeats)  # noqa: B023
        yield figure(f"{name}: decode a plane isolated", 1e3 * apart / count, 1e3 * direct / count)
    yield figure("start an isolated decoder", least(lambda: IsolatedCodec("x265"), 3))


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", action="append", choices=CODECS, help="default: all")


if __name__ == "__main__":
    sys.exit(run(__doc__, measure, options))
