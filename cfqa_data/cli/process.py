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

__all__ = ["STDOUT", "drop", "leave", "own_process", "say"]

STDOUT = "stdout"
"""What an error names when the answer itself cannot be written."""

STOPPING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Signals that do what Ctrl-C does: finished work is kept, partial files are removed."""


def own_process() -> None:
    """Make this process ready to be a command's own.

    Streams that are closed (`cfqa info DIR >&-`) go nowhere, not into the next file that is opened;
    what stdout's encoding lacks is escaped; SIGTERM and SIGHUP end a command as Ctrl-C does.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free, so this one
    sys.stdin = sys.stdin or os.fdopen(0, encoding="utf-8")
    sys.stdout = _named_stdout(sys.stdout)
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace")
    for number in STOPPING:
        if signal.getsignal(number) is signal.SIG_DFL:  # `nohup` has it ignored, and stays so
            signal.signal(number, _stop)


class _Stdout(io.FileIO):
    """Stdout, of which an error says that it is of stdout."""

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


def leave() -> None:
    """Make ready for the interpreter's end: the command has printed everything.

    Further signals end the process without a word, and what stderr did not take is forgotten.
    """
    for number in (signal.SIGINT, *STOPPING):
        if signal.getsignal(number) in (signal.default_int_handler, _stop):
            signal.signal(number, signal.SIG_DFL)
    try:
        sys.stderr.flush()
    except OSError:
        drop(2)


def drop(number: int) -> None:
    """Send stdout (1) or stderr (2) nowhere, so that the interpreter's last flush cannot fail."""
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)


def say(message: str) -> None:
    """Print one line on stderr, beginning with the program's name; if it cannot be, so be it."""
    try:
        print(f"cfqa: {printable(' '.join(message.split()))}", file=sys.stderr, flush=True)
    except OSError:
        drop(2)


def _stop(number: int, _: FrameType | None) -> None:
    raise KeyboardInterrupt(number)
