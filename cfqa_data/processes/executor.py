"""Run work items in this process, in local worker processes, or on a Dask cluster.

All give the same results. If a worker is killed, the pool is replaced and the running items are
retried one at a time, so that an item that exhausts the memory is identified and others succeed.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import uuid
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfqa_data.errors import (
    BuildError,
    CfqaError,
    CfqaWarning,
    DiskError,
    clear_disk_errors,
    prefixed,
)
from cfqa_data.extras import extras
from cfqa_data.guard import GUARD
from cfqa_data.processes import spawning
from cfqa_data.registry import user_failure

if TYPE_CHECKING:
    from cfqa_data.processes.stage import Stage

__all__ = ["ATTEMPTS", "MOST_FAILURES", "Executor", "one_thread"]

ATTEMPTS = 3
"""Number of attempts per item; an item that raises a `CfqaError` is not retried."""

MOST_FAILURES = 10
"""Number of failed items after which no more items are started."""

CONNECT_SECONDS = 10

NOTICE_SECONDS = 5
"""Seconds without a result after which a Dask scheduler is asked whether it has workers."""

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
KEPT = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
ENVIRONMENT = {**dict.fromkeys(THREADS, "1"), **dict.fromkeys(KEPT, str(256 << 20))}
"""Environment variables of worker processes.

