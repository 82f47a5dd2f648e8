"""How time and memory grow with the compressed features, from 10 to 10 000.

    python benchmarks/scaling.py [--plot docs/images/growth.png]

Folders of one task and codec, ten levels per source, with made-up features of 65 x 64, are written,
opened, read, scored, correlated, verified and exported, each step in a process of its own on one
thread of torch. Time is the processor's, which other programs and the disk do not change, without
imports; memory the most that the step takes above what the process held when it began. Where
nothing piles up, memory stays as it is and the time of an item does not grow.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from made_up import manifest_of
from measuring import status
from results import Result, figure, run

import cfqa_data
from cfqa_data.card.write import write_card
from cfqa_data.format.codes import create_codes_array, write_codes
from cfqa_data.format.format_1 import LEVELS
from cfqa_data.format.invariants import FOLDS
from cfqa_data.format.layout import Layout
from cfqa_data.format.manifest import write_manifest
from cfqa_data.format.schema import label_schema, originals_schema
from cfqa_data.format.storage import write_table, write_tensors
from cfqa_data.recipe.load import load_recipe

SHAPE = (1, 1, 65, 64)
FEATURE = 4 * 65 * 64
"""Bytes of a feature as float32."""
ITEMS = (10, 100, 1_000, 10_000)
GROUP = 10
"""Sources of a shard of originals and bitstreams."""


def write(root: Path, items: int) -> None:
    """Write a whole folder, a group of sources at a time, by the functions that builds use."""
    recipe, layout, count = load_recipe("mini"), Layout(root), items // LEVELS
    cls = recipe.tasks["cls"]
    ladder = cls.codecs["x265"]
    tasks = {"cls": replace(cls, codecs={"x265": ladder})}
    recipe = replace(recipe, name="growth", sources_per_task=count, group_size=GROUP, tasks=tasks)
    ids, array = [f"s{index:05}" for index in range(count)], layout.compressed("cls", "x265")
    quantizer, centre = ladder.quantizer, 1 << (ladder.quantizer.bits - 1)
    create_codes_array(
        array,
        sources=count,
        levels=LEVELS,
        shape=SHAPE,
        quantizer=quantizer,
        centres=[centre],
        source_ids=ids,
    )
    rng = np.random.default_rng(0)
    spread = 5.3 * 2.0 ** (-0.45 * np.arange(LEVELS))[:, None, None, None, None]
    groups = range(0, count, GROUP)
    labels, originals = [], []
    for shard, first in enumerate(groups):
        members = range(first, min(first + GROUP, count))
        stored = layout.originals("cls", shard, len(groups))
        features: dict[str, np.ndarray] = {}
        streams: dict[str, np.ndarray] = {}
        for index in members:
            noise = rng.standard_normal((LEVELS, *SHAPE), np.float32)
            codes = np.rint(centre + spread * noise).astype(quantizer.dtype)
            write_codes(array, index, codes)
            features[ids[index]] = noise[0]
            lengths = 200 - 10 * np.arange(LEVELS)
            streams |= {
                f"{ids[index]}/{level}": rng.integers(0, 256, length, np.uint8)
                for level, length in enumerate(lengths)
            }
            harm = np.sort(rng.exponential(size=LEVELS)).round(3)
            fixed = {"task": "cls", "source_id": ids[index], "fold": index % FOLDS}
            fixed |= {"reference_score": 1.0, "reference_loss": 0.1}
            originals.append(fixed | {"array": layout.relative(stored), "key": ids[index]})
            fixed |= {"codec": "x265", "parameter_name": ladder.parameter_name, "index": index}
            fixed["array"] = layout.relative(array)
            labels += [
                fixed
                | {"level": level, "parameter": ladder.levels[level], "bits": 8 * int(length)}
                | {"bpfp": 8 * length / noise[0].size, "score": 1 + harm[level]}
                | {"distortion": harm[level], "loss": 0.1 + harm[level], "mse": harm[level]}
                | {"cosine": 1 / (1 + harm[level]), "cka": 1 / (1 + harm[level])}
                for level, length in enumerate(lengths)
            ]
        write_tensors(stored, features)
        write_tensors(layout.bitstreams("cls", "x265", shard, len(groups)), streams)
    write_tensors(layout.truth("cls"), {name: np.array(0, np.int64) for name in ids})
    table = pa.Table.from_pylist(labels, schema=label_schema())
    write_table(layout.labels("cls"), table)
    write_table(layout.originals_table, pa.Table.from_pylist(originals, schema=originals_schema()))
    manifest = manifest_of(recipe, SHAPE, ids, table)
    write_card(root, manifest)
    write_manifest(root, manifest)


def open_folder(root: Path) -> Callable[[], object]:
    return lambda: cfqa_data.load(root)


def read_labels(root: Path) -> Callable[[], object]:
    dataset = cfqa_data.load(root)
    return lambda: dataset.labels.to_pylist()


def scan(root: Path) -> Callable[[], object]:
    from cfqa_data.loaders import read_ahead

    dataset = cfqa_data.load(root)

    def step() -> None:
        for pair in read_ahead(dataset.__getitem__, range(len(dataset))):
            pair.compressed[0, 0, 0, 0]

    return step


def scores(root: Path) -> Callable[[], object]:
    from cfqa_data.eval import create_metric
    from cfqa_data.eval.features.reading import read_batches

    dataset = cfqa_data.load(root)
    metrics = [create_metric(name) for name in ("mse", "cosine", "cka")]

    def step() -> None:
        with torch.inference_mode():
            for batch in read_batches(dataset, range(len(dataset)), "cpu"):
                [metric.score(batch.x, batch.y).tolist() for metric in metrics]

    return step


def tables(root: Path) -> Callable[[], object]:
    from cfqa_data.eval import create_metric
    from cfqa_data.eval.statistics import statistics

    labels = cfqa_data.load(root).labels
    metrics = [create_metric(name) for name in ("mse", "cosine", "cka")]
    values = np.column_stack([labels[metric.name].to_numpy() for metric in metrics])
    values *= np.exp(0.3 * np.random.default_rng(0).standard_normal(values.shape))
    return lambda: statistics(labels, metrics, values)


def verified(root: Path) -> Callable[[], object]:
    from cfqa_data.integrity.verify import verify

    return lambda: verify(root).require()


def exported(root: Path) -> Callable[[], object]:
    from cfqa_data.builders.sharing.export import export

    return lambda: export(root, root.with_name(f"{root.name}.export"), "npy")


STEPS: dict[str, Callable[[Path], Callable[[], object]]] = {
    "open": open_folder,
    "labels": read_labels,
    "read": scan,
    "score": scores,
    "statistics": tables,
    "verify": verified,
    "export": exported,
}
"""What prepares each step, imports included; `write` comes before them."""


def child(name: str, root: Path, items: int) -> dict[str, float]:
    """Run one step; return its seconds, and the bytes that it took above those before."""
    torch.set_num_threads(1)
    write(root.with_name("warm"), LEVELS)
    if name == "write":
        step: Callable[[], object] = lambda: write(root, items)  # noqa: E731
    else:
        STEPS[name](root.with_name("warm"))()  # imports, and threads that stay
        step = STEPS[name](root)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = status("VmRSS")
    wall, taken = time.perf_counter(), processor_seconds(step)
    wall = time.perf_counter() - wall
    memory = max(0, status("VmHWM") - before)
    if taken < 0.5 and name not in ("write", "export"):
        taken = min([taken, *(processor_seconds(step) for _ in range(4))])
    return {"seconds": taken, "wall": wall, "memory": memory}


def processor_seconds(call: Callable[[], object]) -> float:
    """Return the time that all threads of this process spend on a call."""
    began = time.process_time()
    call()
    return time.process_time() - began


def grow(sizes: tuple[int, ...], steps: list[str]) -> Iterator[tuple[str, int, dict[str, float]]]:
    """Yield step, items, and what it took."""
    for items in sizes:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "growth"
            for name in ["write", *steps]:
                with tempfile.TemporaryDirectory(dir=folder) as own:
                    place = Path(own) / "growth"
                    place.symlink_to(root, target_is_directory=True)
                    command = [sys.executable, __file__, "--child", name, str(place), str(items)]
                    if name == "write":
                        root.mkdir()
                    done = subprocess.run(command, check=True, capture_output=True)
                    yield name, items, json.loads(done.stdout)


def measure(given: argparse.Namespace) -> Iterator[Result]:
    """Yield time and memory of every step and size, and how much the last tenfold adds."""
    sizes = ITEMS[:2] if given.quick else ITEMS
    found: dict[str, dict[int, dict[str, float]]] = {}
    for name, items, row in grow(sizes, given.step or list(STEPS)):
        found.setdefault(name, {})[items] = row
        yield Result(f"{name} {items}", row["seconds"], "s", "wall time", row["wall"])
        yield Result(f"{name} {items}, memory", row["memory"] / 1e6, "MB")
    if len(sizes) == len(ITEMS):
        for name, rows in found.items():
            yield from judged(name, rows)
    if given.plot:
        from scaling_plot import plot

        plot(found, given.plot)


def judged(name: str, rows: dict[int, dict[str, float]]) -> Iterator[Result]:
    """Yield how time and memory of an item changed between the two largest sizes."""
    less, more = sorted(rows)[-2:]
    each = [1e3 * rows[items]["seconds"] / items for items in (more, less)]
    yield figure(f"{name}: time of an item, of 10 000 and of 1000", *each)
    added = (rows[more]["memory"] - rows[less]["memory"]) / (more - less)
    yield figure(f"{name}: memory that an item adds", max(0.0, added) / 1e3, FEATURE / 1e3)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plot", type=Path, help="where to draw it, as PNG")
    parser.add_argument("--step", action="append", choices=list(STEPS), help="default: all")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(child(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))))
    else:
        sys.exit(run(__doc__, measure, options))
