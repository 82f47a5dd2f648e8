"""Start worker processes by `spawn`, which import the main script again (see `cfqa_data.guard`)."""

from __future__ import annotations

import multiprocessing.process
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
from cfqa_data.guard import GUARD, MARK, check_guard

__all__ = ["check_start", "deaf_to_interrupts", "environment", "spawning"]


def check_start(method: str = "spawn") -> None:
    """Check that this process may start others, which can import its script.

    Args:
        method: How processes are started; by `fork` they import nothing.

    Raises:
        BuildError: It may not, or they cannot.
    """
    if multiprocessing.current_process().daemon:
        raise BuildError(
            "a daemonic process, such as a worker of multiprocessing.Pool, may not start workers: "
            "call this outside it; a build or repair also runs with workers=1"
        )
    script = _script()
    if method != "fork" and script is not None and not script.is_file():
        raise BuildError(
            f"workers import the script that starts them, and {script.name} is not a file: save "
            "the "
            "script to a file and run that; a build or repair also runs with workers=1"
        )


def _script() -> Path | None:
    """Return the path that a process which is started here would run, if it is to run one."""
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    if file is None or getattr(main, "__spec__", None) is not None:  # nothing, or a module by name
        return None
    return Path(getattr(multiprocessing.process, "ORIGINAL_DIR", None) or "", file)


@contextmanager
def spawning(method: str = "spawn") -> Iterator[Path]:
    """Start processes, and wait for what they do.

    Args:
        method: How they are started.

    Yields:
        The path of a file that there is once one of them has found no guard.

    Raises:
        BuildError: No process can be started from here, one was killed, or the script has no guard.
    """
    check_guard()
    check_start(method)
    with TemporaryDirectory(prefix="cfqa-") as folder:
        mark = Path(folder, "unguarded")
        with environment({MARK: str(mark)}):
            try:
                yield mark
            except Exception as error:
                if mark.exists():
                    raise BuildError(GUARD) from None
                if not isinstance(error, BrokenProcessPool):
                    raise
                message = "a worker was killed (out of memory?): run it again with fewer workers"
                raise BuildError(message) from None


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
    # The resource tracker's start would lift the mask. It removes the locks that libraries made in
    # workers that were ended (zarr's blosc makes one), and would warn of each.
    with environment({"PYTHONWARNINGS": "ignore::UserWarning:multiprocessing.resource_tracker"}):
        resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
