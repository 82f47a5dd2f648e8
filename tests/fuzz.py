"""Fuzz the readers of untrusted bytes, in a child process that may crash.

    python tests/fuzz.py --target manifest --cases 1000 --seed 1
    python tests/fuzz.py --target manifest --seed 1 --only 77 --keep case.json

Without --target, all targets are run. The exit status is 1 if a case broke a rule of `fuzzing.py`.
Each fault is printed with the options that reproduce it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuzzing import Session, load_targets

__all__ = ["Result", "fuzz", "main"]

MOST_FAULTS = 20
"""Faults after which a target is stopped."""

START = 120.0
"""Seconds that a child may take to create its samples."""


@dataclass
class Result:
    """Results of the cases of a target.

    Attributes:
        target: Name of the target.
        outcomes: "ok" or the name of an error -> number of cases.
        faults: (number of the case, broken rule).
        seconds: Total duration.
    """

    target: str
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[tuple[int, str]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def cases(self) -> int:
        """Number of cases."""
        return sum(self.outcomes.values())

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in self.outcomes.most_common())
        return (
            f"{self.target}: {self.cases} cases, {len(self.faults)} faults, "
            f"{self.seconds:.1f} s ({counts})"
        )


def fuzz(
    names: Iterable[str], cases: int | Mapping[str, int], seed: int, first: int = 0
) -> list[Result]:
    """Run cases of targets in child processes, which are replaced when they crash or hang.

    Args:
        names: Names of the targets.
        cases: Number of cases of a target of cost 1, divided by the cost of others; or the number
            of cases by name.
        seed: Random seed. A case is determined by the seed, its number and the target's name.
        first: Number of the first case.
    """
    targets, results = load_targets(), {name: Result(name) for name in names}
    todo = [
        (name, first, first + count)
        for name in results
        for count in [
            max(1, cases // targets[name].cost) if isinstance(cases, int) else cases[name]
        ]
    ]
    with tempfile.TemporaryDirectory(prefix="cfqa-fuzz-") as base:
        while todo:
            todo = _child(todo, seed, Path(base), results)
    return list(results.values())


def _child(
    todo: list[tuple[str, int, int]], seed: int, base: Path, results: dict[str, Result]
) -> list[tuple[str, int, int]]:
    """Run cases in a child process; return those that it did not reach."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    folder = Path(tempfile.mkdtemp(dir=base))
    process = context.Process(target=_serve, args=(send, todo, seed, folder), daemon=True)
    process.start()
    send.close()
    targets = load_targets()
    name, number, stop = todo[0]
    limit, since, running = START, time.monotonic(), False
    try:
        while True:
            if not receive.poll(max(0.0, since + limit - time.monotonic())):
                process.kill()
                raise TimeoutError(f"took more than {limit:g} s")
            kind, *facts = receive.recv()
            since = time.monotonic()
            if kind == "target":
                (name, number, stop), limit, running = facts[0], START, False
            elif kind == "ready":
                limit, running = targets[name].seconds, True
            elif kind == "case":
                number += 1
                outcome, fault, seconds = facts
                _note(results[name], number - 1, outcome, fault, seconds)
                if len(results[name].faults) >= MOST_FAULTS:
                    process.kill()
                    number = stop
                    break
            elif kind == "failed":
                raise RuntimeError(f"{name}: the samples cannot be read: {facts[0]}")
            elif kind == "end":
                process.join()
                return []
    except (EOFError, TimeoutError) as error:
        process.join()
        if not running:
            raise RuntimeError(f"{name}: the child ended before its first case") from None
        how = str(error) if isinstance(error, TimeoutError) else f"ended by {process.exitcode}"
        _note(results[name], number, "dead", f"the process {how}", time.monotonic() - since)
        number += 1
    process.join()
    rest = todo[[entry[0] for entry in todo].index(name) + 1 :]
    return ([(name, number, stop)] if number < stop else []) + rest


def _note(result: Result, number: int, outcome: str, fault: str, seconds: float) -> None:
    result.outcomes[outcome] += 1
    result.seconds += seconds
    if fault:
        result.faults.append((number, fault))


def _serve(send: Any, todo: list[tuple[str, int, int]], seed: int, base: Path) -> None:
    """Run cases in the child process, and send the result of each."""
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - hides messages of libraries
    targets = load_targets()
    for entry in todo:
        send.send(("target", entry))
        name, first, stop = entry
        folder = base / name
        folder.mkdir()
        try:
            session = Session(targets[name], folder)
        except Exception as error:
            send.send(("failed", f"{type(error).__name__}: {error}"))
            return
        send.send(("ready",))
        for number in range(first, stop):
            start = time.perf_counter()
            outcome, fault = session.run(seed, number)
            send.send(("case", outcome, fault, time.perf_counter() - start))
    send.send(("end",))


def _one(name: str, seed: int, number: int, keep: Path | None) -> int:
    """Run one case in this process, and raise its error."""
    with tempfile.TemporaryDirectory(prefix="cfqa-fuzz-") as folder:
        session = Session(load_targets()[name], Path(folder))
        sample, data = session.case(seed, number)
        print(f"{name} {seed}/{number}: {sample}, {len(data)} bytes")
        if keep is not None:
            keep.write_bytes(data)
        outcome, fault = session.run(seed, number)
        print(outcome, fault or "no fault")
        session.target.read(sample, data, session.folder)
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    known = list(load_targets())
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--target", action="append", choices=known, help="may be given again")
    parser.add_argument("--cases", type=int, default=1000, help="of each cheap target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", type=int, help="one case, with its traceback")
    parser.add_argument("--keep", type=Path, help="with --only: write its bytes here")
    options = parser.parse_args(arguments)
    names = options.target or known
    if options.only is not None:
        return _one(names[0], options.seed, options.only, options.keep)
    results = fuzz(names, options.cases, options.seed, options.first)
    for result in results:
        print(result)
        for number, fault in result.faults:
            print(f"  --target {result.target} --seed {options.seed} --only {number}: {fault}")
    return int(any(result.faults for result in results))


if __name__ == "__main__":
    sys.exit(main())
