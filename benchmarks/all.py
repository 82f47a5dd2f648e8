"""Every figure of speed, memory and size that the pages state, in one table.

    python benchmarks/all.py [--quick] [--only loading] [--dataset cfqa] [--markdown FILE]

Runs the other benchmarks, each in a process of its own, and prints their figures beside those of
their peers and the limits. Writes everything they told to benchmarks.json, and how cost grows to
growth.png. Takes an hour on two cores (the figures of the published size most of it), --quick two
minutes. Exits with 1 when a limit is not met or a benchmark fails; a reduced run is not held to
limits. `--from benchmarks.json` shows an earlier run again; `--only NAME --keep` measures a part of
it anew, on the same machine with the same versions.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from results import FIGURES, Result
from rich.console import Console
from table import complete, fill, machine, markdown, show

HERE = Path(__file__).parent
BENCHMARKS = (*dict.fromkeys(known.benchmark for known in FIGURES.values()), "metrics")
"""In the order of the table; the last has details only."""


def run_one(name: str, options: Sequence[str]) -> tuple[list[Result], int]:
    """Run a benchmark; return what it told, and its exit status."""
    command = [sys.executable, str(HERE / f"{name}.py"), "--json", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        results = [Result.from_dict(json.loads(line)) for line in process.stdout]
    return results, process.returncode


def options_of(name: str, given: argparse.Namespace) -> list[str]:
    """Return what a benchmark is told."""
    options = ["--quick"] if given.quick else []
    if name == "mini" and given.dataset:
        options += ["--dataset", str(given.dataset)]
    if name == "scaling":
        options += ["--plot", str(given.plot)]
    return options


def run_all(given: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Run the chosen benchmarks; write and return all that they told."""
    told: dict[str, Any] = {"quick": given.quick, "machine": machine(), "benchmarks": {}}
    if given.keep and given.json.exists():
        earlier = json.loads(given.json.read_text(encoding="utf-8"))
        if all(earlier[key] == told[key] for key in ("quick", "machine")):
            told["benchmarks"] = earlier["benchmarks"]
    for name in given.only or BENCHMARKS:
        began, load = time.perf_counter(), os.getloadavg()[0]
        console.print(f"{name} ...", end=" ")
        results, code = run_one(name, options_of(name, given))
        taken = time.perf_counter() - began
        console.print(f"{taken:.0f} s" + (f", failed with {code}" if code not in (0, 1) else ""))
        told["benchmarks"][name] = {
            "seconds": round(taken, 1),
            "load": round(load, 1),
            "failed": code not in (0, 1) or not results,
            "results": [result.to_dict() for result in results],
        }
        given.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return told


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure or read, print, write; 1 if a limit is missed or a benchmark failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="reduced, and not held to limits")
    parser.add_argument("--only", action="append", choices=BENCHMARKS, help="default: all")
    parser.add_argument("--dataset", type=Path, help="a folder that is `mini`, built before")
    parser.add_argument("--json", type=Path, default=Path("benchmarks.json"), metavar="FILE")
    parser.add_argument("--plot", type=Path, default=Path("growth.png"), metavar="FILE")
    parser.add_argument("--keep", action="store_true", help="keep what FILE has of the others")
    parser.add_argument("--from", type=Path, dest="earlier", metavar="FILE", help="run nothing")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="fill in this page's table")
    given = parser.parse_args(arguments)
    if given.earlier:
        told = json.loads(given.earlier.read_text(encoding="utf-8"))
    else:
        told = run_all(given, Console(stderr=True))
    parts = told["benchmarks"].values()
    results = [Result.from_dict(known) for part in parts for known in part["results"]]
    rows = complete(results, tuple(told["benchmarks"]))
    kind = "a reduced run: what is measured, not how much" if told["quick"] else "all figures"
    facts = told["machine"]
    width = None if sys.stdout.isatty() else 190
    title = f"{kind}; {facts['cores']} cores of {facts['processor']}"
    show(rows, title, Console(width=width))
    if given.markdown:
        loads = [part["load"] for part in parts]
        fill(given.markdown, markdown(complete(results), facts, loads))  # measured or not
    missed = not told["quick"] and any(result.met is False for _, result in rows)
    return int(missed or any(part["failed"] for part in parts))


if __name__ == "__main__":
    sys.exit(main())
