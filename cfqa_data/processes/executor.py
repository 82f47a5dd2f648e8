"""Run work items in this process, in local worker processes, or on a Dask cluster.

All give the same results. A worker that is killed is replaced, and what it was at is tried again by
itself, so that an item which takes all memory is found and takes no other down with it.
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
"""How often an item is tried before it counts as failed; a clear refusal is not tried again."""

MOST_FAILURES = 10
"""Failed items after which nothing more is begun: then it is not the items."""

CONNECT_SECONDS = 10

NOTICE_SECONDS = 5
"""After so many seconds without a result, a Dask scheduler is asked whether it has workers."""

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
KEPT = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
ENVIRONMENT = {**dict.fromkeys(THREADS, "1"), **dict.fromkeys(KEPT, str(256 << 20))}
"""Of a process.

Matrix products of several processes with threads of their own wait for each other: on a busy
machine decoding by a hyperprior takes ten times as long. Memory that is given back at once is
cleared again for every feature, which takes a third of the time.
"""


class Executor(AbstractContextManager["Executor"]):
    """Runs items of stages; what it needs for that is started at the first of them.

    Args:
        workers: Processes to start; with 0 or 1 the work is done in this process.
        scheduler: Address of a Dask scheduler to use instead, whose workers see the same files, or
            a client of Dask's.
        gpus: As CUDA_VISIBLE_DEVICES names them: the processes take one each, in turn.

    Raises:
        BuildError: There cannot be so many workers, both workers and a scheduler are given, or no
            process can be started from here.
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
        """Yield each item once it is done, with its result; what comes first is begun first.

        Args:
            stage: Whose items they are, or what returns the stage of an item. A worker is sent a
                stage once.
            items: The items.
            split: Called with an item that killed every worker that tried it. It returns the items
                that replace it, which are run one at a time and not retried if they kill a worker
                too; `split` is then called with those. Without it, such an item fails.

        Raises:
            CfqaError: At the end, if items failed; all others were done before.
        """
        stage_of = stage if callable(stage) else lambda _: stage
        waiting, alone = deque(items), deque[Any]()
        attempts: Counter[Any] = Counter()
        seen: dict[Any, str] = {}
        failures: dict[Any, CfqaError] = {}
        running: dict[Future[Any], Any] = {}
        try:
            while waiting or alone or running:
                while (alone and not running) or (waiting and not alone and self._room(running)):
                    item = (alone or waiting).popleft()
                    place = len(items) - len(waiting)
                    running[self._submit(stage_of(item), item, place)] = item
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
                    repeated = seen.get(item) == str(error)
                    seen[item] = str(error)
                    final = _final(item, error, attempts[item], repeated)
                    if final is None:
                        (alone if broken else waiting).appendleft(item)
                        continue
                    if split is not None and _killed(error):
                        parts = split(item)
                        attempts.update(dict.fromkeys(parts, ATTEMPTS - 1))
                        alone.extendleft(reversed(parts))
                        # On a cluster others run meanwhile, which might kill its workers likewise.
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

        A warning is issued when a Dask scheduler has no workers. Waiting goes on: clusters that
        adapt to the load, and those in a batch queue, start workers later.
        """
        seconds, warned = None if self._scheduler is None else NOTICE_SECONDS, False
        while not (done := wait(running, seconds, FIRST_COMPLETED).done):
            with suppress(OSError):  # of a scheduler that is lost, all futures are cancelled
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

    def _submit(self, stage: Stage, item: Any, place: int) -> Future[Any]:
        if self._here:
            future: Future[Any] = Future()
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
            submitted: Future[Any] = self._pool.submit(_run, task, item, priority=-place)
            return submitted
        with spawning.environment(ENVIRONMENT), spawning.blocking_interrupts():
            try:
                begun: Future[Any] = self._pool.submit(_run, task, item)
                return begun
            except (BrokenProcessPool, OSError) as error:
                # Where a worker is killed while CPython 3.11 starts another, this finds the pool's
                # pipes closed, which has no errno.
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
            # The pool's locks start multiprocessing's resource tracker.
            with spawning.blocking_interrupts():
                self._pool = self._stack.enter_context(_pool(self._workers, self._gpus))

    def _send(self, stage: bytes) -> Any:
        """Return what stands for a pickled stage in the work that is submitted.

        To Dask it is a task: of a worker that is lost with its data it is asked again.
        """
        if self._scheduler is not None:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Sending large graph", UserWarning)
                return self._client.submit(bytes, stage, pure=False)
        assert self._mark is not None
        # A name of its own: workers keep the last stage they read by its file.
        file = self._mark.with_name(f"stage-{uuid.uuid4().hex}")
        file.write_bytes(stage)
        return file

    def _replace(self, error: BrokenProcessPool) -> None:
        """End a pool of which a worker was killed; the next item starts another."""
        if self._pool is None:
            return
        unguarded = self._mark is not None and self._mark.exists()
        self.__exit__(type(error), error, None)
        if unguarded:
            raise BuildError(GUARD)


@contextmanager
def _pool(workers: int, gpus: Sequence[str]) -> Iterator[ProcessPoolExecutor]:
    """Start processes that end when they are not wanted any more, and with this one.

    A pool is not waited for after a worker was killed: in CPython 3.11, a worker that starts at
    that moment is not ended by the pool, which then waits for it forever.
    """
    context = multiprocessing.get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    begun = reader, context.Value("i", 0), gpus
    pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=begun)
    try:
        with suppress(BrokenProcessPool):
            yield pool
            pool.shutdown()
    finally:
        writer.close()  # ends those that are still at work
        pool.shutdown(cancel_futures=True)
        reader.close()


@contextmanager
def _connected(address: str | Any) -> Iterator[Any]:
    """Use the workers of a Dask scheduler; a client that is given stays open.

    Raises:
        BuildError: There is none at that address.
    """
    with extras():
        from distributed import Client
    if isinstance(address, Client):
        yield address
        return
    # Whatever else listens there can answer anything.
    with prefixed(f"no Dask scheduler responds at {address!r}", BuildError, Exception):
        client = Client(address, timeout=CONNECT_SECONDS)
    with client:
        yield client


def _begin(parent: Any, others: Any, gpus: Sequence[str]) -> None:
    """Let a worker end by its parent and not by Ctrl-C, and see one GPU."""
    if gpus:
        _take_gpu(others, gpus)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _take_gpu(others: Any, gpus: Sequence[str]) -> None:
    """Let this process see one GPU: the next one after that of the process begun before it."""
    with others.get_lock():
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[others.value % len(gpus)]
        others.value += 1


def _end_after(parent: Any) -> None:
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
    """What a user's class raised, with the place; it can be pickled, whatever that was.

    Attributes:
        passing: Whether it is tried :data:`ATTEMPTS` times even if it comes twice alike.
    """

    passing = False


def run_item(stage: Stage, item: Any) -> Any:
    """Do one item: the single entry that this process and every worker call."""
    try:
        with clear_disk_errors(str(item)), extras("build"), one_thread():
            return stage.run(item)
    except CfqaError:
        raise
    except Exception as error:
        if (message := user_failure(error)) is None:
            raise
        failure = UserCodeError(message)
        failure.passing = isinstance(error, OSError)
        raise failure from error


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums are taken in an order that depends on the number of threads: so it is always one."""
    if "torch" not in sys.modules and all(os.environ.get(name) == "1" for name in THREADS):
        yield  # what a worker imports later starts with one
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
    """Return why an item cannot be done, with its name, or None where it may be tried again."""
    own = isinstance(error, UserCodeError)
    if isinstance(error, CfqaError) and not own:
        return error if str(error).startswith(f"{item}") else BuildError(f"{item}: {error}")
    if _killed(error) and (attempt >= ATTEMPTS or not isinstance(error, BrokenProcessPool)):
        return BuildError(
            f"{item}: every worker that tried it was killed (out of memory?); run the same "
            "command again with fewer workers to resume"
        )
    if isinstance(error, UserCodeError) and repeated and not error.passing:
        final = BuildError(f"{item}: {error}")
    elif attempt < ATTEMPTS:
        return None
    else:
        text = str(error) if own else f"{type(error).__name__}: {error}"
        final = BuildError(f"{item} failed {attempt} times: {text}")
    final.__cause__ = error
    return final


def _killed(error: BaseException) -> bool:
    """Whether a worker of this machine was killed, or several of a Dask cluster."""
    return isinstance(error, BrokenProcessPool) or type(error).__name__ == "KilledWorker"


def _report(failures: dict[Any, CfqaError], total: int) -> None:
    """Raise one error for all items that failed.

    Raises:
        CfqaError: The only one itself, or a BuildError with all of them.
    """
    if len(failures) == 1:
        raise next(iter(failures.values()))
    if failures:
        message = "; ".join(map(str, failures.values()))
        raise BuildError(f"{len(failures)} of {total} items failed, the others are kept: {message}")
