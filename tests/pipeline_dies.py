"""Stands in for the running of an item, and for Dask; light to import, so workers die quickly."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NoReturn

from cfqa_data.errors import BuildError


def die(*_: object) -> NoReturn:
    """End this process as the kernel does when memory is out."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def refuse(*_: object) -> NoReturn:
    """Say clearly why nothing can be done."""
    raise BuildError("nothing doing")


def refuse_odd_groups(root: str, digest: str, item: Any) -> Any:
    """Run items of even groups, and say clearly why not the others."""
    from cfqa_data.builders.pipeline.work import run_item

    if item.group % 2:
        raise BuildError(f"group {item.group} is odd")
    return run_item(root, digest, item)


class StubDask:
    """Stands for Dask, its cluster and its client at once, and notes what is called, in order.

    Attributes:
        calls: "close", ("wait", workers), ("cancel", items).
        failing: what waiting for workers raises.
    """

    def __init__(self, failing: Exception | None = None) -> None:
        self.calls: list[Any] = []
        self.failing = failing

    def __enter__(self) -> StubDask:
        return self

    def __exit__(self, *_: object) -> None:
        self.calls.append("close")

    def wait_for_workers(self, workers: int, timeout: float) -> None:
        self.calls.append(("wait", workers))
        if self.failing:
            raise self.failing

    def submit(self, function: Callable[..., Any], *arguments: Any, **_: Any) -> Any:
        return partial(function, *arguments)

    def as_completed(self, futures: list[Any]) -> Iterator[Any]:
        """Run each item when it is asked for."""
        for future in futures:
            try:
                future()
                future.status = "finished"
            except Exception as error:
                future.status, future.exception = "error", lambda error=error: error
            yield future

    def cancel(self, futures: list[Any]) -> None:
        self.calls.append(("cancel", [future.args[-1] for future in futures]))
