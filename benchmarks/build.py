"""What a build costs: by stage, at its peak, and per compressed feature over the bare encoder.

    python benchmarks/build.py --recipe nano --workers 2

The ratio is measured in one process and one run, so that it holds on any machine: the seconds of
whole work items (read, quantise, encode, decode, score, store) over those their codec spent in
`encode_many`, which is what anyone pays who only wants the bitstreams. Memory is the sum over the
build's processes, sampled twice a second.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import psutil

from cfqa_data.builders.pipeline import build
from cfqa_data.builders.pipeline import tools as pipeline_tools
from cfqa_data.builders.pipeline.plan import Item, Plan
from cfqa_data.builders.pipeline.work import run_item
from cfqa_data.layout import Layout
from cfqa_data.recipe import Recipe, load_recipe


class Clock:
    """A progress that times the stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._stage, self._since = "", 0.0

    def start(self, stage: str, total: int, unit: str) -> None:
        self._stage, self._since = stage, time.perf_counter()

    def advance(self, n: int = 1) -> None:
        pass

    def finish(self) -> None:
        self.seconds[self._stage] = time.perf_counter() - self._since


class Memory:
    """Peak of the unique memory of this process and its children, in bytes."""

    def __enter__(self) -> Memory:
        self.peak, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(0.5):
            total = 0
            for process in (me, *me.children(recursive=True)):
                try:
                    total += process.memory_full_info().pss
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue
            self.peak = max(self.peak, total)


class Timed:
    """A codec that counts the seconds it encodes and decodes."""

    def __init__(self, codec: Any, spent: dict[str, float]) -> None:
        self._codec, self._spent, self.name = codec, spent, codec.name

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._codec, name)
        if name not in ("encode_many", "decode_many"):
            return method

        def timed(*arguments: Any) -> Any:
            begin = time.perf_counter()
            try:
                return method(*arguments)
            finally:
                self._spent[name] += time.perf_counter() - begin

        return timed


def stages(recipe: Recipe, workers: int, tier: str) -> tuple[dict[str, float], float, int, int]:
    """Build in a new folder; return seconds by stage, in all, peak memory, and bytes."""
    folder = Path(tempfile.mkdtemp())
    clock, begin = Clock(), time.perf_counter()
    try:
        with Memory() as memory:
            out = build(recipe, folder / "out", workers=workers, tier=tier, progress=clock)
        total = time.perf_counter() - begin
        size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    finally:
        shutil.rmtree(folder)
    return clock.seconds, total, memory.peak, size


def ratios(recipe: Recipe) -> list[tuple[Item, int, float, float, float]]:
    """Per task and codec: an item, its features, seconds in all, encoding and decoding."""
    folder = Path(tempfile.mkdtemp())
    rows = []
    try:
        out = build(recipe, folder / "out", workers=0)
        plan = Plan(recipe)
        layout = Layout(out)
        spent: dict[str, float] = defaultdict(float)
        make = pipeline_tools.codec_for
        pipeline_tools.codec_for = lambda ladder: Timed(make(ladder), spent)
        _restore_work(plan, layout)
        for item in [item for item in plan.items("compress") if item.group == 0]:
            run_item(str(out), plan.digest(), item)  # loads what a process loads once
            spent.clear()
            begin = time.perf_counter()
            run_item(str(out), plan.digest(), item)
            whole = time.perf_counter() - begin
            rows.append((item, plan.size(item), whole, spent["encode_many"], spent["decode_many"]))
        pipeline_tools.codec_for = make
    finally:
        shutil.rmtree(folder)
    return rows


def _restore_work(plan: Plan, layout: Layout) -> None:
    """Put back what compress items read of a finished build: its plan and earlier markers."""
    from cfqa_data.builders.pipeline.workspace import open_workspace

    open_workspace(plan, layout.root)
    for stage in ("select", "extract", "centre"):
        for item in plan.items(stage):
            run_item(str(layout.root), plan.digest(), item)


def main() -> None:
    """Print the tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="nano")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tier", default="full")
    parser.add_argument("--no-ratio", action="store_true", help="only time the build")
    chosen = parser.parse_args()
    recipe = load_recipe(chosen.recipe)
    seconds, total, peak, size = stages(recipe, chosen.workers, chosen.tier)
    print(f"{recipe.name}, {chosen.tier} tier, {chosen.workers} workers: {total:.1f} s, ", end="")
    print(f"peak {peak / 1e9:.2f} GB, {size / 1e6:.1f} MB\n")
    print("| stage | seconds |\n|---|---|")
    for stage, spent in seconds.items():
        print(f"| {stage} | {spent:.1f} |")
    print(f"| workers, plan, rest | {total - sum(seconds.values()):.1f} |")
    if chosen.no_ratio:
        return
    print("\n| task | codec | ms a feature | encode | decode | over the encoder | over both |")
    print("|---|---|---|---|---|---|---|")
    sums = [0.0, 0.0, 0.0]
    for item, features, whole, encode, decode in ratios(recipe):
        ms = [1000 * value / features for value in (whole, encode, decode)]
        sums = [a + b for a, b in zip(sums, ms, strict=True)]
        print(
            f"| {item.task} | {item.codec} | {ms[0]:.1f} | {ms[1]:.1f} | {ms[2]:.1f} "
            f"| {ms[0] / ms[1]:.2f} | {ms[0] / (ms[1] + ms[2]):.2f} |"
        )
    print(f"| all | all | | | | {sums[0] / sums[1]:.2f} | {sums[0] / (sums[1] + sums[2]):.2f} |")


if __name__ == "__main__":
    main()
