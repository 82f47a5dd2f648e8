"""A progress listener that calls a function at a step of a build."""

from __future__ import annotations

from collections.abc import Callable

import psutil

__all__ = ["Steps", "kill_worker"]


class Steps:
    """A progress listener that records stages and steps, and calls `act` at step `at`."""

    def __init__(self, at: int | None = None, act: Callable[[], object] | None = None) -> None:
        self.stages: list[tuple[str, int, str]] = []
        self.done: dict[str, int] = {}
        self.steps, self.at, self.act = 0, at, act

    def start(self, stage: str, total: int, unit: str) -> None:
        self.stages.append((stage, total, unit))
        self.done[stage] = 0

    def advance(self, n: int = 1) -> None:
        self.done[self.stages[-1][0]] += n
        self.steps += 1
        if self.steps == self.at and self.act:
            self.act()

    def finish(self) -> None:
        stage, total, _ = self.stages[-1]
        assert self.done[stage] == total


def kill_worker() -> None:
    """Kill a worker process of this process."""
    workers = [
        child
        for child in psutil.Process().children(recursive=True)
        if "spawn_main" in " ".join(child.cmdline())
    ]
    assert workers
    workers[0].kill()
