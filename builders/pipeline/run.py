"""Running work items: in this process, or on Dask, with the same results."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from cfqa_data.builders.pipeline.plan import Item
from cfqa_data.builders.pipeline.work import run_item
from cfqa_data.builders.processes.spawning import check_start, deaf_to_interrupts, spawning
from cfqa_data.errors import BuildError, CfqaError, DiskError
from cfqa_data.extras import extras

__all__ = [
    "ATTEMPTS",
    "MOST_FAILURES",
    "ClusterRunner",
    "LocalRunner",
    "Runner",
    "make_runner",
]

ATTEMPTS = 3
"""How often an item is tried before it counts as failed; a clear refusal is not tried again."""

MOST_FAILURES = 10
"""Failed items after which nothing more is begun: then it is not the items."""

_CONNECT_SECONDS = 10

# Dask has workers give freed memory back at once; for arrays of this size, made anew for every
# feature, the kernel then spends a third of the time clearing pages.
_KEPT_BYTES = str(256 * 2**20)
_DASK = {
    "distributed.scheduler.allowed-failures": ATTEMPTS - 1,
    "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": _KEPT_BYTES,
    "distributed.nanny.pre-spawn-environ.MALLOC_MMAP_THRESHOLD_": _KEPT_BYTES,
    # `silence_logs` reaches a worker only after its start, too late for one that is ended there.
    "distributed.nanny.pre-spawn-environ.DASK_DISTRIBUTED__LOGGING__DISTRIBUTED": "critical",
}


class Runner(AbstractContextManager["Runner"], Protocol):
    """Does items in any order."""

    def run(self, root: Path, digest: str, items: Sequence[Item]) -> Iterator[Item]:
        """Yield each item once it is done.

        Raises:
            CfqaError: at the end, if items failed; all others were done before.
        """
        ...


def make_runner(workers: int, scheduler: str | None) -> Runner:
    """Return the runner for a number of workers, or for a Dask scheduler's address."""
    if workers < 0:
        raise BuildError(f"workers must be 0 or more, got {workers}")
    if scheduler is None and workers <= 1:
        return LocalRunner()
    return ClusterRunner(workers, scheduler)


class LocalRunner(AbstractContextManager["LocalRunner"]):
    """Does items one after the other in this process."""

    def __exit__(self, *_: object) -> None:
        return None

    def run(self, root: Path, digest: str, items: Sequence[Item]) -> Iterator[Item]:
        """See :meth:`Runner.run`."""
        failures: dict[Item, CfqaError] = {}
        for item in items:
            error = _tried(root, digest, item)
            if error is None:
                yield item
                continue
            failures[item] = error
            if _hopeless(failures):
                break
        _report(failures, len(items))


def _tried(root: Path, digest: str, item: Item) -> CfqaError | None:
    """Do an item, more than once if need be; return why it cannot be done."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            run_item(str(root), digest, item)
            return None
        except Exception as error:
            if final := _final(item, error, attempt):
                return final
    raise AssertionError("the last attempt is final")


class ClusterRunner(AbstractContextManager["ClusterRunner"]):
    """Does items on Dask: on processes of this machine, or on a cluster that is there already.

    Args:
        workers: processes to start, one thread each; ignored with a scheduler.
        scheduler: address of an existing scheduler, whose workers see the folder at the same path.

    Raises:
        BuildError: no process can be started from here.
    """

    def __init__(self, workers: int, scheduler: str | None = None) -> None:
        if scheduler is None:
            check_start()
        self._workers, self._scheduler = workers, scheduler
        self._stack = ExitStack()
        self._client: Any = None

    def __enter__(self) -> ClusterRunner:
        with extras():
            import dask
            from distributed import Client, LocalCluster
        try:
            address: Any = self._scheduler
            if address is None:
                with dask.config.set(_DASK), spawning(), deaf_to_interrupts():
                    cluster = LocalCluster(
                        n_workers=self._workers,
                        threads_per_worker=1,
                        processes=True,
                        memory_limit=0,
                        dashboard_address="127.0.0.1:0",
                        silence_logs=logging.CRITICAL,
                    )
                address = self._stack.enter_context(cluster)
            self._client = self._stack.enter_context(Client(address, timeout=_CONNECT_SECONDS))
        except Exception as error:
            self._stack.close()
            if self._scheduler is not None:  # whatever else listens there can answer anything
                raise BuildError(
                    f"no Dask scheduler answers at {self._scheduler!r}: {error}"
                ) from None
            if not isinstance(error, OSError | RuntimeError | ValueError):
                raise
            raise BuildError(
                f"the workers do not start: {error}; with --workers 1, or workers=1, there are none"
            ) from None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A worker that is just being restarted cannot be closed cleanly, so it may first come up.
        # Whatever goes wrong here must neither hide what happened before nor keep the rest from
        # closing; workers end with us anyway.
        with suppress(Exception):
            if kind is not None and self._scheduler is None:
                with suppress(Exception):
                    self._client.wait_for_workers(self._workers, timeout=_CONNECT_SECONDS)
            self._stack.__exit__(kind, error, trace)

    def run(self, root: Path, digest: str, items: Sequence[Item]) -> Iterator[Item]:
        """See :meth:`Runner.run`; what was submitted first is begun first."""
        from distributed import as_completed

        def submit(item: Item) -> Any:
            future = self._client.submit(
                run_item, str(root), digest, item, pure=False, priority=-place[item]
            )
            pending[future] = item
            return future

        place = {item: number for number, item in enumerate(items)}
        pending: dict[Any, Item] = {}
        attempts: Counter[Item] = Counter()
        failures: dict[Item, CfqaError] = {}
        completed = as_completed([submit(item) for item in items])
        try:
            for future in completed:
                item = pending.pop(future)
                if future.status == "finished":
                    yield item
                    continue
                if future.status != "error":
                    raise BuildError(
                        f"{item}: the Dask cluster was lost; run the same command again to go on"
                    )
                attempts[item] += 1
                if final := _final(item, future.exception(), attempts[item]):
                    failures[item] = final
                    if _hopeless(failures):
                        break
                else:
                    completed.add(submit(item))
        finally:
            if pending:
                self._client.cancel(list(pending))
        _report(failures, len(items))


def _final(item: Item, error: Exception, attempt: int) -> CfqaError | None:
    """Return why an item cannot be done, with its name, or None where it may be tried again."""
    if isinstance(error, CfqaError):
        return error if str(error).startswith(f"{item}") else BuildError(f"{item}: {error}")
    if type(error).__name__ == "KilledWorker":
        return BuildError(
            f"{item}: every worker that tried it was killed (out of memory?); run the same command "
            "again to go on, with fewer workers"
        )
    if attempt < ATTEMPTS:
        return None
    final = BuildError(f"{item} failed {attempt} times: {type(error).__name__}: {error}")
    final.__cause__ = error
    return final


def _hopeless(failures: Mapping[Item, CfqaError]) -> bool:
    """Whether nothing more is to be begun: it is the disk, or too many have failed."""
    return len(failures) >= MOST_FAILURES or isinstance([*failures.values()][-1], DiskError)


def _report(failures: Mapping[Item, CfqaError], total: int) -> None:
    """Raise one error for all items that failed.

    Raises:
        CfqaError: the only one itself, or a BuildError with all of them.
    """
    if len(failures) == 1:
        raise next(iter(failures.values()))
    if failures:
        told = "; ".join(map(str, failures.values()))
        raise BuildError(f"{len(failures)} of {total} items failed, the rest is kept: {told}")
