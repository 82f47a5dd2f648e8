"""HM and VTM against this package's decoding of their streams: equal samples, and time.

    CFQA_HM_ENCODER=... CFQA_VTM_ENCODER=... python benchmarks/reference.py [--large] [--record]

Planes are made up but resemble features; each is encoded, decoded by the reference decoder's
process and by us, and compared sample by sample.  Times are the least of several wall times.
--large adds HM at the full size of a depth feature (minutes).  --record writes the streams'
hashes, and the smallest streams, into tests/reference_streams.json; without it they are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cfqa_data.codecs.reference import CHECK_VARIABLE, ReferenceCodec
from cfqa_data.codecs.reference_software import HM, VTM, Software, find_decoder

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from reference_streams import RECORD, feature_like_plane, recorded_streams, sha256

SMALL = [(17, 31, 2), (17, 31, 20), (64, 80, 36)]
PLANES = [
    *SMALL,
    *((rows, cols, qp) for rows, cols in [(257, 192), (131, 203)] for qp in (2, 12, 20)),
]
TALL = [(257, 1536, qp) for qp in (2, 12, 20)]
LARGE = [(3222, 6144, qp) for qp in (2, 12, 20)]


def seconds(call: Callable[[], object], repeats: int) -> float:
    """Return the least wall time of a call."""
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return min(taken)


def measure(software: Software, rows: int, cols: int, qp: int) -> dict[str, Any]:
    """Encode a plane, decode it both ways, and return what there is to say about it."""
    codec, decoder = ReferenceCodec(software), find_decoder(software)
    plane = feature_like_plane(rows, cols)
    began = time.perf_counter()
    stream = codec.encode(plane, qp)
    encode = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "stream.bin"), Path(folder, "plane.yuv")
        source.write_bytes(stream)
        command = [decoder, "-b", source, "-o", target, "--OutputBitDepth=10"]
        run = lambda: subprocess.run(command, capture_output=True, check=True)  # noqa: E731
        reference = seconds(run, 5)
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
        "ours_s": seconds(lambda: codec.decode(stream, plane.shape), 5),
        "data": stream,
    }


def decoder_banner(software: Software) -> str:
    """Return the first line that the reference decoder says."""
    done = subprocess.run([find_decoder(software), "--help"], capture_output=True, text=True)
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
        software.name: ReferenceCodec(software).version() | {"decoder": decoder_banner(software)}
        for software in (HM, VTM)
    }
    RECORD.write_text(json.dumps({"made_by": made_by, "streams": streams}, indent=1) + "\n")


def main() -> int:
    """Print the table; the status is 1 where a picture differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--large", action="store_true", help="HM at 3222 x 6144 alone")
    parser.add_argument("--record", action="store_true", help="write the tests' fixture")
    given = parser.parse_args()
    os.environ.pop(CHECK_VARIABLE, None)
    todo = [(HM, *size) for size in LARGE] if given.large else []
    if not given.large:
        todo = [(software, *size) for software in (HM, VTM) for size in [*PLANES, *TALL]]
    known = {(s.codec, s.rows, s.cols, s.qp): s.sha256 for s in recorded_streams()}
    head = ("codec", "plane", "QP", "bits/sample", "exact", "as recorded")
    times = ("encode s", "reference s", "ours s", "x")
    print("".join(f"{word:>12}" for word in (*head, *times)), flush=True)
    rows = []
    for software, *size in todo:
        row = measure(software, *size)
        rows.append(row)
        same = {None: "-", row["sha256"]: "yes"}.get(known.get((software.name, *size)), "no")
        print(
            f"{row['codec']:>12}{row['rows']:>5} x{row['cols']:>5}{row['qp']:12}"
            f"{8 * row['size'] / (row['rows'] * row['cols']):12.3f}"
            f"{'yes' if row['exact'] else 'NO':>12}{same:>12}{row['encode_s']:12.2f}"
            f"{row['reference_s']:12.3f}{row['ours_s']:12.3f}"
            f"{row['reference_s'] / row['ours_s']:12.1f}",
            flush=True,
        )
    if given.record:
        record(rows)
    return 0 if all(row["exact"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
