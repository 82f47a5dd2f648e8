"""A build on a local Dask cluster, one of whose workers is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from pipeline_toy import QPS, toy_recipe, tree, write_networks

from cfqa_data.builders.pipeline import build
from cfqa_data.console.progress import Silent
from cfqa_data.recipe.load import Recipe

PATIENCE = 60.0


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("networks")
    write_networks(folder)
    whole = toy_recipe(folder, {"x265": QPS}, sources_per_task=2, group_size=1)
    return Recipe.from_dict(whole.to_dict() | {"tasks": {"cls": whole.tasks["cls"].to_dict()}})


@contextmanager
def process(*arguments: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process of a module of Dask's, killed at the end if it still runs."""
    quiet = os.environ | {"DASK_DISTRIBUTED__LOGGING__DISTRIBUTED": "critical"}
    command = [sys.executable, "-m", *map(str, arguments)]
    with subprocess.Popen(command, env=quiet, stderr=subprocess.DEVNULL) as started:
        try:
            yield started
        finally:
            started.kill()


def wait_for(what: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


class KillOnce(Silent):
    """Kills a process when the first item of the last stage is done."""

    def __init__(self, victim: subprocess.Popen[bytes]) -> None:
        self.victim, self.stage = victim, ""

    def start(self, stage: str, total: int, unit: str) -> None:
        self.stage = stage

    def advance(self, n: int = 1) -> None:
        if self.stage == "compress" and self.victim.poll() is None:
            self.victim.send_signal(signal.SIGKILL)
            self.victim.wait()


@pytest.mark.release
def test_a_cluster_that_loses_a_worker_gives_the_bytes_of_a_local_build(
    recipe: Recipe, tmp_path: Path
) -> None:
    from distributed import Client

    file = tmp_path / "scheduler.json"
    alone = ["--scheduler-file", file, "--no-dashboard"]
    with ExitStack() as stack:
        stack.enter_context(
            process("distributed.cli.dask_scheduler", *alone, "--host", "127.0.0.1", "--port", "0")
        )
        workers = [
            stack.enter_context(
                process("distributed.cli.dask_worker", *alone, "--nthreads", "1", "--no-nanny")
            )
            for _ in range(2)
        ]
        wait_for(file.exists)
        with Client(scheduler_file=str(file), timeout=PATIENCE) as client:
            client.wait_for_workers(2, timeout=PATIENCE)
            address = client.scheduler.address
        progress = KillOnce(workers[0])
        out = build(recipe, tmp_path / "cluster", scheduler=address, progress=progress)
        assert [worker.poll() for worker in workers] == [-signal.SIGKILL, None]
    assert tree(out) == tree(build(recipe, tmp_path / "local", workers=0))
