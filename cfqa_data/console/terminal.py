"""Show progress on a terminal: bars with rates and time left, or lines if output is a file."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, TextIO

from cfqa_data.console.progress import Progress, Silent
from cfqa_data.console.text import counted, duration

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

__all__ = ["Bars", "Lines", "Notebook", "listener", "show_progress"]

RESUMED_WITHIN = 0.2
"""Steps reported within this many seconds after the start of a stage were done by an earlier run.
They count as done, but not towards the rate."""


@contextmanager
def show_progress(stream: TextIO | None = None) -> Iterator[Progress]:
    """Yield a listener that shows progress on ``stream`` (stderr by default)."""
    stream = stream or sys.stderr
    if not stream.isatty():
        yield Lines(stream)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
    )

    with Progress(
        TextColumn("{task.description:<10}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[left]}"),
        console=Console(file=stream),
    ) as bar:
        yield Bars(bar)


@contextmanager
def listener(progress: Progress | Literal["auto"] | None) -> Iterator[Progress]:
    """Yield the listener that a caller passed; by default bars in a terminal or a notebook."""
    if progress is not None and progress != "auto":
        yield progress
    elif sys.stderr.isatty():
        with show_progress() as shown:
            yield shown
    else:
        yield Notebook() if _in_notebook() and find_spec("tqdm") else Silent()


def _in_notebook() -> bool:
    """Return whether the code runs in the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


class Pace:
    """Steps of a stage that are done, their rate, and the time left.

    Attributes:
        total: Number of steps.
        done: Number of steps done.
        part: Share of the next step that is done, from 0 to 1.
        share: Share of the stage's total duration that has passed, from 0 to 1, if steps take
            different times and these are known; otherwise None.
    """

    share: float | None = None
    _first: tuple[float, float] | None = None  # seconds and work at the first steps of this run

    def __init__(self, total: int, clock: Callable[[], float]) -> None:
        self.total, self.done, self.part, self._resumed = total, 0, 0.0, 0
        self._clock, self._started = clock, clock()

    def advance(self, n: int) -> None:
        """Count ``n`` more steps."""
        self.done, self.part = self.done + n, 0.0
        if self.elapsed < RESUMED_WITHIN:
            self._resumed = self.done

    def mark(self) -> None:
        """Record the first steps of this run, whose time includes the start of the workers."""
        if self._first is None and self.done + self.part > self._resumed:
            self._first = self.elapsed, self._work

    @property
    def elapsed(self) -> float:
        """Seconds since the start of the stage."""
        return self._clock() - self._started

    @property
    def rate(self) -> float:
        """Steps per second of this run; 0 at its start."""
        new = self.done + self.part - self._resumed
        return new / self.elapsed if self.elapsed > 0 else 0.0

    @property
    def left(self) -> float | None:
        """Estimated seconds left, from the rate since the first steps; None while unknown."""
        if self._first is None:
            return None
        first, before = self._first
        seconds, work = self.elapsed - first, self._work - before
        if not work > 0 or seconds < first / 2:
            return None
        return max(0.0, self.total - self._work) * seconds / work

    @property
    def _work(self) -> float:
        """Steps done; if `share` is known, that share of all steps."""
        return self.done + self.part if self.share is None else self.share * self.total


def _advance(paces: Sequence[Pace], n: int) -> None:
    """Count ``n`` more steps of the innermost stage, and the progress of those around it."""
    paces[-1].advance(n)
    for outer, inner in zip(paces[-2::-1], paces[:0:-1], strict=True):
        outer.part = min(1.0, (inner.done + inner.part) / max(1, inner.total))
    for pace in paces:
        pace.mark()


class Bars:
    """Shows one bar per stage. A finished bar stays on the screen unless it is nested."""

    def __init__(self, bar: Bar, clock: Callable[[], float] = time.monotonic) -> None:
        self._bar, self._clock = bar, clock
        self._paces: list[Pace] = []
        self._tasks: list[TaskID] = []

    def start(self, stage: str, total: int, unit: str) -> None:
        """Add a bar."""
        self._paces.append(Pace(total, self._clock))
        self._tasks.append(self._bar.add_task(stage, total=total, unit=unit, rate="", left=""))

    def reach(self, share: float) -> None:
        """See :meth:`Lines.reach`."""
        self._paces[-1].share = share

    def advance(self, n: int = 1) -> None:
        """Move the innermost bar and those around it."""
        _advance(self._paces, n)
        for task, pace in zip(self._tasks, self._paces, strict=True):
            rate = f"{pace.rate:.3g}/s" if pace.rate else ""
            left = "" if pace.left is None else f"{duration(pace.left)} left"
            self._bar.update(task, completed=pace.done + pace.part, rate=rate, left=left)

    def finish(self) -> None:
        """Fill the bar."""
        task, pace = self._tasks.pop(), self._paces.pop()
        self._bar.update(task, completed=pace.total, left=f"in {duration(pace.elapsed)}")
        self._bar.stop_task(task)
        if self._tasks:
            self._bar.remove_task(task)


class Notebook:
    """Shows one tqdm bar per stage. A finished bar stays unless it is nested."""

    def __init__(self) -> None:
        self._bars: list[Any] = []

    def start(self, stage: str, total: int, unit: str) -> None:
        """Show a bar."""
        from tqdm.auto import tqdm

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # without ipywidgets, tqdm warns and shows a text bar
            leave = not self._bars
            self._bars.append(tqdm(total=total, desc=stage, unit=f" {unit}", leave=leave))

    def advance(self, n: int = 1) -> None:
        """Move the bar."""
        self._bars[-1].update(n)

    def finish(self) -> None:
        """Fill the bar."""
        bar = self._bars.pop()
        bar.update(bar.total - bar.n)
        bar.close()


class Lines:
    """Prints a line at the start and end of a stage, and at intervals of ``every`` seconds.

    A nested stage has no lines of its own; it is shown in those of the outermost stage.
    """

    def __init__(
        self, stream: TextIO, every: float = 15.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream, self._every, self._clock = stream, every, clock
        self._paces: list[Pace] = []
        self._names: list[tuple[str, str]] = []

    def start(self, stage: str, total: int, unit: str) -> None:
        """Start a stage; print a line for the outermost one."""
        self._paces.append(Pace(total, self._clock))
        self._names.append((stage, unit))
        if len(self._paces) == 1:
            self._last = self._clock()
            self._print(counted(total, unit))

    def reach(self, share: float) -> None:
        """Set the share of the stage's duration that has passed, before the next `advance`."""
        self._paces[-1].share = share

    def advance(self, n: int = 1) -> None:
        """Count steps; print a line if the last one is older than the interval."""
        _advance(self._paces, n)
        if self._clock() - self._last < self._every:
            return
        self._last = self._clock()
        outer = self._paces[0]
        done = (
            f"{pace.done} of {pace.total} {unit}"
            for pace, (_, unit) in zip(self._paces, self._names, strict=True)
        )
        tail = "" if outer.left is None else f", {outer.rate:.3g}/s, {duration(outer.left)} left"
        self._print(f"{', '.join(done)}{tail}")

    def finish(self) -> None:
        """Finish a stage; print its duration for the outermost one."""
        pace = self._paces.pop()
        if not self._paces:
            self._print(f"done in {duration(pace.elapsed)}")
        self._names.pop()

    def _print(self, text: str) -> None:
        try:
            print(f"{self._names[0][0]}: {text}", file=self._stream, flush=True)
        except BrokenPipeError:
            raise
        except OSError:  # such as a full disk: the work itself goes on
            pass
