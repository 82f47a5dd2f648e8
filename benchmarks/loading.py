"""Measure opening and reading a dataset folder at the published size, against limits.

    python benchmarks/loading.py [--sources 12] [--folder FOLDER] [--peer FOLDER [--task dpt]]

Features are made up, (1, 1, 257, 1536) as the published ones of `cls`; their codes take the 2.7
bits each that those of `mini` take by VVenC. They are stored by the functions that builds use, and
once more as float32 `.npy` files.  Rates are in bytes of float32.  "cold" reads files whose pages
the system was told to forget, which says as much of the machine's disk as of the reader.  Times are
the least of several; exits with 1 when a limit is not met.

``--peer`` compares the scans with those of another version of the package instead, which ``pip
install --no-deps --target FOLDER`` has put there, in turns.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
from measuring import SHAPES, Version, forget, seconds
from results import Result, figure, run
from scans import consume, scans

import cfqa_data
from cfqa_data.format.codes import create_codes_array, write_codes
from cfqa_data.format.format_1 import LEVELS, read_tasks
from cfqa_data.format.layout import Layout
from cfqa_data.format.manifest import Manifest
from cfqa_data.format.schema import label_schema
from cfqa_data.format.storage import write_table, write_tensors, write_text
from cfqa_data.recipe.load import Recipe, load_recipe

OPEN = """
import sys, time, cfqa_data
{imports}
start = time.perf_counter()
assert len(cfqa_data.load(sys.argv[1])) == 12000
print(time.perf_counter() - start)
"""
IMPORTS = "import cfqa_data.access.dataset, numpy, pyarrow.compute, pyarrow.parquet"


def write_tables(root: Path, recipe: Recipe, ids: dict[str, list[str]]) -> None:
    """Write labels and manifest of a folder whose arrays are others' business."""
    layout, files = Layout(root), {}
    for task, spec in recipe.tasks.items():
        columns: dict[str, list[Any]] = {name: [] for name in label_schema().names}
        for index, source in enumerate(ids[task]):
            for codec in spec.codecs:
                array = layout.relative(layout.compressed(task, codec))
                files[f"{array}/c/{index}/0/0/0/0/0"] = {"size": 1, "sha256": "0" * 64}
                for level in range(LEVELS):
                    known = {"task": task, "source_id": source, "codec": codec, "level": level}
                    known |= {"parameter_name": "qp", "array": array, "index": index}
                    for name, values in columns.items():
                        values.append(known.get(name, index % 5))
        write_table(layout.labels(task), pa.table(columns, schema=label_schema()))
    entries = {
        task: {
            "shape": [SHAPES[task][0], len(spec.blocks), *SHAPES[task][2:]],
            "sources": list(ids[task]),
        }
        for task, spec in recipe.tasks.items()
    }
    manifest = Manifest(
        name="made-up",
        tier="full",
        recipe=recipe.to_dict(),
        tasks=read_tasks(recipe.to_dict(), entries),
        files=files,
    )
    write_text(layout.manifest, json.dumps(manifest.to_dict()))


def write_features(root: Path, sources: int, task: str = "cls") -> float:
    """Write a folder of one task and codec, and `.npy` files beside; return the bits per code."""
    recipe = load_recipe("mini")
    spec, shape = recipe.tasks[task], SHAPES[task]
    ladder = spec.codecs["x265"]
    tasks = {task: replace(spec, codecs={"x265": ladder})}
    recipe = replace(recipe, tasks=tasks, group_size=1)
    ids = [f"source-{index}" for index in range(sources)]
    write_tables(root / "cfqa", recipe, {task: ids})
    layout, quantizer = Layout(root / "cfqa"), ladder.quantizer
    array, centre = layout.compressed(task, "x265"), 1 << (quantizer.bits - 1)
    create_codes_array(
        array,
        sources=sources,
        levels=LEVELS,
        shape=shape,
        quantizer=quantizer,
        centres=[centre] * quantizer.layers,
        source_ids=ids,
    )
    rng = np.random.default_rng(0)
    spread = 5.3 * 2.0 ** (-0.45 * np.arange(LEVELS))  # of the codes: ever coarser levels
    (root / "npy").mkdir()
    for index, source in enumerate(ids):
        codes = np.empty((LEVELS, *shape), quantizer.dtype)
        for level, of_level in enumerate(codes):
            noise = rng.standard_normal(shape, np.float32)
            of_level[:] = np.rint(centre + spread[level] * noise).clip(0, 2 * centre - 1)
            feature = quantizer.dequantize(of_level)
            np.save(root / "npy" / f"{source}-{level}.npy", feature)
        write_codes(array, index, codes)
        write_tensors(layout.originals(task, index, sources), {source: noise})
    stored = sum(path.stat().st_size for path in (array / "c").rglob("*") if path.is_file())
    return 8 * stored / (sources * LEVELS * math.prod(shape))


