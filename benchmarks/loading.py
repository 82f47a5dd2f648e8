"""Measure opening and reading a dataset folder at the published size, against limits.

    python benchmarks/loading.py [--sources 12] [--folder FOLDER] [--json]

Features are made up, (1, 1, 257, 1536) as the published ones of `cls`; their codes take the 2.7
bits each that those of `mini` take by VVenC. They are stored by the functions that builds use, and
once more as float32 `.npy` files.  Rates are in bytes of float32.  "cold" reads files whose pages
the system was told to forget, which says as much of the machine's disk as of the reader.  Times are
the least of several; exits with 1 when a limit is not met.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa

import cfqa_data
from cfqa_data.codes import create_codes_array, write_codes
from cfqa_data.layout import Layout
from cfqa_data.loaders import read_ahead
from cfqa_data.manifest import Manifest, TaskEntry
from cfqa_data.recipe import Recipe, load_recipe
from cfqa_data.schema import label_schema
from cfqa_data.storage import write_table, write_tensors, write_text
from cfqa_data.tasks import LEVELS

SHAPE = (1, 1, 257, 1536)
FEATURE = 4 * 257 * 1536
"""Bytes of a feature as float32."""

OPEN = """
import sys, time, cfqa_data
{imports}
start = time.perf_counter()
assert len(cfqa_data.load(sys.argv[1])) == 12000
print(time.perf_counter() - start)
"""
IMPORTS = "import cfqa_data.dataset, numpy, pyarrow.compute, pyarrow.parquet"


@dataclass(frozen=True)
class Line:
    """One figure and its limit: a greatest one for times, a least one for rates and ratios."""

    name: str
    value: float
    unit: str
    limit: float | None = None

    @property
    def missed(self) -> bool:
        """Whether the limit is not met."""
        if self.limit is None:
            return False
        return self.value > self.limit if self.unit in ("s", "ms") else self.value < self.limit

    def __str__(self) -> str:
        limit = "-" if self.limit is None else f"{self.limit:g} {self.unit}"
        told = "  MISSED" if self.missed else ""
        return f"{self.name:52}{self.value:10.3g} {self.unit:5}{limit:>10}{told}"


def write_tables(root: Path, recipe: Recipe, ids: dict[str, list[str]]) -> None:
    """Write labels and manifest of a folder whose arrays are others' business."""
    layout, files = Layout(root), {}
    for task, spec in recipe.tasks.items():
        columns: dict[str, list[Any]] = {name: [] for name in label_schema().names}
        for index, source in enumerate(ids[task]):
            for codec in spec.ladders:
                array = layout.relative(layout.compressed(task, codec))
                files[f"{array}/c/{index}/0/0/0/0/0"] = {"size": 1, "sha256": "0" * 64}
                for level in range(LEVELS):
                    known = {"task": task, "source_id": source, "codec": codec, "level": level}
                    known |= {"parameter_name": "qp", "array": array, "index": index}
                    for name, values in columns.items():
                        values.append(known.get(name, index % 5))
        write_table(layout.labels(task), pa.table(columns, schema=label_schema()))
    manifest = Manifest(
        name="made-up",
        tier="full",
        recipe=recipe,
        tasks={
            task: TaskEntry((SHAPE[0], len(spec.blocks), *SHAPE[2:]), tuple(ids[task]))
            for task, spec in recipe.tasks.items()
        },
        files=files,
    )
    write_text(layout.manifest, json.dumps(manifest.to_dict()))


def write_features(root: Path, sources: int) -> float:
    """Write a folder of one task and codec, and `.npy` files beside; return the bits per code."""
    recipe = load_recipe("mini")
    cls = recipe.tasks["cls"]
    ladder = cls.ladders["x265"]
    recipe = replace(recipe, tasks={"cls": replace(cls, ladders={"x265": ladder})})
    ids = [f"source-{index}" for index in range(sources)]
    write_tables(root / "cfqa", recipe, {"cls": ids})
    layout, quantizer = Layout(root / "cfqa"), ladder.quantizer
    array, centre = layout.compressed("cls", "x265"), 1 << (quantizer.bits - 1)
    create_codes_array(
        array,
        sources=sources,
        levels=LEVELS,
        shape=SHAPE,
        quantizer=quantizer,
        centres=[centre],
        source_ids=ids,
    )
    rng = np.random.default_rng(0)
    spread = 5.3 * 2.0 ** (-0.45 * np.arange(LEVELS))  # of the codes: ever coarser levels
    (root / "npy").mkdir()
    for index, source in enumerate(ids):
        noise = rng.standard_normal((LEVELS, *SHAPE), np.float32)
        codes = np.rint(centre + spread[:, None, None, None, None] * noise)
        codes = codes.clip(0, 2 * centre - 1).astype(quantizer.dtype)
        write_codes(array, index, codes)
        for level, feature in enumerate(quantizer.dequantize(codes)):
            np.save(root / "npy" / f"{source}-{level}.npy", feature)
        write_tensors(layout.originals("cls", index, sources), {source: noise[0]})
    stored = sum(path.stat().st_size for path in (array / "c").rglob("*") if path.is_file())
    return 8 * stored / (sources * LEVELS * FEATURE / 4)


