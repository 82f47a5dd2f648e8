"""A replacement for worker processes that runs in this process, with pickling both ways.

Real processes are tested in test_executor.py, test_pipeline_build.py and test_plugin_build.py.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from cfqa_data.processes import executor

__all__ = ["Killed", "PicklingPool", "replace_workers"]


class Killed(BaseException):
    """Raised by an item: the kernel has killed the worker that does it."""


class PicklingPool:
    """An executor that runs each call immediately."""

    def __init__(self) -> None:
        self.calls = 0

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        self.calls += 1
        future: Future[Any] = Future()
        try:
            result = call(*pickle.loads(pickle.dumps(arguments)))
            future.set_result(pickle.loads(pickle.dumps(result)))
        except Killed:
            future.set_exception(BrokenProcessPool("a worker was killed"))
        except Exception as error:
            future.set_exception(pickle.loads(pickle.dumps(error)))
        return future


def replace_workers(monkeypatch: pytest.MonkeyPatch) -> PicklingPool:
    """Make executors with several workers use a `PicklingPool`; return it."""
    pool = PicklingPool()

    @contextmanager
    def start(*_: Any) -> Iterator[PicklingPool]:
        with suppress(BrokenProcessPool):
            yield pool

    monkeypatch.setattr(executor, "_pool", start)
    return pool
