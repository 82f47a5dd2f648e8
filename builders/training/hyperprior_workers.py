"""Models trained side by side: worker processes, what they show, and how they end together.

An error in one worker, or an interrupt, stops the others after the step that they are at: no
error waits for trainings that take days.  What they saved is taken up by the next run.
"""

from __future__ import annotations

import math
import multiprocessing
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.context import SpawnContext
from typing import Any, TextIO

from cfqa_data.builders.processes.spawning import deaf_to_interrupts, spawning
from cfqa_data.builders.training.hyperprior_plan import Job, Settings
from cfqa_data.console.text import duration
from cfqa_data.errors import BuildError

__all__ = ["Board", "train", "train_all"]

EVERY = 60.0  # seconds between two lines where the output is no terminal

_board: Board | None = None  # set in each worker


class Board:
    """What workers tell the process that started them; shared memory.

    Args:
        context: of the workers.
        names: of the models.
    """

    def __init__(self, context: SpawnContext, names: Sequence[str]) -> None:
        self.stop = context.Event()
        self._places = {name: place for place, name in enumerate(names)}
        self._steps = context.Array("q", 2)  # done here, done by earlier runs
        self._losses = context.Array("d", [math.nan] * len(names))

    def count(self, steps: int, earlier: bool = False) -> None:
        """Add steps done."""
        with self._steps.get_lock():
            self._steps[int(earlier)] += steps

    def tell(self, name: str, loss: float) -> None:
        """Set a model's last loss."""
        self._losses[self._places[name]] = loss

    @property
    def steps(self) -> tuple[int, int]:
        """Steps done by these workers, and before."""
        return self._steps[0], self._steps[1]

    def loss(self, name: str) -> float:
        """Return a model's last loss; NaN while there is none."""
        return float(self._losses[self._places[name]])


def train(job: Job, settings: Settings) -> dict[str, Any]:
    """Train one model, write its file, and return its line of the report.

    A training that was interrupted goes on from the state that it saved last.

    Raises:
        BuildError: its state cannot be used, its loss is not finite, the memory does not suffice,
            or it was stopped.
    """
    import torch

    from cfqa_data.builders.training.hyperprior_train import Training

    try:
        training = Training(job, settings)
        if _board:
            _board.count(training.step, earlier=True)
        while not training.ended:
            _check_wanted(job)
            training.advance()
            if _board:
                _board.count(1)
                _board.tell(job.name, training.loss)
        return training.finish()
    except torch.OutOfMemoryError:
        told = f"{job.name}: the device has too little memory for a batch of {settings.batch}"
        raise BuildError(f"{told}; give fewer --workers or a smaller --batch") from None


def _check_wanted(job: Job) -> None:
    """Stop where nobody is left who wants the model."""
    parent = multiprocessing.parent_process()
    if _board and (_board.stop.is_set() or not (parent and parent.is_alive())):
        raise BuildError(f"{job.name}: stopped; the same command goes on")


def _start_worker(board: Board) -> None:
    global _board
    _board = board
    # The process that started it is interrupted too, and tells it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@dataclass
class _Run:
    """Trainings that wait, and those at work."""

    todo: list[Job]
    board: Board
    total: int
    running: dict[Future[dict[str, Any]], Job] = field(default_factory=dict)

    def begin(self, pool: ProcessPoolExecutor, settings: Settings, workers: int) -> None:
        """Start what has no parent to wait for, as long as there are workers."""
        blocked = {*self.todo, *self.running.values()}
        for job in [job for job in self.todo if job.parent not in blocked]:
            if len(self.running) < workers:
                self.todo.remove(job)
                self.running[pool.submit(train, job, settings)] = job

    def told(self) -> str:
        """Return the models at work, each with its last loss."""
        texts = []
        for job in self.running.values():
            loss = self.board.loss(job.name)
            tail = "" if math.isnan(loss) else f" (loss {loss:.4g})"
            texts.append(f"{job.task or 'all'} {job.lmbda:g}{tail}")
        return ", ".join(texts)


def train_all(waiting: Sequence[Job], settings: Settings, workers: int) -> None:
    """Train models, each after its parent, and show how far they are.

    Raises:
        BuildError: one of them failed; the others were stopped.
    """
    context = multiprocessing.get_context("spawn")
    board = Board(context, [job.name for job in waiting])
    run = _Run(list(waiting), board, sum(job.steps(settings) for job in waiting))
    pool = ProcessPoolExecutor(workers, context, _start_worker, (board,))
    with spawning(), pool, _shown(run, sys.stderr) as show:
        try:
            while run.todo or run.running:
                with deaf_to_interrupts():
                    run.begin(pool, settings, workers)
                done, _ = wait(run.running, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in done:
                    report, job = future.result(), run.running.pop(future)
                    run.total -= job.steps(settings) - report.get("ended", job.steps(settings))
                    print(_line(job, report), flush=True)
                show()
        except BrokenProcessPool:
            told = (
                "a worker was ended from outside, or for lack of memory: the same command goes on"
            )
            raise BuildError(f"{told}, also with fewer --workers") from None
        finally:
            board.stop.set()


def _line(job: Job, report: dict[str, Any]) -> str:
    told = "  ".join(
        f"{task} {entry['bpfp']:.3f} bpfp mse {entry['mse']:.1f}"
        for task, entry in report["held_out"].items()
    )
    return f"{job.ladder} {job.lmbda:g} ({report['seconds']:.0f} s): {told}"


@contextmanager
def _shown(run: _Run, stream: TextIO) -> Iterator[Any]:
    """Give a function that shows a run: a bar on a terminal, else a line a minute."""
    began = time.monotonic()

    def rate() -> float:
        return run.board.steps[0] / max(time.monotonic() - began, 1e-9)

    if not stream.isatty():
        said = began

        def line() -> None:
            nonlocal said
            if time.monotonic() - said >= EVERY:
                said = time.monotonic()
                steps, pace = sum(run.board.steps), rate()
                left = f", {duration((run.total - steps) / pace)} left" if pace else ""
                told = f"{steps} of {run.total} steps, {pace:.3g}/s{left}: {run.told()}"
                print(f"hyperprior: {told}", file=stream, flush=True)

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeElapsedColumn as Elapsed
    from rich.progress import TimeRemainingColumn as Remaining

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps {task.fields[rate]}"),
        Elapsed(),
        Remaining(elapsed_when_finished=True),
    )
    with Progress(*columns, console=Console(file=stream)) as bar:
        task = bar.add_task("hyperprior", total=run.total, rate="")

        def update() -> None:
            bar.update(
                task,
                completed=sum(run.board.steps),
                total=run.total,
                rate=f"{rate():.3g}/s",
                description=run.told() or "hyperprior",
            )

        yield update
