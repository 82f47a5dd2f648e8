"""Process-level behaviour of a command: output streams, signals, and the final error line."""

from __future__ import annotations

import io
import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import Any

from cfqa_data.console.text import printable

__all__ = ["STDOUT", "clean_up", "discard", "print_error", "set_up"]

STDOUT = "stdout"
"""File name in the errors of stdout."""

STOPPING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Signals that are handled like Ctrl-C: finished work is kept, partial files are removed."""


def set_up() -> None:
    """Set up the streams and signal handlers of a command's process.

    Closed streams (`cfqa info DIR >&-`) are opened on the null device, so that no other file gets
    their descriptors. Characters that stdout cannot encode are escaped. SIGTERM and SIGHUP end the
    command as Ctrl-C does.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor, which is this one
    sys.stdin = sys.stdin or os.fdopen(0, encoding="utf-8")
    sys.stdout = _named_stdout(sys.stdout)
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace")
    for number in STOPPING:
        if signal.getsignal(number) is signal.SIG_DFL:  # not if ignored, as by `nohup`
            signal.signal(number, _stop)


class _Stdout(io.FileIO):
    """Stdout, with a file name in its errors."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            error.filename = STDOUT
            raise


def _named_stdout(before: Any) -> io.TextIOWrapper:
    stream = io.BufferedWriter(_Stdout(1, "w", closefd=False))
    return io.TextIOWrapper(
        stream,
        encoding=before.encoding if before else "utf-8",
        errors="backslashreplace",
        line_buffering=stream.isatty(),
    )


def clean_up() -> None:
    """Prepare the process for the interpreter's exit, after all output was printed.

    Further signals end the process silently, and output that stderr refuses is discarded.
    """
    for number in (signal.SIGINT, *STOPPING):
        if signal.getsignal(number) in (signal.default_int_handler, _stop):
            signal.signal(number, signal.SIG_DFL)
    try:
        sys.stderr.flush()
    except OSError:
        discard(2)


def discard(number: int) -> None:
    """Redirect stdout (1) or stderr (2) to the null device, so that the final flush succeeds."""
    with suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, number)
        os.close(null)


def print_error(message: str) -> None:
    """Print one line on stderr after the program's name; ignore an unwritable stderr."""
    try:
        print(f"cfqa: {printable(' '.join(message.split()))}", file=sys.stderr, flush=True)
    except OSError:
        discard(2)


def _stop(number: int, _: FrameType | None) -> None:
    raise KeyboardInterrupt(number)
