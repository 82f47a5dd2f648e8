"""What a build costs: by stage, at its peak, and per compressed feature over the bare encoder.

    python benchmarks/build.py [--recipe nano] [--workers 2] [--no-ratio] [--peer FOLDER]

The ratio is measured in one process and one run, so that it holds on any machine: the seconds of
whole work items (read, quantise, encode, decode, score, store) over those their codec spent in
`encode_many`, which is what anyone pays who only wants the bitstreams. Memory is the sum over the
build's processes, sampled twice a second.

``--peer`` builds with this and another version of the package instead, which ``pip install
--no-deps --target FOLDER`` put there, in turns, and compares the processors' time of each
stage: nothing else that the machine does is in it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from measuring import Clock, Version, seconds
from results import FIGURES, Result, figure, run

from cfqa_data.builders.pipeline import build
from cfqa_data.builders.pipeline import context as pipeline_context
from cfqa_data.builders.pipeline.build import STAGES
from cfqa_data.builders.pipeline.context import BuildContext
from cfqa_data.builders.pipeline.plan import Item, Plan
from cfqa_data.builders.pipeline.select import BuildStage
from cfqa_data.format.layout import Layout
from cfqa_data.recipe.load import Recipe, load_recipe


class Memory:
    """Peak memory of this process and its children, in bytes: together, and of the largest."""

    def __enter__(self) -> Memory:
        self.peak = self.largest = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(0.5):
            total = 0  # what is shared counts once
            for process in (me, *me.children(recursive=True)):
                try:
                    info = process.memory_full_info()
                    total += info.pss
                    self.largest = max(self.largest, info.rss)
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


@dataclass(frozen=True)
class Built:
    """What a build took: seconds in all and by stage, bytes of memory, and bytes written."""

    seconds: float
    stages: dict[str, float]
    peak: int
    largest: int
    size: int


def timed_build(recipe: Recipe, out: Path, workers: int, tier: str) -> Built:
    """Build in a new folder."""
    clock = Clock()
    with Memory() as memory:
        total = seconds(lambda: build(recipe, out, workers=workers, tier=tier, progress=clock))
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return Built(total, clock.seconds, memory.peak, memory.largest, size)


def ratios(recipe: Recipe) -> list[tuple[Item, int, float, float, float]]:
    """Per task and codec: an item, its features, seconds in all, encoding and decoding."""
    from cfqa_data.processes.executor import run_item  # not in earlier versions

    folder = Path(tempfile.mkdtemp())
    rows = []
    try:
        out = build(recipe, folder / "out", workers=0)
        plan = Plan(recipe)
        layout = Layout(out)
        spent: dict[str, float] = defaultdict(float)
        make = pipeline_context.codec_for
        pipeline_context.codec_for = lambda *ladder: Timed(make(*ladder), spent)
        compress = _restore_work(plan, layout)
        for item in [item for item in compress.items() if item.shard == 0]:
            run_item(compress, item)  # loads what a process loads once
            spent.clear()
            begin = time.perf_counter()
            run_item(compress, item)
            whole, size = time.perf_counter() - begin, compress.cost(item)
            rows.append((item, size, whole, spent["encode_many"], spent["decode_many"]))
        pipeline_context.codec_for = make
    finally:
        shutil.rmtree(folder)
    return rows


def _restore_work(plan: Plan, layout: Layout) -> BuildStage:
    """Put back what compress items read of a finished build; return their stage."""
    from cfqa_data.builders.pipeline.workspace import open_workspace
    from cfqa_data.processes.executor import run_item

    open_workspace(plan, layout.root)
    *before, compress = (stage(BuildContext(plan, layout)) for stage in STAGES)
    for stage in before:
        for item in stage.items():
            run_item(stage, item)
    return compress


def told(name: str, built: Built) -> Iterator[Result]:
    """Yield what there is to say of a build."""
    yield _figure(f"{name}: build", built.seconds, "s")
    yield _figure(f"{name}: memory of all processes", built.peak / 1e9, "GB")
    yield _figure(f"{name}: memory of the largest process", built.largest / 1e9, "GB")
    for stage, spent in built.stages.items():
        yield Result(f"{name}: build, {stage}", spent, "s", "the build", built.seconds)


def _figure(
    name: str, value: float, unit: str, peer: str = "", other: float | None = None
) -> Result:
    """Return a figure of the data, or one of another recipe."""
    return figure(name, value, other) if name in FIGURES else Result(name, value, unit, peer, other)


def told_ratios(recipe: Recipe) -> Iterator[Result]:
    """Yield what a feature costs over its codec alone, by task and codec and in sum."""
    sums: dict[str, list[float]] = {"video": [0.0] * 3, "hyperpriors": [0.0] * 3}
    for item, features, *spent in ratios(recipe):
        whole, encode, decode = ms = [1000 * value / features for value in spent]
        name = f"{recipe.name}: a feature, {item.task} {item.codec}"
        yield Result(name, whole, "ms", "encoding", encode)
        yield Result(name, whole, "ms", "encoding and decoding", encode + decode)
        kind = "hyperpriors" if item.codec.startswith("hyperprior") else "video"
        sums[kind] = [a + b for a, b in zip(sums[kind], ms, strict=True)]
    for kind, (whole, encode, decode) in sums.items():
        for peer, other in (("encoding", encode), ("both ways", encode + decode)):
            name = f"{recipe.name}: features by {kind}, over {peer}"
            yield _figure(name, whole / 1000, "s", peer, other / 1000)


def answer(recipe: Recipe, tier: str) -> None:
    """Build once for each line of the input; answer each stage's seconds of processors."""

    def spent() -> float:
        return sum(os.times()[:4])  # with the encoders'

    for _ in sys.stdin:
        clock = Clock(spent)
        with tempfile.TemporaryDirectory() as folder:
            build(recipe, Path(folder) / "out", workers=0, tier=tier, progress=clock)
        print(json.dumps(clock.seconds), flush=True)


