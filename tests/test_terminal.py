"""Progress as lines and as bars, and sizes, durations and tables as text."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import sys
from types import SimpleNamespace

import pytest

from cfqa_data.console.progress import Silent
from cfqa_data.console.terminal import Lines, listener, show_progress
from cfqa_data.console.text import duration, size_text, table_text


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_lines_begin_go_on_now_and_then_and_end() -> None:
    stream, clock = io.StringIO(), Clock()
    lines = Lines(stream, every=10, clock=clock)
    lines.start("extract", 40, "images")
    for _ in range(24):
        clock.now += 1
        lines.advance()
    clock.now += 8
    lines.advance(16)
    lines.finish()
    assert stream.getvalue().splitlines() == [
        "extract: 40 images",
        "extract: 10 of 40 images, 1/s, 30 s left",
        "extract: 20 of 40 images, 1/s, 20 s left",
        "extract: 40 of 40 images, 1.25/s, 0.0 s left",
        "extract: done in 32 s",
    ]


def test_steps_of_an_earlier_run_do_not_count_towards_the_rate() -> None:
    stream, clock = io.StringIO(), Clock()
    lines = Lines(stream, every=10, clock=clock)
    lines.start("compress", 1000, "features")
    lines.advance(900)
    clock.now += 20
    lines.advance(50)  # includes the start-up time, so there is no estimate yet
    clock.now += 10
    lines.advance(25)
    assert stream.getvalue().splitlines()[1:] == [
        "compress: 950 of 1000 features",
        "compress: 975 of 1000 features, 2.5/s, 10 s left",
    ]


def test_time_left_follows_the_share_of_it_that_is_behind() -> None:
    stream, clock = io.StringIO(), Clock()
    lines = Lines(stream, every=10, clock=clock)
    lines.start("compress", 100, "features")
    for done, share in ((10, 0.4), (10, 0.8), (70, 0.9)):
        clock.now += 10
        lines.reach(share)
        lines.advance(done)
    assert stream.getvalue().splitlines()[1:] == [
        "compress: 10 of 100 features",
        "compress: 20 of 100 features, 1/s, 5.0 s left",
        "compress: 90 of 100 features, 3/s, 4.0 s left",
    ]


def test_a_notebook_has_a_bar_by_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with listener("auto") as progress:
        assert isinstance(progress, Silent)  # stderr is not a terminal
    kernel = SimpleNamespace(kernel=None, config={})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: kernel))
    with listener("auto") as progress:
        progress.start("evaluate", 40, "features")
        progress.advance(10)
        progress.finish()
    said = capsys.readouterr().err
    assert "evaluate" in said
    assert "40/40" in said


def test_without_a_terminal_there_are_lines() -> None:
    stream = io.StringIO()
    with show_progress(stream) as progress:
        assert isinstance(progress, Lines)
        progress.start("pack", 0, "files")
        progress.finish()
    assert stream.getvalue().splitlines() == ["pack: 0 files", "pack: done in 0.0 s"]


def test_on_a_terminal_there_are_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    reader, writer = pty.openpty()
    with os.fdopen(writer, "w") as stream, show_progress(stream) as progress:
        progress.start("extract", 300, "images")
        progress.advance(100)
        progress.advance(200)
        progress.finish()
        progress.start("pack", 2, "files")
        progress.advance()
        progress.finish()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", read_all(reader))
    assert re.search(r"extract .*300/300 +images", shown)
    assert re.search(r"pack .*2/2 +files", shown)


def read_all(reader: int) -> str:
    """Read a terminal whose other end is closed, which Linux reports as an error."""
    with os.fdopen(reader, "rb", buffering=0) as stream:
        chunks = []
        with contextlib.suppress(OSError):
            while chunk := stream.read(65536):
                chunks.append(chunk)
    return b"".join(chunks).decode()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (18420, "5 h 07 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (999_600, "1 MB"),
        (2_130_000, "2.13 MB"),
        (400 * 10**9, "400 GB"),
        (1500 * 10**9, "1.5 TB"),
    ],
)
def test_sizes(size: int, text: str) -> None:
    assert size_text(size) == text


def test_tables_are_aligned() -> None:
    rows = [["codec", "figure"], ["x265", "0.5"], ["a longer one", "-0.25"]]
    assert table_text(rows) == (
        "codec         figure\n------------  ------\nx265             0.5\na longer one   -0.25"
    )
