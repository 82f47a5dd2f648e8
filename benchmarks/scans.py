"""Ways to read every compressed feature of a folder in order, which `loading.py` times.

    python benchmarks/scans.py FOLDER

runs the way that each line of the input names, and prints its seconds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from measuring import seconds

import cfqa_data
from cfqa_data.loaders import read_ahead


def consume(things: Iterable[Any]) -> None:
    """Take every feature, and look at one value of each."""
    for thing in things:
        thing[0, 0, 0, 0]


def scans(root: Path) -> dict[str, Callable[[], Iterator[Any]]]:
    """Return the ways to read every compressed feature in order; opening is not part of them."""
    pairs = cfqa_data.load(root / "cfqa")
    keys = pairs.labels.select(["source_id", "codec", "level"])
    rows = [tuple(row.values()) for row in keys.to_pylist()]
    names = [root / "npy" / f"{source}-{level}.npy" for source, _, level in rows]
    pairs.compressed(*rows[0])
    return {
        "np.load": lambda: map(np.load, names),
        "compressed()": lambda: (pairs.compressed(*row) for row in rows),
        "read_ahead(compressed)": lambda: read_ahead(lambda row: pairs.compressed(*row), rows),
        "codes()": lambda: (pairs.codes(*row).indices for row in rows),
        "read_ahead(codes)": lambda: read_ahead(lambda row: pairs.codes(*row).indices, rows),
    }


if __name__ == "__main__":
    ways = scans(Path(sys.argv[1]))
    for line in sys.stdin:
        scan = ways[line.strip()]
        print(seconds(lambda scan=scan: consume(scan())), flush=True)  # type: ignore[misc]