One thread per process: with more threads than cores, decoding with a hyperprior takes ten times as
long. Freed memory is kept, since clearing pages again for every feature takes a third of the time.
"""


class Executor(AbstractContextManager["Executor"]):
    """Runs the items of stages. Workers are started with the first item.

    Args:
        workers: Number of worker processes; 0 or 1 runs the items in this process.
        scheduler: Address of a Dask scheduler, or a Dask client, to use instead. Its workers must
            see the same files.
        gpus: GPUs in the form of CUDA_VISIBLE_DEVICES; each worker uses one of them, in turn.

    Raises:
        BuildError: If the number of workers is negative, workers and a scheduler are both given, or
            this process cannot start workers.
    """

    def __init__(
        self, workers: int = 1, scheduler: str | Any = None, gpus: Sequence[str] = ()
    ) -> None:
        if workers < 0:
            raise BuildError(f"workers must be 0 or more, got {workers}")
        if scheduler is not None and workers > 1:
            raise BuildError(
                "workers of this machine or a Dask scheduler: give one of them, not both"
            )
        self._here = scheduler is None and workers <= 1
        if scheduler is None and not self._here:
            spawning.check_start()
        self._workers, self._scheduler, self._gpus = workers, scheduler, list(gpus)
        self._stack = ExitStack()
        self._pool: Any = None
        self._mark: Path | None = None
        self._sent: dict[int, tuple[Stage, Any]] = {}

    def __exit__(self, *error: Any) -> None:
        self._pool = None
        self._sent.clear()
        self._stack.__exit__(*error)
        self._stack = ExitStack()

    def run(
        self,
        stage: Stage | Callable[[Any], Stage],
        items: Sequence[Any],
        split: Callable[[Any], Sequence[Any]] | None = None,
    ) -> Iterator[tuple[Any, Any]]:
        """Yield each item with its result as soon as it is done; items are started in order.

        Args:
            stage: Stage of the items, or a function that returns the stage of an item. Each stage
                is sent to the workers once.
            items: Items to run.
            split: Function of an item that killed every worker that tried it. It returns items
                that replace it, which are run one at a time. If one of these kills a worker too, it
                is not retried but split again. Without a function, or after `MOST_FAILURES` splits,
                such an item fails.

        Raises:
            CfqaError: If items failed. It is raised after all other items were processed, or after
                `MOST_FAILURES` failures.
        """
        stage_of = stage if callable(stage) else lambda _: stage
        waiting, alone = deque(items), deque[Any]()
        attempts: Counter[Any] = Counter()
        splits = 0
        last_errors: dict[Any, str] = {}
        failures: dict[Any, CfqaError] = {}
        running: dict[Future[Any], Any] = {}
        try:
            while waiting or alone or running:
                while (alone and not running) or (waiting and not alone and self._room(running)):
                    item = (alone or waiting).popleft()
                    position = len(items) - len(waiting)
                    running[self._submit(stage_of(item), item, position)] = item
                for future in self._completed(running):
                    item = running.pop(future)
                    if future.cancelled():
                        raise BuildError(
                            f"{item}: the Dask cluster was lost; run the same command again to "
                            "resume"
                        )
                    if (error := future.exception()) is None:
                        yield item, future.result()
                        continue
                    attempts[item] += 1
                    if broken := isinstance(error, BrokenProcessPool):
                        self._replace(error)
                    repeated = last_errors.get(item) == str(error)
                    last_errors[item] = str(error)
                    final = _final(item, error, attempts[item], repeated)
                    if final is None:
                        (alone if broken else waiting).appendleft(item)
                        continue
                    if split is not None and _killed(error) and splits < MOST_FAILURES:
                        parts, splits = split(item), splits + 1
                        attempts.update(dict.fromkeys(parts, ATTEMPTS - 1))
                        alone.extendleft(reversed(parts))
                        # On a cluster, other items are running, which might kill workers as well.
                        for other in [one for one in running if not one.done()]:
                            other.cancel()
                            waiting.appendleft(running.pop(other))
                        continue
                    failures[item] = final
                    if len(failures) >= MOST_FAILURES or isinstance(final, DiskError):
                        return _report(failures, len(items))
        finally:
            for future in running:
                future.cancel()
            self._sent.clear()
        _report(failures, len(items))

    def _completed(self, running: dict[Future[Any], Any]) -> set[Future[Any]]:
        """Wait until some items are done, and return their futures.

        If a Dask scheduler has no workers, issue a warning and keep waiting, since adaptive
        clusters and batch queues start workers later.
        """
        seconds, warned = None if self._scheduler is None else NOTICE_SECONDS, False
        while not (done := wait(running, seconds, FIRST_COMPLETED).done):
            with suppress(OSError):  # the futures of a lost scheduler are cancelled
                if not warned and not self._client.nthreads():
                    warned, address = True, self._client.scheduler.address
                    warnings.warn(
                        f"the Dask scheduler at {address} has no workers; waiting until one joins, "
                        f"such as by: dask worker {address}",
                        CfqaWarning,
                        stacklevel=2,
                    )
        return done

    def _room(self, running: dict[Future[Any], Any]) -> bool:
        if self._scheduler is not None:
            return True
        return len(running) < max(1, self._workers)

    def _submit(self, stage: Stage, item: Any, position: int) -> Future[Any]:
        future: Future[Any]
        if self._here:
            future = Future()
            try:
                future.set_result(run_item(stage, item))
            except Exception as error:
                future.set_exception(error)
            return future
        if self._pool is None:
            self._start()
        if id(stage) not in self._sent:
            self._sent[id(stage)] = stage, self._send(pickle.dumps(stage))
        _, task = self._sent[id(stage)]
        if self._scheduler is not None:
            future = self._pool.submit(_run, task, item, priority=-position)
            return future
        with spawning.environment(ENVIRONMENT), spawning.blocking_interrupts():
            try:
                future = self._pool.submit(_run, task, item)
            except (BrokenProcessPool, OSError) as error:
                # If a worker is killed while CPython 3.11 starts another one, the pipes of the pool
                # are closed, which raises an OSError without errno.
                if isinstance(error, OSError) and error.errno is not None:
                    raise
                future = Future()
                future.set_exception(BrokenProcessPool(str(error)))
        return future

    def _start(self) -> None:
        if self._scheduler is not None:
            self._client = self._stack.enter_context(_connected(self._scheduler))
            self._pool = self._client.get_executor(pure=False)
        else:
            self._mark = self._stack.enter_context(spawning.spawning())
            # The locks of the pool start the resource tracker of multiprocessing.
            with spawning.blocking_interrupts():
                self._pool = self._stack.enter_context(_pool(self._workers, self._gpus))

    def _send(self, stage: bytes) -> Any:
        """Send a pickled stage to the workers, and return a reference to it.

        For Dask it is a future, which is computed again if the worker that has it is lost.
        Otherwise it is a file.
        """
        if self._scheduler is not None:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Sending large graph", UserWarning)
                return self._client.submit(bytes, stage, pure=False)
        assert self._mark is not None
        # A unique name, since workers cache the last stage by its file name.
        file = self._mark.with_name(f"stage-{uuid.uuid4().hex}")
        file.write_bytes(stage)
        return file

    def _replace(self, error: BrokenProcessPool) -> None:
        """Shut down the pool after a worker was killed; the next item starts a new one."""
        if self._pool is None:
            return
        unguarded = self._mark is not None and self._mark.exists()
        self.__exit__(type(error), error, None)
        if unguarded:
            raise BuildError(GUARD)


@contextmanager
def _pool(workers: int, gpus: Sequence[str]) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of processes that exit at the end of the block, or when this process exits.

    The pool is not awaited after a worker was killed: CPython 3.11 does not terminate a worker that
    is started at that moment, and would wait for it forever.
    """
    context = multiprocessing.get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    arguments = reader, context.Value("i", 0), gpus
    pool = ProcessPoolExecutor(workers, context, initializer=_initialise, initargs=arguments)
    try:
        with suppress(BrokenProcessPool):
            yield pool
            pool.shutdown()
    finally:
        writer.close()  # ends workers that are still running
        pool.shutdown(cancel_futures=True)
        reader.close()


