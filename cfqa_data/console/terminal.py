"""Progress on a terminal: bars with rates and time left, or short lines if output is a file."""

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

# Steps that arrive this soon after a stage began were done by an earlier run: they count as
# done, but not towards the rate.
RESUMED_WITHIN = 0.2


@contextmanager
def show_progress(stream: TextIO | None = None) -> Iterator[Progress]:
    """Give a listener that shows progress on ``stream`` (stderr) until the block ends."""
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
    """Give the listener that a caller passed; without one, bars in a terminal or a notebook."""
    if progress is not None and progress != "auto":
        yield progress
    elif sys.stderr.isatty():
        with show_progress() as shown:
            yield shown
    else:
        yield Notebook() if _in_notebook() and find_spec("tqdm") else Silent()


def _in_notebook() -> bool:
    """Whether the code runs in a notebook's kernel."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


class Pace:
    """Steps done of a stage, and how fast.

    Attributes:
        part: How much of the next step is done, from 0 to 1.
        share: How much of the whole stage's time is behind, from 0 to 1, where steps take unequal
            times and somebody knows; None where not.
    """

    share: float | None = None
    _first: tuple[float, float] | None = None  # seconds and work at the first steps of this run

    def __init__(self, total: int, clock: Callable[[], float]) -> None:
        self.total, self.done, self.part, self._resumed = total, 0, 0.0, 0
        self._clock, self._began = clock, clock()

    def advance(self, n: int) -> None:
        """Count ``n`` more steps."""
        self.done, self.part = self.done + n, 0.0
        if self.elapsed < RESUMED_WITHIN:
            self._resumed = self.done

    def mark(self) -> None:
        """Note when the first steps of this run were done: what it took to begin is in them."""
        if self._first is None and self.done + self.part > self._resumed:
            self._first = self.elapsed, self._work

    @property
    def elapsed(self) -> float:
        """Seconds since the stage began."""
        return self._clock() - self._began

    @property
    def rate(self) -> float:
        """Steps per second of this run; 0 while unknown."""
        new = self.done + self.part - self._resumed
        return new / self.elapsed if self.elapsed > 0 else 0.0

    @property
    def left(self) -> float | None:
        """Seconds left, by what was done since the first steps; None until that tells something."""
        if self._first is None:
            return None
        began, before = self._first
        seconds, work = self.elapsed - began, self._work - before
        if not work > 0 or seconds < began / 2:
            return None
        return max(0.0, self.total - self._work) * seconds / work

    @property
    def _work(self) -> float:
        """Steps that are done, or as many as would take the time that is behind."""
        return self.done + self.part if self.share is None else self.share * self.total


def _advance(paces: Sequence[Pace], n: int) -> None:
    """Count ``n`` more steps of the last of some stages, each within a step of the one before."""
    paces[-1].advance(n)
    for outer, inner in zip(paces[-2::-1], paces[:0:-1], strict=True):
        outer.part = min(1.0, (inner.done + inner.part) / max(1, inner.total))
    for pace in paces:
        pace.mark()


class Bars:
    """One bar per stage; it is kept on the screen when it is full, unless it is within another."""

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
        """Move the bar, and those that it is within."""
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
    """A bar of tqdm per stage; one within another goes when it is full."""

    def __init__(self) -> None:
        self._bars: list[Any] = []

    def start(self, stage: str, total: int, unit: str) -> None:
        """Show a bar."""
        from tqdm.auto import tqdm

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # without ipywidgets it is a bar of text
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
    """A line when a stage begins, one now and then, and one when it ends.

    A stage within another is told in the lines of that one.
    """

    def __init__(
        self, stream: TextIO, every: float = 15.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream, self._every, self._clock = stream, every, clock
        self._paces: list[Pace] = []
        self._names: list[tuple[str, str]] = []

    def start(self, stage: str, total: int, unit: str) -> None:
        """Say what begins."""
        self._paces.append(Pace(total, self._clock))
        self._names.append((stage, unit))
        if len(self._paces) == 1:
            self._said = self._clock()
            self._say(counted(total, unit))

    def reach(self, share: float) -> None:
        """Take notice of how much of the time is behind, with the steps that are told next."""
        self._paces[-1].share = share

    def advance(self, n: int = 1) -> None:
        """Say how far it is, if that was not said lately."""
        _advance(self._paces, n)
        if self._clock() - self._said < self._every:
            return
        self._said = self._clock()
        outer = self._paces[0]
        done = (
            f"{pace.done} of {pace.total} {unit}"
            for pace, (_, unit) in zip(self._paces, self._names, strict=True)
        )
        tail = "" if outer.left is None else f", {outer.rate:.3g}/s, {duration(outer.left)} left"
        self._say(f"{', '.join(done)}{tail}")

    def finish(self) -> None:
        """Say how long it took."""
        pace = self._paces.pop()
        if not self._paces:
            self._say(f"done in {duration(pace.elapsed)}")
        self._names.pop()

    def _say(self, text: str) -> None:
        try:
            print(f"{self._names[0][0]}: {text}", file=self._stream, flush=True)
        except BrokenPipeError:
            raise
        except OSError:  # such as a full disk under a log: no reason to end the work itself
            pass