def opening(folder: Path, runs: int) -> Iterator[Result]:
    """Open 12000 rows, each time in a fresh process."""
    found = []
    for imports in (IMPORTS, ""):
        command = [sys.executable, "-c", OPEN.format(imports=imports), str(folder)]
        told = [subprocess.run(command, check=True, capture_output=True) for _ in range(runs)]
        found.append(min(float(done.stdout) for done in told))
    yield figure("open 12 000 rows", found[0])
    yield Result("open 12 000 rows, import of libraries included", found[1], "s")


def random_access(root: Path, rows: int) -> Iterator[Result]:
    """Take pairs in random order."""
    pairs = cfqa_data.load(root / "cfqa")
    order = np.random.default_rng(0).permutation(rows)
    keys = pairs.labels["source_id"].to_pylist(), pairs.labels["level"].to_pylist()
    names = [root / "npy" / f"{source}-{level}.npy" for source, level in zip(*keys, strict=True)]
    pairs[0]

    def median(rows: Iterable[int]) -> tuple[float, float]:
        """Return the milliseconds of a pair, and of two features as files."""
        ours, plain = [], []
        for row in rows:
            ours.append(1e3 * seconds(lambda row=row: pairs[row]))  # type: ignore[misc]
            plain.append(2e3 * seconds(lambda row=row: np.load(names[row])))  # type: ignore[misc]
        return float(np.median(ours)), float(np.median(plain))

    median(order)  # into the cache
    yield figure("a random pair, warm", *median(order))
    if hasattr(os, "posix_fadvise"):
        forget(root)
        yield figure("a random pair, cold", *median(order[::7]))


def scanning(root: Path, rows: int, runs: int) -> Iterator[Result]:
    """Read everything in order, from a cold and from a warm cache; the ways take turns."""
    for cache in ("cold", "warm"):
        if cache == "cold" and not hasattr(os, "posix_fadvise"):
            continue
        ways = scans(root)
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(runs):
            for name, scan in ways.items():
                if cache == "cold":
                    forget(root)
                times[name].append(seconds(lambda scan=scan: consume(scan())))  # type: ignore[misc]
        size = 4 * math.prod(SHAPES["cls"])
        rates = {name: rows * size / min(taken) / 1e9 for name, taken in times.items()}
        plain = rates.pop("np.load")
        for name, rate in rates.items():
            yield figure(f"scan, {cache}: {name}", rate, plain)


def beside(root: Path, task: str, rows: int, runs: int, peer: str) -> Iterator[Result]:
    """Yield how fast each scan is beside that of another version of the package."""
    size = 4 * math.prod(SHAPES[task])
    command = [Path(__file__).with_name("scans.py"), root]
    both = [Version(command, folder) for folder in (None, peer)]
    for cache in ("warm", "cold"):
        for name in list(scans(root))[1:]:
            taken: list[list[float]] = [[], []]
            for _ in range(runs + 1):
                for times, version in zip(taken, both, strict=True):
                    if cache == "cold":
                        forget(root)
                    times.append(version.ask(name))
            ours, theirs = (rows * size / min(times[1:]) / 1e9 for times in taken)
            yield Result(f"{task}: scan, {cache}: {name}", ours, "GB/s", "the peer", theirs)
    for version in both:
        version.close()


def measure(given: argparse.Namespace) -> Iterator[Result]:
    """Yield every figure as it is measured."""
    sources, runs = (2, 1) if given.quick else (given.sources, given.runs)
    with TemporaryDirectory(dir=given.folder) as folder:
        root, recipe = Path(folder), load_recipe("mini")
        if given.peer:
            write_features(root, sources, given.task)
            yield from beside(root, given.task, sources * LEVELS, runs, given.peer)
            return
        ids = {task: [f"{task}-{index}" for index in range(100)] for task in recipe.tasks}
        write_tables(root / "tables", recipe, ids)
        yield from opening(root / "tables", runs)
        yield Result("bits per stored code", write_features(root, sources), "bits")
        yield from random_access(root, sources * LEVELS)
        yield from scanning(root, sources * LEVELS, runs)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sources", type=int, default=12, help="10 features each (default 12)")
    parser.add_argument("--runs", type=int, default=5, help="per figure (default 5)")
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary one)")
    parser.add_argument("--task", choices=SHAPES, default="cls", help="beside a peer")
    parser.add_argument("--peer", metavar="FOLDER", help="of another version of the package")


if __name__ == "__main__":
    sys.exit(run(__doc__, measure, options))
