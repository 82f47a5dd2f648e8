"""Every listed metric on one pair at the published sizes: milliseconds and memory.

    python benchmarks/metrics.py [--task cls] [--family kernel] [--device cuda] [--peer FOLDER]

``first`` is the time for an original and a version of which nothing is known yet, ``next`` that for
another version of the same original, which is what a long evaluation takes; the least of several.
``memory`` is what a first score takes at its peak above the two features.  The last lines are all
the metrics together on one version, which share what they derive.

``--peer`` compares with another version of the package instead, which ``pip install --no-deps
--target FOLDER`` has put there: ``next`` of both, in turns, as CPU time of one thread, and how far
scores differ.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from measuring import SHAPES, Version, least, status
from results import Result, run

from cfqa_data.eval.features import Features
from cfqa_data.eval.metrics import FAMILIES, METRICS, Metric

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
            self.start = status("VmRSS")
        return self

    def __exit__(self, *raised: object) -> None:
        if self.cuda:
            self.extra = torch.cuda.max_memory_allocated() - self.start
        elif hasattr(self, "start"):
            self.extra = max(0, status("VmHWM") - self.start)


def score_one(
    name: str,
    metrics: Sequence[Metric],
    pair: tuple[torch.Tensor, torch.Tensor],
    device: str,
    repeats: int,
) -> Iterator[Result]:
    """Yield what there is to say of one metric, or of several that share what they derive."""
    x, y = pair

    def score(original: Features) -> None:
        version = Features(y)
        for metric in metrics:
            metric.score(original, version)
        if device != "cpu":
            torch.cuda.synchronize()

    with torch.inference_mode():
        with Peak(device) as peak:
            first = least(lambda: score(Features(x)), 1)
        first = min([first, *(least(lambda: score(Features(x)), 1) for _ in range(repeats - 1))])
        original = Features(x)
        score(original)
        again = least(lambda: score(original), repeats)
    yield Result(f"{name}, first", 1e3 * first, "ms")
    yield Result(f"{name}, next", 1e3 * again, "ms", "first", 1e3 * first)
    if peak.extra is not None:
        yield Result(f"{name}, memory", peak.extra / MEBIBYTE, "MiB")


def answer(task: str, listed: Sequence[Metric]) -> None:
    """Score the next version by what each line of the input names, and print the time."""
    x, y = pair(task, "cpu")
    metrics = ready(listed, task)
    # As an evaluation scores; an earlier version has another name for it.
    score = {metric.name: getattr(metric, "unchecked", metric.score) for metric in metrics}
    original, asked = Features(x), set[str]()
    for line in sys.stdin:
        name = line.strip()
        some = [metric for metric in metrics if name in (metric.name, "all together")]
        with torch.inference_mode():
            if name not in asked:
                asked.add(name)
                for metric in some:
                    score[metric.name](original, Features(y))
            version, began = Features(y), time.thread_time()
            scores = [score[metric.name](original, version).item() for metric in some]
            print(json.dumps([time.thread_time() - began, scores]), flush=True)


def beside(task: str, listed: Sequence[Metric], given: argparse.Namespace) -> Iterator[Result]:
    """Yield each metric's time and how far its scores lie from those of the peer."""
    command = [__file__, "--answer", "--task", task, "--family", *given.family]
    both = [Version(command, folder, OMP_NUM_THREADS="1") for folder in (None, given.peer)]
    alone = [] if given.together else [metric.name for metric in listed]
    for name in [*alone, "all together"]:
        found = [[version.ask(name) for version in both] for _ in range(given.repeats)]
        ours, peer = (min(turn[place][0] for turn in found) for place in (0, 1))
        yield Result(f"{task}: {name}, next", 1e3 * ours, "ms", "the peer", 1e3 * peer)
        scores = zip(found[0][0][1], found[0][1][1], strict=True)
        apart = max(abs(one - other) / (abs(other) or 1.0) for one, other in scores)
        yield Result(f"{task}: {name}, scores apart", apart, "of their size")
    for version in both:
        version.close()


def measure(given: argparse.Namespace) -> Iterator[Result]:
    """Yield the figures of each metric, and of all together, for each task."""
    listed = [metric for metric in METRICS if metric.family in given.family]
    if given.quick:
        listed = listed[:3]
    if given.answer:
        answer(given.task[0], listed)
        return
    for task in given.task or (["cls"] if given.quick else SHAPES):
        if given.peer:
            yield from beside(task, listed, given)
            continue
        x, y = pair(task, given.device)
        metrics = [metric.to(given.device) for metric in ready(listed, task)]
        lines = [
            (f"{metric.name} ({metric.family}, {metric.cost})", [metric]) for metric in metrics
        ]
        for name, together in [*lines, ("all together", metrics)]:
            repeats = 1 if given.quick else max(1, given.repeats)
            yield from score_one(f"{task}: {name}", together, (x, y), given.device, repeats)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", nargs="+", choices=SHAPES, help="default: all")
    parser.add_argument("--family", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peer", metavar="FOLDER", help="of another version of the package")
    parser.add_argument("--together", action="store_true", help="beside it, only all at once")
    parser.add_argument("--answer", action="store_true", help=argparse.SUPPRESS)


if __name__ == "__main__":
    sys.exit(run(__doc__, measure, options))
