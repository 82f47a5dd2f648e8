"""Progress on a terminal: bars with rates and time left, or short lines if output is a file."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal, TextIO

from cfqa_data.console.progress import Progress, Silent
from cfqa_data.console.text import counted, duration

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

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
        TimeRemainingColumn,
    )

    with Progress(
        TextColumn("{task.description:<10}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
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
    """Steps done of a stage, and how fast."""

    def __init__(self, total: int, clock: Callable[[], float]) -> None:
        self.total, self.done, self._resumed = total, 0, 0
        self._clock, self._began = clock, clock()

    def advance(self, n: int) -> None:
        """Count ``n`` more steps."""
        self.done += n
        if self.elapsed < RESUMED_WITHIN:
            self._resumed = self.done

    @property
    def elapsed(self) -> float:
        """Seconds since the stage began."""
        return self._clock() - self._began

    @property
    def rate(self) -> float:
        """Steps per second of this run; 0 while unknown."""
        return (self.done - self._resumed) / self.elapsed if self.elapsed > 0 else 0.0

    @property
    def left(self) -> float | None:
        """Seconds left at this rate; None while unknown."""
        return max(0, self.total - self.done) / self.rate if self.rate > 0 else None


class Bars:
    """One bar per stage, kept on the screen when it is full."""

    def __init__(self, bar: Bar, clock: Callable[[], float] = time.monotonic) -> None:
        self._bar, self._clock = bar, clock

    def start(self, stage: str, total: int, unit: str) -> None:
        """Add a bar."""
        self._pace = Pace(total, self._clock)
        self._task = self._bar.add_task(stage, total=total, unit=unit, rate="")

    def advance(self, n: int = 1) -> None:
        """Move the bar."""
        self._pace.advance(n)
        rate = f"{self._pace.rate:.3g}/s" if self._pace.rate else ""
        self._bar.update(self._task, advance=n, rate=rate)

    def finish(self) -> None:
        """Fill the bar."""
        self._bar.update(self._task, completed=self._pace.total)
        self._bar.stop_task(self._task)


class Notebook:
    """A bar of tqdm per stage."""

    def start(self, stage: str, total: int, unit: str) -> None:
        """Show a bar."""
        from tqdm.auto import tqdm

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # without ipywidgets it is a bar of text
            self._bar = tqdm(total=total, desc=stage, unit=f" {unit}")

    def advance(self, n: int = 1) -> None:
        """Move the bar."""
        self._bar.update(n)

    def finish(self) -> None:
        """Fill the bar."""
        self._bar.update(self._bar.total - self._bar.n)
        self._bar.close()


class Lines:
    """A line when a stage begins, one now and then, and one when it ends."""

    def __init__(
        self, stream: TextIO, every: float = 15.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream, self._every, self._clock = stream, every, clock

    def start(self, stage: str, total: int, unit: str) -> None:
        """Say what begins."""
        self._stage, self._unit = stage, unit
        self._pace = Pace(total, self._clock)
        self._said = self._clock()
        self._say(counted(total, unit))

    def advance(self, n: int = 1) -> None:
        """Say how far it is, if that was not said lately."""
        self._pace.advance(n)
        if self._clock() - self._said < self._every:
            return
        self._said = self._clock()
        left = self._pace.left
        tail = f", {self._pace.rate:.3g}/s, {duration(left)} left" if left is not None else ""
        self._say(f"{self._pace.done} of {self._pace.total} {self._unit}{tail}")

    def finish(self) -> None:
        """Say how long it took."""
        self._say(f"done in {duration(self._pace.elapsed)}")

    def _say(self, text: str) -> None:
        try:
            print(f"{self._stage}: {text}", file=self._stream, flush=True)
        except BrokenPipeError:
            raise
        except OSError:  # such as a full disk under a log: no reason to end the work itself
            pass
