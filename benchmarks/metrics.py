"""Every listed metric on one pair at the published sizes: milliseconds and memory.

    python benchmarks/metrics.py [--task cls] [--family kernel] [--device cuda] [--json]

``first`` is the time for an original and a version of which nothing is known yet, ``next`` that for
another version of the same original, which is what a long evaluation takes; the least of several.
``memory`` is what a first score takes at its peak above the two features.  The last line is all
the metrics together on one version, which share what they derive.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from cfqa_data.eval.features import Features
from cfqa_data.eval.metrics import FAMILIES, METRICS, Metric

SHAPES = {"cls": (1, 1, 257, 1536), "seg": (2, 1, 1370, 1536), "dpt": (2, 4, 1611, 1536)}
"""Views, layers, tokens and channels of the published features."""

MEBIBYTE = 2**20


def pair(task: str, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return an original and a version of it, (1, N, C, T, D) float32, channels of unequal size."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, *SHAPES[task])
    scales = 0.2 + torch.rand(shape[-1], generator=generator)
    x = scales * torch.randn(shape, generator=generator)
    y = x + 0.1 * scales * torch.randn(shape, generator=generator)
    return x.to(device), y.to(device)


def ready(metrics: Sequence[Metric], task: str) -> list[Metric]:
    """Return the metrics with made-up statistics of a dataset."""
    _, layers, _, channels = SHAPES[task]
    made: dict[str, Callable[[], torch.Tensor]] = {
        "value_range": lambda: torch.full((layers,), 10.0),
        "deviation": lambda: torch.ones(layers, channels),
        "covariance": lambda: (0.1 + torch.eye(channels)).expand(layers, -1, -1),
    }
    return [
        metric.with_options(**{name: made[name]() for name in metric.needs}) for metric in metrics
    ]


class Peak:
    """The greatest memory in use within a ``with`` block above that at its start, in bytes.

    On a CPU it is that of the whole process, from Linux's own record; None elsewhere.
    """

    def __init__(self, device: str) -> None:
        self.cuda = device != "cpu"
        self.extra: int | None = None

    def __enter__(self) -> Peak:
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.start = torch.cuda.memory_allocated()
        elif Path("/proc/self/clear_refs").exists():
            ctypes.CDLL(None).malloc_trim(0)  # what was freed would be used again unseen
            Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
            self.start = self.resident("VmRSS")
        return self

    def __exit__(self, *raised: object) -> None:
        if self.cuda:
            self.extra = torch.cuda.max_memory_allocated() - self.start
        elif hasattr(self, "start"):
            self.extra = max(0, self.resident("VmHWM") - self.start)

    @staticmethod
    def resident(key: str) -> int:
        """Return a line of the process's status, in bytes."""
        status = Path("/proc/self/status").read_text()
        return int(status.split(f"{key}:")[1].split()[0]) * 1024


def seconds(call: Callable[[], object], device: str) -> float:
    """Return the wall time of a call, the device's work included."""
    began = time.perf_counter()
    call()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def measure(
    metrics: Sequence[Metric], x: torch.Tensor, y: torch.Tensor, device: str, repeats: int
) -> dict[str, Any]:
    """Return what there is to say of one metric, or of several that share what they derive."""

    def score(original: Features) -> None:
        version = Features(y)
        for metric in metrics:
            metric.score(original, version)

    with Peak(device) as peak:
        first = [seconds(lambda: score(Features(x)), device)]
    first += [seconds(lambda: score(Features(x)), device) for _ in range(repeats - 1)]
    original = Features(x)
    score(original)
    again = [seconds(lambda: score(original), device) for _ in range(repeats)]
    return {
        "first_ms": 1e3 * min(first),
        "next_ms": 1e3 * min(again),
        "memory_mib": None if peak.extra is None else peak.extra / MEBIBYTE,
    }


def main() -> None:
    """Print one line per metric as it is measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--task", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--family", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one object per line")
    given = parser.parse_args()
    listed = [metric for metric in METRICS if metric.family in given.family]
    for task in given.task:
        if not given.json:
            print(f"{task} {SHAPES[task]}, {torch.get_num_threads()} threads, {given.device}")
            print(f"{'metric':24}{'family':16}{'cost':6}{'first ms':>10}{'next ms':>10}{'MiB':>8}")
        x, y = pair(task, given.device)
        metrics = [metric.to(given.device) for metric in ready(listed, task)]
        lines = [(metric.name, metric.family, metric.cost, [metric]) for metric in metrics]
        for name, family, cost, together in [*lines, ("all together", "-", "-", metrics)]:
            with torch.inference_mode():
                row = measure(together, x, y, given.device, max(1, given.repeats))
            if given.json:
                print(json.dumps({"task": task, "metric": name, **row}), flush=True)
                continue
            memory = "-" if row["memory_mib"] is None else f"{row['memory_mib']:.0f}"
            times = f"{row['first_ms']:10.2f}{row['next_ms']:10.2f}"
            print(f"{name:24}{family:16}{cost:6}{times}{memory:>8}", flush=True)


if __name__ == "__main__":
    main()
