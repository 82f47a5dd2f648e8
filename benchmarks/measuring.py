"""Time and memory, measured alike by all benchmarks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

__all__ = [
    "SHAPES",
    "Clock",
    "Version",
    "forget",
    "least",
    "peak",
    "seconds",
    "status",
    "turns",
]

SHAPES = {"cls": (1, 1, 257, 1536), "seg": (2, 1, 1370, 1536), "dpt": (2, 4, 1611, 1536)}
"""Views, layers, tokens and channels of the published features."""


def seconds(call: Callable[[], object]) -> float:
    """Return the wall time of a call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def least(call: Callable[[], object], repeats: int) -> float:
    """Return the least wall time of a call: others carry what else the machine does."""
    return min(seconds(call) for _ in range(repeats))


def turns(calls: list[Callable[[], object]], repeats: int, rest: float = 0.0) -> list[float]:
    """Return each call's least wall time; they take turns, so that load hits all of them.

    Args:
        calls: what is compared.
        repeats: of each.
        rest: seconds before each call, until the threads of another's library stopped spinning.
    """
    taken: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for times, call in zip(taken, calls, strict=True):
            time.sleep(rest)
            times.append(seconds(call))
    return [min(times) for times in taken]


def status(key: str) -> int:
    """Return a line of this process's status in Linux, in bytes."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.split(f"{key}:")[1].split()[0])


def peak() -> int:
    """Return this program's greatest resident memory so far, in bytes, mapped files included."""
    # Not getrusage: its figure survives exec, so a child starts with its parent's.
    return status("VmHWM")


def forget(root: Path) -> None:
    """Tell the system that it need not keep the pages of the files below a folder."""
    for path in root.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Version:
    """A version of the package in a process of its own, which answers when it is asked.

    Args:
        command: A benchmark and its arguments; it answers each line of its input with one of JSON.
        folder: Where the package is; by default this one.
        environment: More variables.
    """

    def __init__(
        self, command: Sequence[object], folder: str | None = None, **environment: str
    ) -> None:
        if folder:
            environment["PYTHONPATH"] = folder
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            env=os.environ | environment,
            stdin=pipe,
            stdout=pipe,
            text=True,
            bufsize=1,
        )

    def ask(self, line: str) -> Any:
        """Return the answer to a line."""
        assert self.process.stdin
        assert self.process.stdout
        print(line, file=self.process.stdin)
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


class Clock:
    """A progress that times the stages, by the wall's clock or another."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, float] = {}
        self._clock = clock
        self._stage, self._since = "", 0.0

    def start(self, stage: str, total: int, unit: str) -> None:
        self._stage, self._since = stage, self._clock()

    def advance(self, n: int = 1) -> None:
        pass

    def finish(self) -> None:
        self.seconds[self._stage] = self._clock() - self._since
