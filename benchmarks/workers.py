"""How an evaluation grows with workers: 1 and 2 measured, more by simulation.

    python benchmarks/workers.py cfqa [--metric all] [--workers 10 --workers 100] [--times 200]

The sources of a folder are scored one by one as a worker scores them, with what is sent and what
comes back pickled, on one thread; the processor's time for each is kept, and the caller's. The
simulation hands each source out so many times to many workers, by a caller that does one thing at a
time; what is trained or taken of originals before is not in it. Beside it the same evaluation is
run by one and by two processes of this machine, whose start counts: idle cores are needed for that.
"""

from __future__ import annotations

import argparse
import heapq
import pickle
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from measuring import seconds
from results import Result, run

import cfqa_data
from cfqa_data.eval import evaluate, evaluator, list_metrics


class Recorder:
    """An executor that does each item here, through pickle, and keeps how long it took.

    Attributes:
        items: seconds of the caller before, of the worker, and of the caller after each item.
    """

    def __init__(self) -> None:
        self.items: list[tuple[float, float, float]] = []
        self._stages: dict[int, tuple[Any, Any]] = {}

    def run(
        self, stage: Callable[[Any], Any], items: Sequence[Any], split: object = None
    ) -> Iterator[tuple[Any, Any]]:
        for item in items:
            of_item = stage(item)
            if id(of_item) not in self._stages:  # once for many items
                self._stages[id(of_item)] = of_item, pickle.loads(pickle.dumps(of_item))
            began = time.process_time()
            sent = pickle.dumps(item)
            at = time.process_time()
            found = pickle.dumps(self._stages[id(of_item)][1].run(pickle.loads(sent)))
            done = time.process_time()
            yield item, pickle.loads(found)
            self.items.append((at - began, done - at, time.process_time() - done))


def recorded(dataset: Any, metrics: list[str]) -> list[tuple[float, float, float]]:
    """Return what each source takes."""
    recorder, real = Recorder(), evaluator._executor

    @contextmanager
    def stand_in(*_: Any) -> Iterator[Any]:
        yield recorder

    evaluator._executor = stand_in
    try:
        evaluate(dataset, metrics, progress=None, workers=2)
    finally:
        evaluator._executor = real
    return recorder.items


def simulated(items: Sequence[tuple[float, float, float]], workers: int) -> float:
    """Return the seconds until all items are done, by workers that wait for one caller."""
    caller = 0.0
    busy: list[tuple[float, float]] = []  # when a worker is done, and the caller's time for that
    ends = 0.0
    for before, work, after in items:
        if len(busy) == workers:
            done, kept = heapq.heappop(busy)
            caller = max(caller, done) + kept
        caller += before
        heapq.heappush(busy, (caller + work, after))
    while busy:
        done, kept = heapq.heappop(busy)
        ends = caller = max(caller, done) + kept
    return ends


def measure(given: argparse.Namespace) -> Iterator[Result]:
    """Yield the speed of several workers over that of one."""
    torch.set_num_threads(1)
    dataset = cfqa_data.load(given.folder)
    names = [one for name in given.metric for one in (list_metrics() if name == "all" else [name])]
    items = recorded(dataset, names)
    work = sum(item[1] for item in items)
    yield Result("one source", work / len(items), "s")
    caller = sum(item[0] + item[2] for item in items) / len(items)
    yield Result("one source, of the caller", caller, "s")
    many = items * given.times
    alone = simulated(many, 1)
    for workers in given.workers:
        speed, limit = alone / simulated(many, workers), f"value >= {0.8 * workers:g}"
        yield Result(f"{workers} workers, simulated", speed, "x", limit=limit)
    if given.quick:
        return
    one, two = (
        seconds(lambda n=n: evaluate(dataset, names, progress=None, workers=n))  # type: ignore[misc]
        for n in (1, 2)
    )
    yield Result("2 processes of this machine", one / two, "x", limit="value >= 1.5")


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="a dataset")
    parser.add_argument("--metric", action="append", help="a name, or all; may be repeated")
    parser.add_argument("--workers", action="append", type=int, help="of the simulation")
    parser.add_argument("--times", type=int, default=200, help="how often each source is there")


def main() -> int:
    def defaults(given: argparse.Namespace) -> Iterator[Result]:
        given.metric = given.metric or ["mse", "cosine", "cka"]
        given.workers = given.workers or [2, 10, 100]
        return measure(given)

    return run(__doc__, defaults, options)


if __name__ == "__main__":
    sys.exit(main())
