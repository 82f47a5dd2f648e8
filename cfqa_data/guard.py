"""Detect scripts without a `__main__` guard, which would start worker processes recursively.

A process started by `spawn` imports the main script. Without `if __name__ == "__main__":` the
script would start its workers again there. The child process detects this and reports it to its
parent, which raises an error; if the parent is not this package, the child prints it on stderr.
"""

from __future__ import annotations

import multiprocessing
import os
import pickletools
import sys
from collections import deque
from contextlib import suppress
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

__all__ = ["GUARD", "MARK", "check_guard"]

GUARD = (
    "each worker imports the script that starts it, which would start workers again: put the "
    'script\'s code under `if __name__ == "__main__":`, or use one worker'
)

MARK = "CFQA_UNGUARDED"
"""Environment variable with the path of the file that a child creates if it finds no guard."""


def check_guard() -> None:
    """Exit if this process is a child that is still importing the main script.

    Functions that start processes call this first.
    """
    # multiprocessing checks the same attribute before it starts a process.
    if not getattr(multiprocessing.current_process(), "_inheriting", False):
        return
    if mark := os.environ.get(MARK):
        Path(mark).touch()
    else:  # another library started this process
        print(f"cfqa: {GUARD}", file=sys.stderr, flush=True)
    with suppress(Exception):
        _drain_pipe()
    os._exit(1)


def _drain_pipe() -> None:
    """Read, without unpickling, the data that the parent is still writing to this process.

    The parent keeps the reading end of the pipe open too, so its write would block forever.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "multiprocessing.spawn":
            pipe = frame.f_locals.get("from_parent")
            if pipe is not None:
                stream: Any = SimpleNamespace(read=pipe.read, readline=pipe.readline)  # no tell()
                deque(pickletools.genops(stream), maxlen=0)
                return
        frame = frame.f_back
