"""Does anything grow, or go wrong, when the same is done again and again?

    python benchmarks/soak.py --builds 50 --evaluations 50 --pairs 100000

Builds a recipe in ever new folders (in this process, and by the command `cfqa`), evaluates the
result, and reads random pairs of it in both tiers with threads and with processes. Every tree is
compared with the first one's hashes, every table with the first one's, every array with a digest
that is made without the package's readers: by Zarr and by safetensors' own library.

Memory, open files, threads, processes and temporary files are noted after each round (growth.py).
What grows beyond its limit there, or one wrong value, makes the exit status 1.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from growth import LIMITS, Soak

import cfqa_data
from cfqa_data.builders.pipeline import build
from cfqa_data.format.quantizers import quantizer_from_dict

if TYPE_CHECKING:
    import pyarrow as pa

READ_ROUNDS = 50

PAIRS_PER_OPENING = 10
"""Pairs that are read before the dataset is opened anew."""

LIGHT = 10
"""One of so many openings is of the light tier, where a pair has to be decoded first."""

TABLES = ("scores", "correlations", "across_codecs", "across_tasks", "per_level", "comparisons")

CLOSE = 1e-12
"""Of figures over scores, relative: the last bit of a fitted curve's has been seen to differ."""

CFQA = (sys.executable, "-c", "from cfqa_data.cli import main; raise SystemExit(main())")

Digests = Mapping[tuple[str, str, int], str]
"""(source, codec, level) -> digest of that pair; see `pair_digest`."""


