"""Scoring by mse, cosine and cka at the published sizes, against plain NumPy, in one run.

    python benchmarks/evaluator.py [--task cls] [--versions 40] [--json]

The peer is a straightforward float32 NumPy version of the published functions, one pair at a time,
which loads the original again for each, as the published scripts do.  Both read the same `.npy`
files from a warm cache.  `cka share` is the rate of the one matrix product per version that CKA
needs, over the time that CKA takes, as a share of what this machine's float32 products reach.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from cfqa_data.eval import create_metric
from cfqa_data.eval.features import Features
from cfqa_data.eval.reading import read_batches

SHAPES = {"cls": (1, 1, 257, 1536), "seg": (2, 1, 1370, 1536), "dpt": (2, 4, 1611, 1536)}
METRICS = ("mse", "cosine", "cka")


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
    """One source and its versions as `.npy` files, read as a dataset is."""

    def __init__(self, folder: Path, task: str, versions: int) -> None:
        generator = np.random.default_rng(0)
        shape = SHAPES[task]
        x = generator.standard_normal(shape, np.float32)
        self.folder, self.versions = folder, versions
        np.save(folder / "x.npy", x)
        for level in range(versions):
            noise = generator.standard_normal(shape, np.float32)
            np.save(folder / f"{level}.npy", x + np.float32(0.02 * (level + 1)) * noise)
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

    def original(self, source_id: str) -> np.ndarray:
        return np.load(self.folder / "x.npy")

    def compressed(self, source_id: str, codec: str, level: int) -> np.ndarray:
        return np.load(self.folder / f"{level}.npy")


def seconds(call: Callable[[], Any]) -> float:
    time.sleep(0.3)  # until the threads of the other side's library have stopped spinning
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def scored(files: Files) -> list[list[float]]:
    """Read and score as `evaluate` does, without the statistics."""
    metrics = [create_metric(name) for name in METRICS]
    rows: list[list[float]] = []
    with torch.inference_mode():
        for batch in read_batches(files, range(files.versions), "cpu"):
            rows += torch.stack([m.score(batch.x, batch.y) for m in metrics], 1).tolist()
    return rows


def plain(files: Files) -> list[list[float]]:
    functions = (numpy_mse, numpy_cosine, numpy_cka)
    rows = []
    for level in range(files.versions):
        x, y = files.original("x"), files.compressed("x", "noise", level)
        rows.append([function(x, y) for function in functions])
    return rows


def product_rate() -> float:
    """Return float32 operations per second of a large matrix product."""
    a = torch.randn(2048, 2048)
    return 5 * 2 * 2048**3 / seconds(lambda: [a @ a for _ in range(5)])


def cka_share(files: Files) -> float:
    """Return what CKA's product per version would take at the machine's rate, over its time."""
    shape = SHAPES[files.labels["task"][0].as_py()]
    slices, tokens, channels = shape[0] * shape[1], *shape[2:]
    cka = create_metric("cka")
    x = Features(torch.from_numpy(files.original("x"))[None])
    y = torch.from_numpy(files.compressed("x", "noise", 0))[None]
    with torch.inference_mode():
        cka.score(x, Features(y))
        rate, taken = 0.0, float("inf")
        count = max(1, 40 // slices**2)
        for _ in range(5):
            taken = min(taken, seconds(lambda: [cka.score(x, Features(y)) for _ in range(count)]))
            rate = max(rate, product_rate())
    return 2 * slices * tokens**2 * channels * count / taken / rate


def measure(task: str, versions: int, folder: Path) -> dict[str, Any]:
    files = Files(folder, task, versions)
    # Once for the page cache and the libraries; CKA's published numerator is another, see docs.
    gap = np.abs(np.array(scored(files)) - np.array(plain(files)))[:, :2].max()
    ours, peer = [], []
    for _ in range(3):
        ours.append(seconds(lambda: scored(files)))
        peer.append(seconds(lambda: plain(files)))
    return {
        "task": task,
        "versions": versions,
        "ours_ms": 1e3 * min(ours) / versions,
        "numpy_ms": 1e3 * min(peer) / versions,
        "ratio": min(peer) / min(ours),
        "largest_difference": float(gap),
        "cka_share": cka_share(files),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--task", action="append", choices=list(SHAPES), help="default: all")
    parser.add_argument("--versions", type=int, help="of the source; default 40, 10 for dpt")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    rows = []
    for task in chosen.task or SHAPES:
        with tempfile.TemporaryDirectory() as folder:
            versions = chosen.versions or (10 if task == "dpt" else 40)
            rows.append(measure(task, versions, Path(folder)))
    if chosen.json:
        print(json.dumps(rows, indent=1))
        return
    print("task  versions  NumPy ms  ours ms      x  cka share  largest difference")
    for row in rows:
        print(
            f"{row['task']:4}{row['versions']:10}{row['numpy_ms']:10.1f}{row['ours_ms']:9.1f}"
            f"{row['ratio']:7.1f}{row['cka_share']:11.2f}{row['largest_difference']:20.1e}"
        )


if __name__ == "__main__":
    main()