def beside(given: argparse.Namespace) -> Iterator[Result]:
    """Yield what each stage takes, and all together, beside the peer."""
    command = [__file__, "--answer", "--recipe", given.recipe, "--tier", given.tier]
    both = [Version(command, folder, OMP_NUM_THREADS="1") for folder in (None, given.peer)]
    found = [[version.ask("build") for version in both] for _ in range(given.repeats)]
    ours, peer = (
        {stage: min(turn[place][stage] for turn in found) for stage in found[0][place]}
        for place in (0, 1)
    )
    for stage in ours:
        yield Result(
            f"{given.recipe}: {stage}, processors", ours[stage], "s", "the peer", peer.get(stage)
        )
    both_sums = sum(ours.values()), sum(peer.values())
    yield Result(f"{given.recipe}: build, processors", both_sums[0], "s", "the peer", both_sums[1])
    for version in both:
        version.close()


def measure(given: argparse.Namespace) -> Iterator[Result]:
    """Yield the figures of a build, then those of its items."""
    recipe = load_recipe(given.recipe)
    if given.answer:
        answer(recipe, given.tier)
        return
    if given.peer:
        yield from beside(given)
        return
    with tempfile.TemporaryDirectory() as folder:
        built = timed_build(recipe, Path(folder) / "out", given.workers, given.tier)
    yield from told(recipe.name, built)
    yield Result(f"{recipe.name}: size", built.size / 1e6, "MB")
    if not given.no_ratio and not given.quick:
        yield from told_ratios(recipe)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recipe", default="nano")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tier", default="full")
    parser.add_argument("--no-ratio", action="store_true", help="only time the build")
    parser.add_argument("--repeats", type=int, default=3, help="builds of each, with --peer")
    parser.add_argument("--peer", metavar="FOLDER", help="of another version of the package")
    parser.add_argument("--answer", action="store_true", help=argparse.SUPPRESS)


if __name__ == "__main__":
    sys.exit(run(__doc__, measure, options))
