"""Start worker processes by `spawn`, which imports the main script (see `cfqa_data.guard`)."""

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

__all__ = ["blocking_interrupts", "check_start", "environment", "spawning"]


def check_start(method: str = "spawn") -> None:
    """Check that this process may start workers, and that they can import its script.

    Args:
        method: Start method of multiprocessing; with `fork`, workers do not import the script.

    Raises:
        BuildError: If this process is daemonic, or its script is not a file.
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
            "the script to a file and run that; a build or repair also runs with workers=1"
        )


def _script() -> Path | None:
    """Return the path of the script that spawned processes import; None if they import none."""
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    if file is None or getattr(main, "__spec__", None) is not None:  # a shell, or `python -m`
        return None
    return Path(getattr(multiprocessing.process, "ORIGINAL_DIR", None) or "", file)


@contextmanager
def spawning(method: str = "spawn") -> Iterator[Path]:
    """Enclose code that starts worker processes and waits for them.

    Args:
        method: Start method of multiprocessing.

    Yields:
        The path of a file that a worker creates if the script has no `__main__` guard.

    Raises:
        BuildError: If this process may not start workers, a worker was killed, or the script has no
            guard.
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
    """Change environment variables, for processes that are started inside the block."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextmanager
def blocking_interrupts() -> Iterator[None]:
    """Block SIGINT in processes started inside the block; only this process handles Ctrl-C."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # The start of the resource tracker would unblock the signal, so it is started before. The
    # tracker removes locks that libraries such as Blosc left in killed workers, and would warn of
    # each.
    with environment({"PYTHONWARNINGS": "ignore::UserWarning:multiprocessing.resource_tracker"}):
        resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
