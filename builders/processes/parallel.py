"""The same function on many jobs, in this process or in several, with results as they come."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, TypeVar

from cfqa_data.builders.processes.spawning import deaf_to_interrupts, environment, spawning

__all__ = ["each"]

Job = TypeVar("Job")
Result = TypeVar("Result")

ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"
)
"""Of a process's environment. Matrix products of several processes with threads of their own wait
for each other: on a busy machine decoding by a hyperprior takes ten times as long."""

_made: Any = None


def each(
    make: Callable[..., Callable[[Job], Result]],
    arguments: tuple[Any, ...],
    jobs: Sequence[Job],
    workers: int,
) -> Iterator[Result]:
    """Yield what a function gives for each job, in any order.

    Args:
        make: called once in every process, gives the function; a module's function.
        arguments: of `make`, what it needs from here.
        jobs: what can be pickled.
        workers: processes; with 1 the work is done in this process.

    Raises:
        BuildError: a process was killed, or the script that calls this has no guard.
    """
    if workers <= 1 or len(jobs) <= 1:
        yield from map(make(*arguments), jobs)
        return
    with spawning():
        pool = ProcessPoolExecutor(
            min(workers, len(jobs)),
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=(make, arguments),
        )
        try:
            with environment(ONE_THREAD), deaf_to_interrupts():
                futures = [pool.submit(_do, job) for job in jobs]
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _begin(make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Make the function of this process, which ends with its parent and not by Ctrl-C."""
    global _made
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent,), daemon=True).start()
    _made = make(*arguments)


def _end_after(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _do(job: Any) -> Any:
    return _made(job)