def forget(root: Path) -> None:
    """Tell the system that it need not keep the pages of the files below a folder."""
    for path in root.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def seconds(call: Callable[[], object]) -> float:
    """Return the wall time of a call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


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


def opening(folder: Path, runs: int) -> Iterator[Line]:
    """Open 12000 rows, each time in a fresh process."""
    for name, imports, limit in (
        ("open 12000 rows", IMPORTS, 0.2),
        ("open 12000 rows, import of libraries included", "", None),
    ):
        command = [sys.executable, "-c", OPEN.format(imports=imports), str(folder)]
        found = [
            float(subprocess.run(command, check=True, capture_output=True).stdout)
            for _ in range(runs)
        ]
        yield Line(name, min(found), "s", limit)


def random_access(root: Path, rows: int) -> Iterator[Line]:
    """Take pairs in random order."""
    pairs = cfqa_data.load(root / "cfqa")
    order = np.random.default_rng(0).permutation(rows)
    pairs[0]
    found = sorted(seconds(lambda index=index: pairs[index]) for index in order)  # type: ignore[misc]
    yield Line("a random pair, median", 1e3 * found[rows // 2], "ms", 10)
    yield Line("a random pair, 95%", 1e3 * found[rows * 95 // 100], "ms")
    if hasattr(os, "posix_fadvise"):
        forget(root / "cfqa")
        cold = sorted(seconds(lambda index=index: pairs[index]) for index in order[::7])  # type: ignore[misc]
        yield Line("a random pair, cold, median", 1e3 * cold[len(cold) // 2], "ms", 10)


def scanning(root: Path, rows: int, runs: int) -> Iterator[Line]:
    """Read everything in order, from a cold and from a warm cache."""
    for cache, limit in (("cold", 3.0), ("warm", 0.7)):
        if cache == "cold" and not hasattr(os, "posix_fadvise"):
            continue
        rates: dict[str, float] = {}
        for name, scan in scans(root).items():
            times = []
            for _ in range(runs):
                if cache == "cold":
                    forget(root)
                times.append(seconds(lambda scan=scan: consume(scan())))  # type: ignore[misc]
            rates[name] = rows * FEATURE / min(times) / 1e9
        for name, rate in rates.items():
            yield Line(f"scan, {cache}: {name}", rate, "GB/s")
        ratio = rates["read_ahead(compressed)"] / rates["np.load"]
        yield Line(f"scan, {cache}: read_ahead(compressed) over np.load", ratio, "x", limit)


def measure(root: Path, sources: int, runs: int) -> Iterator[Line]:
    """Yield every figure as it is measured."""
    recipe = load_recipe("mini")
    ids = {task: [f"{task}-{index}" for index in range(100)] for task in recipe.tasks}
    write_tables(root / "tables", recipe, ids)
    yield from opening(root / "tables", runs)
    bits = write_features(root, sources)
    yield Line("bits per stored code", bits, "bits")
    yield from random_access(root, sources * LEVELS)
    yield from scanning(root, sources * LEVELS, runs)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table; return 1 if a limit is not met."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sources", type=int, default=12, help="10 features each (default 12)")
    parser.add_argument("--runs", type=int, default=5, help="per figure (default 5)")
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary one)")
    parser.add_argument("--json", action="store_true", help="one object per line")
    given = parser.parse_args(arguments)
    missed = 0
    with TemporaryDirectory(dir=given.folder) as folder:
        if not given.json:
            print(f"{'':52}{'measured':>15}{'limit':>11}")
        for line in measure(Path(folder), given.sources, given.runs):
            shown = {"name": line.name, "value": line.value, "unit": line.unit, "limit": line.limit}
            print(json.dumps(shown) if given.json else line, flush=True)
            missed += line.missed
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
