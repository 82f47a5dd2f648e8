"""Starting processes by `spawn`: each imports the script that started it, and must get past that.

A script without `if __name__ == "__main__":` starts its processes again where each of them imports
it. Such a process says so to the one that started it, and ends without a word; that one tells the
user what the script lacks.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from tempfile import TemporaryDirectory

from cfqa_data.errors import BuildError

__all__ = ["check_guard", "deaf_to_interrupts", "environment", "spawning"]

GUARD = (
    "the script that starts workers is imported by each of them, which starts them again: put what "
    'the script does under `if __name__ == "__main__":`, or use one worker'
)

MARK = "CFQA_UNGUARDED"
"""In the environment of processes: the file that one makes which finds no guard."""


def check_guard() -> None:
    """End this process if it is one that imports the script that started it.

    To be called by whatever starts processes, before it does anything.
    """
    # What multiprocessing itself looks at, when a process is started in such a one.
    if not getattr(multiprocessing.current_process(), "_inheriting", False):
        return
    if mark := os.environ.get(MARK):
        Path(mark).touch()
    else:  # somebody else's processes
        print(f"cfqa: {GUARD}", file=sys.stderr, flush=True)
    os._exit(1)


@contextmanager
def spawning() -> Iterator[None]:
    """Start processes, and wait for what they do.

    Raises:
        BuildError: a process was killed, or the script has no guard.
    """
    check_guard()
    with TemporaryDirectory(prefix="cfqa-") as folder:
        mark = Path(folder, "unguarded")
        with environment({MARK: str(mark)}):
            try:
                yield
            except Exception as error:
                if mark.exists():
                    raise BuildError(GUARD) from None
                if not isinstance(error, BrokenProcessPool):
                    raise
                told = "a worker was killed (out of memory?): run it again with fewer --workers"
                raise BuildError(told) from None


@contextmanager
def environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Change the environment of processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Start processes that Ctrl-C does not reach: this one hears it, and ends them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # The tracker's start would lift the mask; nor shall it speak of workers that were ended.
    with environment({"PYTHONWARNINGS": "ignore::UserWarning:multiprocessing.resource_tracker"}):
        resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
