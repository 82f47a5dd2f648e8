"""What a process holds, round after round, and whether it grows.

After each round it is noted, over this process and its children: memory (RSS), open files, threads,
processes, and files left in the temporary folder. A least-squares line through the rounds after the
warm-up says how much each has grown.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

__all__ = ["LIMITS", "Soak", "usage"]

LIMITS = {"memory": 32.0, "files": 1.0, "threads": 1.0, "processes": 1.0, "temporary": 1.0}
"""What each may grow by from the end of the warm-up to the last round; memory in MiB."""

WARM_UP = 0.3
"""Part of the rounds in which caches and pools may fill."""


def usage(temporary: Path) -> dict[str, float]:
    """Return what this process and its children hold now, by the names of `LIMITS`."""
    gc.collect()
    found = dict.fromkeys(LIMITS, 0.0)
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        try:
            with process.oneshot():
                found["memory"] += process.memory_info().rss / 2**20
                found["files"] += process.num_fds() if psutil.POSIX else process.num_handles()
                found["threads"] += process.num_threads()
                found["processes"] += 1
        except psutil.Error:  # it ended while it was looked at
            continue
    found["temporary"] = float(sum(1 for _ in temporary.rglob("*")))
    return found


@dataclass
class Soak:
    """What one kind of work did over its rounds.

    Attributes:
        name: of the work.
        rounds: what was held after each round.
        checked: values, trees or tables that were compared.
        wrong: what was not as it must be.
        seconds: wall time of all rounds.
    """

    name: str
    rounds: list[dict[str, float]] = field(default_factory=list)
    checked: int = 0
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def run(self, work: Callable[[int], Iterator[str]], rounds: int, temporary: Path) -> Soak:
        """Do `work` so many times; it yields "" for what is right, else what is wrong."""
        began = time.perf_counter()
        for number in range(rounds):
            for told in work(number):
                self.checked += 1
                self.wrong += [f"round {number}: {told}"] if told else []
            self.rounds.append(usage(temporary))
        self.seconds = time.perf_counter() - began
        return self

    def growth(self) -> dict[str, float]:
        """How much each rose over the rounds after the warm-up, by the line's slope."""
        kept = self.rounds[round(WARM_UP * len(self.rounds)) :]
        if len(kept) < 2:
            return dict.fromkeys(LIMITS, 0.0)
        x = np.arange(len(kept))
        return {
            name: float(np.polyfit(x, [each[name] for each in kept], 1)[0] * x[-1])
            for name in LIMITS
        }

    def faults(self) -> list[str]:
        """Wrong values, and what grew beyond its limit."""
        grown = [
            f"{name} grew by {value:.1f}, over {LIMITS[name]:g}"
            for name, value in self.growth().items()
            if value >= LIMITS[name]
        ]
        return [f"{self.name}: {fault}" for fault in (*self.wrong, *grown)]

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {**self.__dict__, "growth": self.growth(), "faults": self.faults()}
