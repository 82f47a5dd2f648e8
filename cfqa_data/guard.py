"""Detect scripts without a `__main__` guard, which `spawn` would start again and again.

A process that `spawn` starts imports the main script. A script without `if __name__ == "__main__":`
would start its processes again there. The child process detects this and reports it to its parent,
which raises an error; without a listening parent it is printed on stderr.
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
"""In the environment of processes: the file that one makes which finds no guard."""


def check_guard() -> None:
    """End this process if it is one that imports the script that started it.

    To be called by whatever starts processes, before it does anything.
    """
    # What multiprocessing itself looks at, when a process is started in such a one.
    if not getattr(multiprocessing.current_process(), "_inheriting", False):
        return
    if mark := os.environ.get(MARK):
        Path(mark).touch()
    else:  # processes that another library started
        print(f"cfqa: {GUARD}", file=sys.stderr, flush=True)
    with suppress(Exception):
        _read_process()
    os._exit(1)


def _read_process() -> None:
    """Read, without unpickling, what the parent still writes to this process.

    The parent holds the reading end open as well: what a pipe cannot take it would write for ever.
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
