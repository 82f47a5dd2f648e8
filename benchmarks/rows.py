"""What opening a dataset of many compressed features takes: 100 000 rows, or a million.

    python benchmarks/rows.py [--rows 1000000]

The tables and the manifest of such a dataset are written, with one task and one codec of ten levels
and made-up labels, but no features, of which the manifest lists a file each source: opening reads
none. It is opened whole, and for one source,
each in a process of its own; time is the processor's, memory the most above what it held before.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from made_up import manifest_of
from measuring import status
from results import Result, run

import cfqa_data
from cfqa_data.format.format_1 import LEVELS
from cfqa_data.format.invariants import FOLDS
from cfqa_data.format.layout import Layout
from cfqa_data.format.manifest import write_manifest
from cfqa_data.format.schema import label_schema
from cfqa_data.format.storage import write_table
from cfqa_data.recipe.load import load_recipe

SHAPE = (1, 1, 65, 64)


def write(root: Path, rows: int) -> None:
    """Write the manifest and the labels of a folder."""
    recipe, layout, count = load_recipe("mini"), Layout(root), rows // LEVELS
    cls = recipe.tasks["cls"]
    ladder = cls.codecs["x265"]
    tasks = {"cls": replace(cls, codecs={"x265": ladder})}
    recipe = replace(recipe, name="rows", sources_per_task=count, tasks=tasks)
    ids, rng = [f"s{index:07}" for index in range(count)], np.random.default_rng(0)
    index, level = np.repeat(np.arange(count), LEVELS), np.tile(np.arange(LEVELS), count)
    harm, mse, cosine, cka = np.sort(rng.exponential(size=(4, count, LEVELS))).reshape(4, -1)
    bits = 8 * rng.integers(100, 300, len(index))
    columns = {
        "task": ["cls"] * len(index),
        "codec": ["x265"] * len(index),
        "source_id": pa.array(ids).take(pa.array(index)),
        "index": index,
        "level": level,
        "fold": index % FOLDS,
        "parameter": np.array(ladder.levels)[level],
        "parameter_name": [ladder.parameter_name] * len(index),
        "array": [layout.relative(layout.compressed("cls", "x265"))] * len(index),
        "bits": bits,
        "bpfp": bits / np.prod(SHAPE),
        "score": 1 + harm,
        "distortion": harm,
        "loss": 0.1 + harm,
        "mse": mse,
        "cosine": 1 / (1 + cosine),
        "cka": 1 / (1 + cka),
        **{name: np.ones(len(index)) for name in ("reference_score", "reference_loss")},
    }
    made = {
        f.name: pa.array(columns.get(f.name, [None] * len(index)), f.type) for f in label_schema()
    }
    table = pa.table(made, schema=label_schema())
    write_table(layout.labels("cls"), table)
    write_manifest(root, manifest_of(recipe, SHAPE, ids, table))
    told = json.loads(layout.manifest.read_text())
    stored, facts = (
        layout.relative(layout.compressed("cls", "x265")),
        {"size": 1, "sha256": "0" * 64},
    )
    told["files"] |= {f"{stored}/c/{place}/0/0/0/0/0": facts for place in range(count)}
    layout.manifest.write_text(json.dumps(told))


def child(root: Path, source: str | None) -> dict[str, float]:
    """Open a folder; return the seconds and the bytes that it took."""
    cfqa_data.load(root.with_name("warm"))
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before, began = status("VmRSS"), time.process_time()
    found = cfqa_data.load(root, source=source)
    taken = time.process_time() - began
    rows = len(found)
    return {"seconds": taken, "memory": max(0, status("VmHWM") - before), "rows": rows}


def measure(given: argparse.Namespace) -> Iterator[Result]:
    """Yield sizes of the files, and time and memory of opening them."""
    rows = 1000 if given.quick else given.rows
    with tempfile.TemporaryDirectory() as folder:
        root, layout = Path(folder) / "rows", Layout(Path(folder) / "rows")
        for name, count in (("warm", 100), ("rows", rows)):
            (root.with_name(name)).mkdir()
            write(root.with_name(name), count)
        for name, file in (("manifest", layout.manifest), ("labels", layout.labels("cls"))):
            yield Result(f"{rows} rows: {name}", file.stat().st_size / 1e6, "MB")
        for name, source in (("open", ""), ("open one source", "s0000007")):
            command = [sys.executable, __file__, "--child", str(root), source]
            done = subprocess.run(command, check=True, capture_output=True)
            told = json.loads(done.stdout)
            assert told["rows"] == (LEVELS if source else rows)
            limit = "value <= 1" if rows <= 100_000 else ""
            yield Result(f"{rows} rows: {name}", told["seconds"], "s", limit=limit)
            yield Result(f"{rows} rows: {name}, memory", told["memory"] / 1e6, "MB")


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", type=int, default=100_000)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(child(Path(sys.argv[2]), sys.argv[3] or None)))
    else:
        sys.exit(run(__doc__, measure, options))
