"""HM and VTM against this package's decoding of their streams: equal samples, and time.

    CFQA_HM_ENCODER=... CFQA_VTM_ENCODER=... python benchmarks/reference.py [--record]

Planes are made up but resemble features; each is encoded, decoded by the reference decoder's
process and by us, and compared sample by sample; HM also at the full size of a depth feature.
Times are the least of several wall times.  --record writes the streams'
hashes, and the smallest streams, into tests/reference_streams.json; without it they are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from measuring import least, turns
from results import FIGURES, Result, figure, not_here, run

from cfqa_data.codecs import get_codec
from cfqa_data.codecs.h26x.reference import CHECK_VARIABLE, HM, VTM, ReferenceCodec
from cfqa_data.errors import MissingDependencyError

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from reference_streams import RECORD, feature_like_plane, recorded_streams, sha256

SMALL = [(17, 31, 2), (17, 31, 20), (64, 80, 36)]
PLANES = [
    *SMALL,
    *((rows, cols, qp) for rows, cols in [(257, 192), (131, 203)] for qp in (2, 12, 20)),
]
TALL = [(257, 1536, qp) for qp in (2, 12, 20)]
LARGE = [(3222, 6144, qp) for qp in (2, 12, 20)]


def compare(software: type[ReferenceCodec], rows: int, cols: int, qp: int) -> dict[str, Any]:
    """Encode a plane, decode it both ways, and return what there is to say about it."""
    codec = software()
    decoder = codec.find_decoder()
    plane = feature_like_plane(rows, cols)
    streams: list[bytes] = []
    encode = least(lambda: streams.append(codec.encode(plane, qp)), 1)
    (stream,) = streams
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "stream.bin"), Path(folder, "plane.yuv")
        source.write_bytes(stream)
        command = [decoder, "-b", source, "-o", target, "--OutputBitDepth=10"]

        def run_it() -> None:
            subprocess.run(command, capture_output=True, check=True)

        reference, ours = turns([run_it, lambda: codec.decode(stream, plane.shape)], 5)
        expected = target.read_bytes()
    decoded = codec.decode(stream, plane.shape)
    return {
        "codec": software.name,
        "rows": rows,
        "cols": cols,
        "qp": qp,
        "size": len(stream),
        "sha256": sha256(stream),
        "decoded_sha256": sha256(expected),
        "exact": decoded.tobytes() == expected,
        "error": int(np.abs(decoded.astype(int) - plane).max()),
        "encode_s": encode,
        "reference_s": reference,
        "ours_s": ours,
        "data": stream,
    }


def decoder_banner(software: type[ReferenceCodec]) -> str:
    """Return the first line that the reference decoder says."""
    done = subprocess.run([software().find_decoder(), "--help"], capture_output=True, text=True)
    return done.stdout.strip().partition("\n")[0].strip()


def record(rows: list[dict[str, Any]]) -> None:
    """Write the hashes of all streams, and the smallest streams, into the tests' fixture."""
    kept = ("codec", "rows", "cols", "qp", "size", "sha256", "decoded_sha256")
    streams = [
        {key: row[key] for key in kept}
        | (
            {"data": b64encode(row["data"]).decode()}
            if tuple(map(row.get, kept[1:4])) in SMALL
            else {}
        )
        for row in rows
    ]
    made_by = {
        software.name: software().version() | {"decoder": decoder_banner(software)}
        for software in (HM, VTM)
    }
    RECORD.write_text(json.dumps({"made_by": made_by, "streams": streams}, indent=1) + "\n")


def told(row: dict[str, Any], known: dict[tuple[Any, ...], str]) -> Iterator[Result]:
    """Yield what there is to say of a plane."""
    key = tuple(row[name] for name in ("codec", "rows", "cols", "qp"))
    name = "{}, {} x {} at QP {}".format(*key)
    samples = row["rows"] * row["cols"]
    peer = "the reference decoder", samples / row["reference_s"] / 1e6
    yield Result(f"{name}: decode", samples / row["ours_s"] / 1e6, "Msamples/s", *peer)
    yield Result(f"{name}: encode", row["encode_s"], "s")
    yield Result(f"{name}: size", 8 * row["size"] / samples, "bits/sample")
    if key in known:
        yield Result(f"{name}: other bytes than recorded", known[key] != row["sha256"], "")


def encoding(software: type[ReferenceCodec], qp: int) -> Iterator[Result]:
    """Yield what encoding costs beside the encoders that come along."""
    plane = feature_like_plane(257, 192)
    codecs = [software(), get_codec("x265"), get_codec("vvenc")]
    calls = [lambda codec=codec: codec.encode(plane, qp) for codec in codecs]  # type: ignore[misc]
    ours, x265, vvenc = turns(calls, 2)
    name = f"{software.software}: encode 257 x 192 at QP {qp}"
    yield figure(name, ours, x265)
    yield Result(f"{name}, beside VVenC", ours, "s", "VVenC", vvenc)


def measure(given: argparse.Namespace) -> Iterator[Result]:
    """Yield the figures of the planes, of those at full size, and of encoding."""
    os.environ.pop(CHECK_VARIABLE, None)
    known = {(s.codec, s.rows, s.cols, s.qp): s.sha256 for s in recorded_streams()}
    rows: list[dict[str, Any]] = []
    for software in (HM, VTM):
        if given.only not in (None, software.software):
            continue
        missing = absent(software)
        if missing:
            names = [name for name in FIGURES if name.startswith(software.software + ":")]
            yield from (not_here(name, missing) for name in names)
            continue
        for size in SMALL if given.quick else [*PLANES, *TALL]:
            rows.append(compare(software, *size))
            yield from told(rows[-1], known)
        yield from encoding(software, 20)
        if software is HM and not given.quick:
            for size in LARGE:
                row = compare(software, *size)
                rows.append(row)
                yield from told(row, known)
                peer = row["reference_s"]
                yield figure(
                    f"HM: decode 3222 x 6144 at QP {row['qp']}", 1 / row["ours_s"], 1 / peer
                )
        wrong = sum(not row["exact"] for row in rows if row["codec"] == software.name)
        yield figure(
            f"{software.software}: pictures that differ from the reference decoder's", wrong
        )
    if given.record and given.only is None:
        record([row for row in rows if (row["rows"], row["cols"], row["qp"]) not in LARGE])


def absent(software: type[ReferenceCodec]) -> str:
    """Return what of a reference software is not here."""
    for what, find in (("ENCODER", software().find_encoder), ("DECODER", software().find_decoder)):
        try:
            find()
        except MissingDependencyError:
            return f"not here: {software.variable(what)}"
    return ""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", choices=("HM", "VTM"), help="default: both")
    parser.add_argument("--record", action="store_true", help="write the tests' fixture")


if __name__ == "__main__":
    sys.exit(run(__doc__, measure, options))
