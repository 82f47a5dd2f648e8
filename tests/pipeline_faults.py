"""Builds with faults at any point, gone on with and compared byte for byte; runs as a program.

    python tests/pipeline_faults.py --seed 1 --count 200

builds a toy recipe once undisturbed, then `count` times with up to three faults (`pipeline_watch`)
one after the other, each time goes on to the end, and compares every byte. It forks from a process
that has loaded everything, so that a fault costs a build and no start.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline_watch import KINDS, Fault, Watch

NONE = Fault()


@dataclass(frozen=True)
class Run:
    """How one run of a build ended.

    Attributes:
        fault: What was done to it.
        status: Of the process; negative for a signal, 0 done, 2 refused.
        told: What it said.
        events: What it did below its folder.
    """

    fault: Fault
    status: int
    told: str = ""
    events: tuple[str, ...] = ()


class Builder:
    """Builds a recipe again and again, each time in a fresh copy of this process."""

    def __init__(self, recipe: Any, scratch: Path) -> None:
        self.recipe, self.scratch, self.count = recipe, scratch, 0
        self.seconds = 0.0
        self.modules: list[str] = []

    def new_folder(self) -> Path:
        self.count += 1
        base = self.scratch / f"{self.count}"
        base.mkdir()
        return base / "out"

    def run(self, out: Path, fault: Fault = NONE, workers: int = 0) -> Run:
        """Build, with one fault."""
        from cfqa_data.builders.pipeline import build
        from cfqa_data.errors import CfqaError

        told = self.scratch / "told"
        told.write_text("{}")
        pid = os.fork()
        if not pid:
            answer: dict[str, Any] = {}
            code = 1
            try:
                watch = Watch(out, fault) if fault.kind != "timer" else None
                build(self.recipe, out, workers=workers)
                code = 0
            except CfqaError as error:
                code, answer["told"] = 2, str(error)
            except BaseException as error:
                answer["told"] = repr(error)
            finally:
                resource.setrlimit(
                    resource.RLIMIT_FSIZE, (resource.getrlimit(resource.RLIMIT_FSIZE)[1],) * 2
                )
                if watch:
                    watch.busy = True
                    answer["events"] = watch.events
                answer["modules"] = list(sys.modules)
                told.write_text(json.dumps(answer))
                os._exit(code)
        if fault.kind == "timer":
            time.sleep(self.seconds * fault.at / 1000)
            os.kill(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        answer = json.loads(told.read_text() or "{}")
        self.modules = answer.get("modules", self.modules)
        return Run(fault, status, answer.get("told", ""), tuple(answer.get("events", ())))


def prepare(scratch: Path) -> Builder:
    """Return what builds a recipe of one task, two groups and kept streams."""
    import torch
    from pipeline_toy import QPS, toy_recipe, write_networks

    from cfqa_data.codecs.h26x.hevc import X265
    from cfqa_data.recipe.load import Recipe

    torch.set_num_threads(1)
    X265.slow = True
    (scratch / "networks").mkdir()
    write_networks(scratch / "networks")
    whole = toy_recipe(scratch / "networks", {"x265": QPS}, sources_per_task=2, group_size=1)
    recipe = Recipe.from_dict(whole.to_dict() | {"tasks": {"cls": whole.tasks["cls"].to_dict()}})
    return Builder(recipe, scratch)


def check(
    builder: Builder, faults: list[Fault], expected: dict[str, str], workers: int
) -> list[Run]:
    """Build with faults one after the other, then without, and compare every byte.

    Raises:
        AssertionError: If a run ended otherwise than its fault has it end, or the bytes differ.
    """
    from pipeline_toy import tree

    out = builder.new_folder()
    runs = []
    try:
        for fault in faults:
            run = builder.run(out, fault, workers)
            runs.append(run)
            ends = {
                "kill": (-signal.SIGKILL,),
                "timer": (-signal.SIGKILL,),
                "half": (-signal.SIGXFSZ,),
                "power": (9,),
                "torn": (9,),
            }.get(fault.kind, (2,))
            assert run.status in (0, *ends), run
            assert "\n" not in run.told, run
            if run.status == 2:
                words = "no space left" if fault.kind == "full" else "file too large"
                assert words in run.told, run
                assert "finished work is kept" in run.told, run
                assert not list(out.rglob("*.partial")), run
        last = builder.run(out)
        assert last.status == 0, last
        assert tree(out) == expected, "other bytes"
        assert not (out / ".build").exists()
        return runs
    except AssertionError as error:
        raise AssertionError(f"{faults}: {error}") from None
    finally:
        shutil.rmtree(out.parent, ignore_errors=True)


def place(events: tuple[str, ...], words: str) -> int:
    """Return the number of the first event that has these words."""
    return next(n for n, event in enumerate(events) if re.search(words, event))


def named(events: tuple[str, ...]) -> dict[str, Fault]:
    """Return faults at places where something might be lost, by name."""
    shard, rows = r"open /compressed/.*/c/1/", r"chmod /.build/rows/.*-00001"
    named = place(events, r"rename /manifest.json")
    return {
        "inside the lock": Fault("half", place(events, r"flock"), 5),
        "inside the plan": Fault("half", place(events, r"open /.build/plan.json"), 99),
        "inside a shard": Fault("half", place(events, shard), 999),
        "inside a marker": Fault("half", place(events, rows) - 1, 999),
        "between shard and marker": Fault("kill", place(events, rows)),
        "inside the manifest": Fault("half", place(events, r"open /manifest.json"), 999),
        "before the manifest has its name": Fault("kill", named),
        "after the manifest has its name": Fault("kill", named + 1),
        "inside remove_work, first": Fault("kill", named + 2),
        "inside remove_work, last": Fault("kill", place(events, r"remove /.build/plan.json")),
        "before the lock goes": Fault("kill", place(events, r"remove /.build/lock")),
        "after the lock went": Fault("kill", len(events) - 1),
        "no room for a shard": Fault("short", place(events, shard), 999),
        "no room for label rows": Fault("short", place(events, rows) - 1, 99),
        "no room for the manifest": Fault("full", place(events, r"open /manifest.json")),
        "power cut at the end": Fault("power", len(events) - 1),
        "torn files at the end": Fault("torn", len(events) - 1),
    }


def draw(random_: random.Random, kinds: tuple[str, ...], events: int) -> list[Fault]:
    """Return one to three faults."""
    faults = random_.choice((1, 1, 2, 3))
    return [
        Fault(
            kind := random_.choice(kinds),
            random_.randrange(1000 if kind == "timer" else events),
            random_.choice((0, 1, 100, random_.randrange(3000))),
        )
        for _ in range(faults)
    ]


def undisturbed(builder: Builder, workers: int = 0) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return hashes and events of a build without fault; load here what it had to load."""
    from pipeline_toy import tree

    builder.run(builder.new_folder(), workers=workers)
    for name in builder.modules:
        with suppress(Exception):
            import_module(name)
    out, began = builder.new_folder(), time.perf_counter()
    plain = builder.run(out, workers=workers)
    builder.seconds = time.perf_counter() - began
    assert plain.status == 0, plain
    return tree(out), plain.events


