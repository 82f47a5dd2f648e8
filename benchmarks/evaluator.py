"""Scoring by mse, cosine and cka at the published sizes, against plain NumPy, in one run.

    python benchmarks/evaluator.py [--task cls] [--versions 40] [--peer FOLDER]

The peer is a straightforward float32 NumPy version of the published functions, one pair at a time,
which loads the original again for each, as the published scripts do.  Both read the same `.npy`
files from a warm cache.  For CKA, the operations of the one matrix product that a version needs,
over the time that all of it takes, stand beside what this machine's float32 products reach.

``--peer`` compares with another version of the package instead, which ``pip install --no-deps
--target FOLDER`` has put there, in turns.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from measuring import SHAPES, Version, seconds, turns
from results import Result, figure, run

from cfqa_data.eval import create_metric
from cfqa_data.eval.features import Features

try:
    from cfqa_data.eval.features.reading import read_batches
except ImportError:  # of an earlier version
    from cfqa_data.eval.reading import read_batches

METRICS = ("mse", "cosine", "cka")
SIDE = 2048
"""Rows and columns of the product that tells what the machine reaches."""
REST = 0.3
"""Seconds until the threads of the other side's library have stopped spinning."""


def numpy_mse(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean((x - y) ** 2))


def numpy_cosine(x: np.ndarray, y: np.ndarray) -> float:
    scores = []
    for a, b in zip(x.reshape(-1, *x.shape[2:]), y.reshape(-1, *y.shape[2:]), strict=True):
        norms = (np.linalg.norm(a, axis=1) + 1e-8) * (np.linalg.norm(b, axis=1) + 1e-8)
        scores.append(np.mean(np.sum(a * b, axis=1) / norms))
    return float(np.mean(scores))


def numpy_cka(x: np.ndarray, y: np.ndarray) -> float:
    scores = []
    for a, b in zip(x.reshape(-1, *x.shape[2:]), y.reshape(-1, *y.shape[2:]), strict=True):
        a, b = a - a.mean(0, keepdims=True), b - b.mean(0, keepdims=True)
        cross = np.linalg.norm(a @ b.T, "fro") ** 2
        norms = np.linalg.norm(a @ a.T, "fro") * np.linalg.norm(b @ b.T, "fro")
        scores.append(cross / (norms + 1e-8))
    return float(np.mean(scores))


class Files:
    """One source and its versions as `.npy` files, made unless there; read as a dataset is."""

    def __init__(self, folder: Path, task: str, versions: int) -> None:
        self.folder, self.versions = folder, versions
        if not (folder / "x.npy").exists():
            self._make(SHAPES[task])
        count = range(versions)
        self.labels = pa.table(
            {
                "task": [task] * versions,
                "source_id": ["x"] * versions,
                "codec": ["noise"] * versions,
                "level": list(count),
                "distortion": [float(level) for level in count],
            }
        )

    def _make(self, shape: tuple[int, ...]) -> None:
        generator = np.random.default_rng(0)
        x = generator.standard_normal(shape, np.float32)
        np.save(self.folder / "x.npy", x)
        for level in range(self.versions):
            noise = generator.standard_normal(shape, np.float32)
            np.save(self.folder / f"{level}.npy", x + np.float32(0.02 * (level + 1)) * noise)

    def original(self, source_id: str) -> np.ndarray:
        return np.load(self.folder / "x.npy")

    def compressed(self, source_id: str, codec: str, level: int) -> np.ndarray:
        return np.load(self.folder / f"{level}.npy")


def scored(files: Files) -> list[list[float]]:
    """Read and score as `evaluate` does, without the statistics."""
    metrics = [create_metric(name) for name in METRICS]
    scores = [getattr(metric, "unchecked", metric.score) for metric in metrics]  # or an earlier one
    rows: list[list[float]] = []
    with torch.inference_mode():
        for batch in read_batches(files, range(files.versions), "cpu"):
            rows += torch.stack([score(batch.x, batch.y) for score in scores], 1).tolist()
    return rows


