"""Interrupt builds by faults at arbitrary points, resume them, and compare the results.

    python tests/pipeline_faults.py --seed 1 --count 200

builds a toy recipe once without a fault, then `count` times with one to three faults
(`pipeline_watch`) in succession. Each build is resumed to its end, and every byte is compared.
Builds run in forks of a process that has imported everything, so that they start quickly.
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
    """The result of one run of a build.

    Attributes:
        fault: The injected fault.
        status: Exit status; negative for a signal, 0 for success, 2 for a `CfqaError`.
        message: Message of the error.
        events: Operations on files in its folder.
    """

    fault: Fault
    status: int
    message: str = ""
    events: tuple[str, ...] = ()


class Builder:
    """Builds a recipe repeatedly, each time in a fork of this process."""

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
        """Build with one fault."""
        from cfqa_data.builders.pipeline import build
        from cfqa_data.errors import CfqaError

        report = self.scratch / "report"
        report.write_text("{}")
        pid = os.fork()
        if not pid:
            answer: dict[str, Any] = {}
            code = 1
            try:
                watch = Watch(out, fault) if fault.kind != "timer" else None
                build(self.recipe, out, workers=workers)
                code = 0
            except CfqaError as error:
                code, answer["message"] = 2, str(error)
            except BaseException as error:
                answer["message"] = repr(error)
            finally:
                resource.setrlimit(
                    resource.RLIMIT_FSIZE, (resource.getrlimit(resource.RLIMIT_FSIZE)[1],) * 2
                )
                if watch:
                    watch.busy = True
                    answer["events"] = watch.events
                answer["modules"] = list(sys.modules)
                report.write_text(json.dumps(answer))
                os._exit(code)
        if fault.kind == "timer":
            time.sleep(self.seconds * fault.at / 1000)
            os.kill(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        answer = json.loads(report.read_text() or "{}")
        self.modules = answer.get("modules", self.modules)
        return Run(fault, status, answer.get("message", ""), tuple(answer.get("events", ())))


def prepare(scratch: Path) -> Builder:
    """Return a builder of a recipe with one task, two groups and cached bitstreams."""
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
    """Build with several faults in succession, then without, and compare every byte.

    Raises:
        AssertionError: If a run ended in an unexpected way, or the bytes differ.
    """
    from pipeline_toy import tree

    out = builder.new_folder()
    runs = []
    try:
        for fault in faults:
            run = builder.run(out, fault, workers)
            runs.append(run)
            expected_statuses = {
                "kill": (-signal.SIGKILL,),
                "timer": (-signal.SIGKILL,),
                "half": (-signal.SIGXFSZ,),
                "power": (9,),
                "torn": (9,),
            }.get(fault.kind, (2,))
            assert run.status in (0, *expected_statuses), run
            assert "\n" not in run.message, run
            if run.status == 2:
                words = "no space left" if fault.kind == "full" else "file too large"
                assert words in run.message, run
                assert "finished work is kept" in run.message, run
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


def find_event(events: tuple[str, ...], pattern: str) -> int:
    """Return the index of the first event that matches a pattern."""
    return next(n for n, event in enumerate(events) if re.search(pattern, event))


def named_faults(events: tuple[str, ...]) -> dict[str, Fault]:
    """Return faults at critical points of a build, by name."""
    shard, rows = r"open /compressed/.*/c/1/", r"chmod /.build/rows/.*-00001"
    renamed = find_event(events, r"rename /manifest.json")
    return {
        "inside the lock": Fault("half", find_event(events, r"flock"), 5),
        "inside the plan": Fault("half", find_event(events, r"open /.build/plan.json"), 99),
        "inside a shard": Fault("half", find_event(events, shard), 999),
        "inside a marker": Fault("half", find_event(events, rows) - 1, 999),
        "between shard and marker": Fault("kill", find_event(events, rows)),
        "inside the manifest": Fault("half", find_event(events, r"open /manifest.json"), 999),
        "before the manifest is renamed": Fault("kill", renamed),
        "after the manifest is renamed": Fault("kill", renamed + 1),
        "inside remove_work, first": Fault("kill", renamed + 2),
        "inside remove_work, last": Fault("kill", find_event(events, r"remove /.build/plan.json")),
        "before the lock is removed": Fault("kill", find_event(events, r"remove /.build/lock")),
        "after the lock is removed": Fault("kill", len(events) - 1),
        "no space for a shard": Fault("short", find_event(events, shard), 999),
        "no space for label rows": Fault("short", find_event(events, rows) - 1, 99),
        "no space for the manifest": Fault("full", find_event(events, r"open /manifest.json")),
        "power cut at the end": Fault("power", len(events) - 1),
        "torn files at the end": Fault("torn", len(events) - 1),
    }


def draw(random_: random.Random, kinds: tuple[str, ...], events: int) -> list[Fault]:
    """Draw one to three random faults."""
    faults = random_.choice((1, 1, 2, 3))
    return [
        Fault(
            kind := random_.choice(kinds),
            random_.randrange(1000 if kind == "timer" else events),
            random_.choice((0, 1, 100, random_.randrange(3000))),
        )
        for _ in range(faults)
    ]


def build_without_fault(
    builder: Builder, workers: int = 0
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the hashes and events of a build without a fault; import its modules here too."""
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
    """Run the cases of the command line, and print a summary as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=12, help="number of cases of random faults")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--workers", type=int, default=0, help="with 2, only the timer is a fault")
    parser.add_argument("--every", type=int, default=0, help="also a fault at every n-th event")
    parser.add_argument(
        "--named", nargs="*", metavar="NAME", help="also these, or all, named faults"
    )
    parser.add_argument("--events", action="store_true", help="also print the events of a build")
    options = parser.parse_args()
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # a sync costs nothing there
    with TemporaryDirectory(prefix="cfqa-faults-", dir=memory) as scratch:
        builder = prepare(Path(scratch))
        expected, events = build_without_fault(builder, options.workers)
        random_ = random.Random(options.seed)
        known = named_faults(events)
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
    summary: dict[str, Any] = {
        "seed": options.seed,
        "cases": len(cases),
        "events": len(events),
        "ends": dict(ends),
    }
    if options.events:
        summary["what"] = events
    print(json.dumps(summary | {"seconds": round(builder.seconds, 2)}))


if __name__ == "__main__":
    main()
