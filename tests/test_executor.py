"""Items run in this process and in workers: their results, and their errors."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, process
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from pickling_pool import Killed, replace_workers
from pipeline_dies import Doubling

from cfqa_data.console.progress import Silent
from cfqa_data.errors import BuildError, CfqaWarning
from cfqa_data.processes import executor, spawning
from cfqa_data.processes.executor import ATTEMPTS, MOST_FAILURES, Executor
from cfqa_data.processes.stage import Stage, drive


@pytest.mark.parametrize("workers", [0, 2])
def test_failed_items_are_told_together_and_the_rest_is_done(workers: int) -> None:
    done = {}

    def do() -> None:
        with Executor(workers) as here:
            assert list(here.run(Doubling(1), [7])) == [(7, 14)]  # another stage was run before
            for item, result in drive(Doubling(6, refused=(1, 3)), here, Silent()):
                done[item] = result

    with pytest.raises(BuildError, match=r"^2 of 6 items failed, the others are kept: ") as told:
        do()
    assert set(str(told.value).partition(": ")[2].split("; ")) == {"1: it is odd", "3: it is odd"}
    assert done == {0: 0, 2: 4, 4: 8, 5: 10}
    assert spawning.MARK not in os.environ


@dataclass(frozen=True)
class Killing(Stage):
    """Every item kills its worker."""

    name: ClassVar[str] = "kill"

    def items(self) -> Sequence[int]:
        return range(4 * MOST_FAILURES)

    def run(self, item: int) -> int:
        raise Killed


def test_items_that_all_kill_their_workers_are_given_up_after_some(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool, split = replace_workers(monkeypatch), []

    def without_parts(item: int) -> list[int]:
        split.append(item)
        return []

    with pytest.raises(BuildError), Executor(2) as two:
        list(two.run(Killing(), Killing().items(), without_parts))
    assert len(split) == len(set(split)) == MOST_FAILURES
    assert pool.calls <= 2 * MOST_FAILURES * (ATTEMPTS + 1)


@pytest.mark.parametrize("meanwhile", [False, pytest.param(True, marks=pytest.mark.release)])
def test_an_item_that_kills_every_worker_is_found_and_takes_no_other_down(
    meanwhile: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = ProcessPoolExecutor._spawn_process

    def start_meanwhile(pool: ProcessPoolExecutor) -> None:
        """Start a worker; the pool learns of the second only after it ended those it knew."""
        known, pool._processes = pool._processes, {}
        try:
            start(pool)
            if known:
                (second,) = pool._processes
                os.kill(second, signal.SIGSTOP)  # the first takes the item
                end = time.monotonic() + 5  # later versions of Python wait for this to return
                while not pool._call_queue._closed and time.monotonic() < end:
                    time.sleep(0.01)
                os.kill(second, signal.SIGCONT)
        finally:
            if known:
                monkeypatch.undo()
            known.update(pool._processes)
            pool._processes = known

    if meanwhile:
        monkeypatch.setattr(ProcessPoolExecutor, "_spawn_process", start_meanwhile)
        monkeypatch.setattr(process._ExecutorManagerThread, "shutdown_workers", lambda _: None)
    done = []

    def do() -> None:
        with Executor(2) as two:
            for item, _ in two.run(Doubling(4, deadly=(1,)), range(4)):
                done.append(item)

    with pytest.raises(BuildError, match=r"^1: every worker that tried it was killed \(out of mem"):
        do()
    assert sorted(done) == [0, 2, 3]


def test_a_scheduler_without_workers_is_waited_for_and_that_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from distributed import LocalCluster

    monkeypatch.setattr(executor, "NOTICE_SECONDS", 0.05)
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address=None) as cluster,
        Executor(1, cluster.scheduler_address) as remote,
    ):
        address = re.escape(cluster.scheduler_address)
        thread = threading.Timer(0.4, cluster.scale, [1])
        thread.start()
        with pytest.warns(CfqaWarning, match=f"^the Dask scheduler at {address} has no workers; w"):
            assert list(remote.run(Doubling(1), [3])) == [(3, 6)]
        thread.join()


def test_workers_have_one_thread_and_this_process_what_it_had(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    with Executor(2) as two:
        told = dict(two.run(Doubling(2, variable="OMP_NUM_THREADS"), [0, 1]))
    assert told == {0: "1", 1: "1"}
    assert os.environ["OMP_NUM_THREADS"] == "5"


def test_many_failures_end_a_stage_early() -> None:
    stage = Doubling(2 * MOST_FAILURES, refused=tuple(range(2 * MOST_FAILURES)))
    with Executor() as here, pytest.raises(BuildError, match=r"^10 of 20 items failed"):
        list(here.run(stage, stage.items()))


def test_a_passing_failure_is_tried_again_and_what_a_build_leaves_is_not_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failures, seen = [OSError("once"), OSError("twice")], []

    def flaky(_: Any, item: int) -> int:
        seen.append(item)
        if failures:
            raise failures.pop()
        return item

    monkeypatch.setattr(executor, "run_item", flaky)
    with Executor() as here:
        done = here.run(Doubling(3), [0, 1, 2])
        assert next(done) == (0, 0)
        done.close()
        assert seen == [0] * ATTEMPTS


LEAKING = """
from multiprocessing import resource_tracker
from cfqa_data.processes.executor import Executor
with Executor(2) as two:
    two._start()
    resource_tracker.register("/cfqa-of-a-worker", "semaphore")
"""


def test_nothing_is_said_of_the_locks_of_workers_that_were_ended() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LEAKING], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_pool_that_closes_while_it_starts_a_worker_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    submit, closed = ProcessPoolExecutor.submit, []

    def closing(pool: ProcessPoolExecutor, *arguments: Any) -> Any:
        if not closed:
            closed.append(pool)
            raise OSError("handle is closed")
        if pool is closed[0]:
            raise process.BrokenProcessPool("a worker was killed")
        return submit(pool, *arguments)

    monkeypatch.setattr(ProcessPoolExecutor, "submit", closing)
    with Executor(2) as two:
        assert sorted(item for item, _ in two.run(Doubling(2), range(2))) == [0, 1]