def plain(files: Files) -> list[list[float]]:
    functions = (numpy_mse, numpy_cosine, numpy_cka)
    rows = []
    for level in range(files.versions):
        x, y = files.original("x"), files.compressed("x", "noise", level)
        rows.append([function(x, y) for function in functions])
    return rows


def cka_share(files: Files, repeats: int) -> tuple[float, float]:
    """Return the rate of CKA's product per version and the machine's, in 10^9 operations/s."""
    shape = SHAPES[files.labels["task"][0].as_py()]
    slices, tokens, channels = shape[0] * shape[1], *shape[2:]
    cka = create_metric("cka")
    x = Features(torch.from_numpy(files.original("x"))[None])
    y = torch.from_numpy(files.compressed("x", "noise", 0))[None]
    a = torch.randn(SIDE, SIDE)
    count = max(1, 40 // slices**2)
    with torch.inference_mode():
        cka.score(x, Features(y))
        taken, product = turns(
            [
                lambda: [cka.score(x, Features(y)) for _ in range(count)],
                lambda: [a @ a for _ in range(5)],
            ],
            repeats,
            REST,
        )
    ours, machine = 2 * slices * tokens**2 * channels * count / taken, 5 * 2 * SIDE**3 / product
    return ours / 1e9, machine / 1e9


def measure_task(task: str, versions: int, folder: Path, runs: int) -> Iterator[Result]:
    """Yield the figures of one task, its files in a folder."""
    files = Files(folder, task, versions)
    # Once for the page cache and the libraries; CKA's published numerator is another, see docs.
    gap = np.abs(np.array(scored(files)) - np.array(plain(files)))[:, :2].max()
    ours, peer = turns([lambda: scored(files), lambda: plain(files)], runs, REST)
    yield figure(f"mse, cosine and cka, {task}", versions / ours, versions / peer)
    yield figure(f"the product in cka, {task}", *cka_share(files, runs + 2))
    yield Result(f"largest difference from NumPy, {task}", float(gap), "")


def beside(task: str, versions: int, folder: Path, runs: int, peer: str) -> Iterator[Result]:
    """Yield how fast this version is beside another one, and how far scores differ."""
    Files(folder, task, versions)
    command = [__file__, "--task", task, "--versions", versions, "--answer", folder]
    both = [Version(command, where) for where in (None, peer)]
    first = [np.array(version.ask("")[1]) for version in both]
    found = [[version.ask("")[0] for version in both] for _ in range(runs)]
    ours, theirs = (versions / min(turn) for turn in zip(*found, strict=True))
    yield Result(f"mse, cosine and cka, {task}", ours, "features/s", "the peer", theirs)
    apart = float(np.abs(first[0] - first[1]).max())
    yield Result(f"largest difference from the peer, {task}", apart, "")
    for version in both:
        version.close()


def measure(given: argparse.Namespace) -> Iterator[Result]:
    """Yield the figures of each task."""
    for task in given.task or (["cls"] if given.quick else SHAPES):
        versions = given.versions or (10 if given.quick or task == "dpt" else 40)
        if given.answer:
            files = Files(given.answer, task, versions)
            for _ in sys.stdin:
                rows: list[list[float]] = []
                taken = seconds(lambda files=files, rows=rows: rows.extend(scored(files)))  # type: ignore[misc]
                print(json.dumps([taken, rows]), flush=True)
            return
        with tempfile.TemporaryDirectory() as temporary:
            folder, runs = Path(temporary), 1 if given.quick else given.runs
            if given.peer:
                yield from beside(task, versions, folder, runs, given.peer)
            else:
                yield from measure_task(task, versions, folder, runs)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", action="append", choices=list(SHAPES), help="default: all")
    parser.add_argument("--versions", type=int, help="of the source; default 40, 10 for dpt")
    parser.add_argument("--runs", type=int, default=3, help="per figure (default 3)")
    parser.add_argument("--peer", metavar="FOLDER", help="of another version of the package")
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)


if __name__ == "__main__":
    sys.exit(run(__doc__, measure, options))