def tree(root: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def pair_digest(original: np.ndarray, compressed: np.ndarray) -> str:
    """Digest of all values of two arrays, with their shapes and dtypes."""
    digest = hashlib.blake2b(digest_size=16)
    for array in (original, compressed):
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def reference(folder: Path) -> dict[tuple[str, str, int], str]:
    """Digest of every pair of a full folder, read without the package's readers."""
    import zarr
    from safetensors.numpy import load_file

    originals: dict[str, np.ndarray] = {}
    for path in (folder / "originals").glob("*.safetensors"):
        originals.update(load_file(path))
    digests = {}
    for path in (folder / "compressed").glob("*/*.zarr"):
        array: Any = zarr.open_array(str(path), mode="r")
        values = quantizer_from_dict(dict(array.attrs["quantizer"])).values()
        codes = np.arange(values.shape[1])
        tables = [
            table[np.argsort(np.abs(codes - centre), kind="stable")]
            for table, centre in zip(values, array.attrs["centres"], strict=True)
        ]
        for index, source in enumerate(array.attrs["source_ids"]):
            stored = array[index]  # (levels, N, C, T, D)
            for level, part in enumerate(stored):
                layers = [table[part[:, c]] for c, table in enumerate(tables)]
                key = source, path.stem, level
                digests[key] = pair_digest(originals[source], np.stack(layers, axis=1))
    return digests


def read_pairs(folder: Path, digests: Digests, seed: int, count: int) -> list[str]:
    """Open a folder and compare random pairs of it; return "" for each right one."""
    pairs = cfqa_data.load(folder)
    if len(pairs) != len(digests):
        return [f"{folder.name} holds {len(pairs)} pairs, not {len(digests)}"]
    told = []
    for index in np.random.default_rng(seed).integers(len(pairs), size=count):
        pair = pairs[int(index)]
        key = tuple(pair.label[name] for name in ("source_id", "codec", "level"))
        right = pair_digest(pair.original, pair.compressed) == digests[key]
        told.append("" if right else f"{folder.name}: {key} has other values")
    return told


def soak_reading(
    name: str, folders: Sequence[Path], digests: Digests, pairs: int, pool: Executor, temp: Path
) -> Soak:
    """Read random pairs of a full and a light folder, all of a pool's readers at once."""
    full, light = folders
    openings = max(1, round(pairs / PAIRS_PER_OPENING / READ_ROUNDS))

    def work(number: int) -> Iterator[str]:
        tasks = [
            pool.submit(
                read_pairs, full if seed % LIGHT else light, digests, seed, PAIRS_PER_OPENING
            )
            for seed in range(number * openings, (number + 1) * openings)
        ]
        for task in tasks:
            yield from task.result()

    with pool:
        return Soak(name).run(work, READ_ROUNDS, temp)


def soak_building(recipe: str, rounds: int, first: Path, temp: Path, command: bool) -> Soak:
    """Build in ever new folders; each tree must be the first one's."""
    expected = tree(first)

    def work(number: int) -> Iterator[str]:
        out = first.parent / f"build-{number}"
        if command:
            line = [*CFQA, "build", recipe, "--out", str(out), "--workers", "2"]
            done = subprocess.run(line, capture_output=True, text=True)
            if done.returncode:
                yield done.stderr
                return
        else:
            build(recipe, out, workers=1)
        found = tree(out)
        names = sorted({*expected, *found})
        yield ", ".join(name for name in names if expected.get(name) != found.get(name))
        shutil.rmtree(out)

    return Soak("cfqa build" if command else "build()").run(work, rounds, temp)


def same_table(found: pa.Table, first: pa.Table, tolerance: float) -> bool:
    """Whether two tables have the same columns, numbers up to a relative difference."""
    if found.schema != first.schema or len(found) != len(first):
        return False
    for one, other in zip(found.columns, first.columns, strict=True):
        if str(one.type) == "double":
            numbers = one.to_numpy(), other.to_numpy()  # null becomes NaN
            if not np.allclose(*numbers, rtol=tolerance, atol=0, equal_nan=True):
                return False
        elif one != other:
            return False
    return True


def soak_evaluating(folder: Path, rounds: int, metrics: Sequence[str], temp: Path) -> Soak:
    """Evaluate again and again; each time the tables must be the first ones."""
    first = cfqa_data.evaluate(folder, metrics)

    def work(number: int) -> Iterator[str]:
        found = cfqa_data.evaluate(folder, metrics)
        for name in TABLES:
            same = same_table(
                getattr(found, name), getattr(first, name), 0 if name == "scores" else CLOSE
            )
            yield "" if same else f"other {name}"

    return Soak("evaluate()").run(work, rounds, temp)


@contextmanager
def temporary_files_in(folder: Path) -> Iterator[None]:
    """Let this process and its children put temporary files into a new folder."""
    before = tempfile.gettempdir()
    folder.mkdir()
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    try:
        yield
    finally:
        os.environ["TMPDIR"] = tempfile.tempdir = before


def soak_all(given: argparse.Namespace, folder: Path, temp: Path) -> Iterator[Soak]:
    """Do all that is asked for below a folder."""
    full = build(given.recipe, folder / "full", workers=1)
    light = build(given.recipe, folder / "light", workers=1, tier="light")
    digests = reference(full)
    start = get_context("spawn")  # as `fork` would give each reader what this process holds
    pools: dict[str, Callable[[], Executor]] = {
        "threads": lambda: ThreadPoolExecutor(given.readers),
        "processes": lambda: ProcessPoolExecutor(given.readers, mp_context=start),
    }
    for kind in given.pool if given.pairs else ():
        name = f"pairs, {given.readers} {kind}"
        yield soak_reading(name, (full, light), digests, given.pairs, pools[kind](), temp)
    if given.evaluations:
        yield soak_evaluating(full, given.evaluations, given.metric, temp)
    if given.builds:
        yield soak_building(given.recipe, given.builds, full, temp, command=False)
    if given.commands:
        yield soak_building(given.recipe, given.commands, full, temp, command=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table; return 1 if something grew beyond its limit, or was wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--recipe", default="nano", help="name or TOML file (default nano)")
    parser.add_argument("--builds", type=int, default=50, help="in this process (default 50)")
    parser.add_argument("--commands", type=int, default=10, help="builds by `cfqa` (default 10)")
    parser.add_argument("--evaluations", type=int, default=50, help="(default 50)")
    parser.add_argument("--metric", action="append", help="to evaluate (default: all)")
    parser.add_argument("--pairs", type=int, default=100_000, help="per pool (default 100000)")
    parser.add_argument("--pool", nargs="+", default=["threads", "processes"], help="(both)")
    parser.add_argument("--readers", type=int, default=8, help="threads, processes (default 8)")
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary one)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was noted")
    given = parser.parse_args(arguments)
    given.metric = given.metric or cfqa_data.list_metrics()
    done: list[Soak] = []
    heads = "".join(f"{name:>11}" for name in LIMITS)
    print(f"{'grown after the warm-up':24}{'rounds':>7}{'checked':>9}{'wrong':>7}{'s':>8}{heads}")
    with (
        tempfile.TemporaryDirectory(dir=given.folder) as folder,
        temporary_files_in(temp := Path(folder) / "temporary"),
    ):
        for soak in soak_all(given, Path(folder), temp):
            done.append(soak)
            grown = "".join(f"{value:11.2f}" for value in soak.growth().values())
            counts = f"{len(soak.rounds):7}{soak.checked:9}{len(soak.wrong):7}{soak.seconds:8.0f}"
            print(f"{soak.name:24}{counts}{grown}", flush=True)
            if given.json:
                given.json.write_text(json.dumps([each.to_dict() for each in done]))
    print(f"{'limit':55}" + "".join(f"{limit:11.2f}" for limit in LIMITS.values()))
    faults = [fault for soak in done for fault in soak.faults()]
    for fault in faults[:100]:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
