"""The command `cfqa`. Slow imports are made inside the commands that need them.

Exit status: 0 success; 1 `cfqa verify` found damage, or `cfqa repair` could not rebuild a file;
2 wrong usage or bad input, with one line on stderr; 130, 143, 129 ended by Ctrl-C, SIGTERM or
SIGHUP; 141 the reader of the output has closed it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

__all__ = ["app", "main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Args:
        arguments: Arguments after the program's name. If None, those of this process, whose
            streams and signal handlers are then set up too.
    """
    if arguments is not None:
        from cfqa_data.cli.commands import run

        return run(arguments)
    try:
        from cfqa_data.cli.commands import run
        from cfqa_data.cli.process import clean_up, set_up

        set_up()
        status = run(sys.argv[1:])
        clean_up()
    except KeyboardInterrupt as stop:  # during start or clean-up; `run` handles all others
        with suppress(OSError):
            print("cfqa: interrupted", file=sys.stderr, flush=True)
        status = 128 + (stop.args[0] if stop.args else 2)
    return status


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cfqa_data.cli import commands

    return commands.app