def main() -> None:
    """Do what the command line says, and print what happened as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=12, help="cases of random faults")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--workers", type=int, default=0, help="with 2, only the timer is a fault")
    parser.add_argument("--every", type=int, default=0, help="one fault before every n-th event")
    parser.add_argument("--named", nargs="*", metavar="NAME", help="and these places, or all named")
    parser.add_argument("--events", action="store_true", help="and tell what a build does")
    options = parser.parse_args()
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # a sync costs nothing there
    with TemporaryDirectory(prefix="cfqa-faults-", dir=memory) as scratch:
        builder = prepare(Path(scratch))
        expected, events = undisturbed(builder, options.workers)
        random_ = random.Random(options.seed)
        known = named(events)
        chosen = known if options.named == [] else options.named or ()
        cases = [[known[name]] for name in chosen]
        certain = len(cases)
        if options.every:
            places = range(random_.randrange(options.every), len(events), options.every)
            sizes = (random_.randrange(300) for _ in count())
            cases += [[Fault(k, at, next(sizes))] for k in options.kinds for at in places]
        cases += [draw(random_, options.kinds, len(events)) for _ in range(options.count)]
        ends: Counter[str] = Counter()
        for number, case in enumerate(cases):
            for run in check(builder, case, expected, options.workers):
                assert run.status or number >= certain, f"{run.fault} did not happen"
                ends[f"{run.fault.kind} {'came too late' if run.status == 0 else 'hit'}"] += 1
    told: dict[str, Any] = {
        "seed": options.seed,
        "cases": len(cases),
        "events": len(events),
        "ends": dict(ends),
    }
    if options.events:
        told["what"] = events
    print(json.dumps(told | {"seconds": round(builder.seconds, 2)}))


if __name__ == "__main__":
    main()