@contextmanager
def _connected(address: str | Any) -> Iterator[Any]:
    """Yield a client of a Dask scheduler; a client passed by the user is not closed.

    Raises:
        BuildError: If no scheduler responds at the address.
    """
    with extras():
        from distributed import Client
    if isinstance(address, Client):
        yield address
        return
    # Another server at the address may cause any exception.
    with prefixed(f"no Dask scheduler responds at {address!r}", BuildError, Exception):
        client = Client(address, timeout=CONNECT_SECONDS)
    with client:
        yield client


def _initialise(parent: Any, count: Any, gpus: Sequence[str]) -> None:
    """Initialise a worker: ignore Ctrl-C, exit when the parent does, and use one GPU."""
    if gpus:
        _select_gpu(count, gpus)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()


def _select_gpu(count: Any, gpus: Sequence[str]) -> None:
    """Make one GPU visible to this process; ``count`` is the shared number of workers so far."""
    with count.get_lock():
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[count.value % len(gpus)]
        count.value += 1


def _exit_with(parent: Any) -> None:
    try:
        parent.recv_bytes()
    except (EOFError, OSError):
        os._exit(1)


def _run(task: bytes | Path, item: Any) -> Any:
    return run_item(_stage(task), item)


@lru_cache(maxsize=1)
def _stage(task: bytes | Path) -> Stage:
    stage: Stage = pickle.loads(task if isinstance(task, bytes) else task.read_bytes())
    return stage


class UserCodeError(BuildError):
    """An exception of user-defined code as text with its location, which can always be pickled.

    Attributes:
        transient: Whether to retry the item up to :data:`ATTEMPTS` times even if the same error is
            raised twice.
    """

    transient = False


def run_item(stage: Stage, item: Any) -> Any:
    """Run an item, in this process or in a worker."""
    try:
        with clear_disk_errors(str(item)), extras("build"), one_thread():
            return stage.run(item)
    except CfqaError:
        raise
    except Exception as error:
        if (message := user_failure(error)) is None:
            raise
        failure = UserCodeError(message)
        failure.transient = isinstance(error, OSError)
        raise failure from error


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread, since the order of summation depends on the number of threads."""
    if "torch" not in sys.modules and all(os.environ.get(name) == "1" for name in THREADS):
        yield  # libraries that are imported later start with one thread
        return
    import torch

    if (threads := torch.get_num_threads()) == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _final(item: Any, error: BaseException, attempt: int, repeated: bool) -> CfqaError | None:
    """Return the error of a failed item, with the item's name; None if it is to be retried."""
    own = isinstance(error, UserCodeError)
    if isinstance(error, CfqaError) and not own:
        return error if str(error).startswith(f"{item}") else BuildError(f"{item}: {error}")
    if _killed(error) and (attempt >= ATTEMPTS or not isinstance(error, BrokenProcessPool)):
        return BuildError(
            f"{item}: every worker that tried it was killed (out of memory?); run the same "
            "command again with fewer workers to resume"
        )
    if isinstance(error, UserCodeError) and repeated and not error.transient:
        final = BuildError(f"{item}: {error}")
    elif attempt < ATTEMPTS:
        return None
    else:
        text = str(error) if own else f"{type(error).__name__}: {error}"
        final = BuildError(f"{item} failed {attempt} times: {text}")
    final.__cause__ = error
    return final


def _killed(error: BaseException) -> bool:
    """Return whether a local worker was killed, or several workers of a Dask cluster."""
    return isinstance(error, BrokenProcessPool) or type(error).__name__ == "KilledWorker"


def _report(failures: dict[Any, CfqaError], total: int) -> None:
    """Raise the errors of failed items, if any.

    Raises:
        CfqaError: If the error of a single failed item, or a BuildError that combines several.
    """
    if len(failures) == 1:
        raise next(iter(failures.values()))
    if failures:
        message = "; ".join(map(str, failures.values()))
        raise BuildError(f"{len(failures)} of {total} items failed, the others are kept: {message}")
