"""The command `cfqa`. Whatever is heavy is imported inside the command that needs it.

Exit status: 0 done; 1 `cfqa verify` found damage, or `cfqa repair` left some; 2 bad use or bad
input, with one line on stderr; 130, 143, 129 ended by Ctrl-C, SIGTERM, SIGHUP; 141 whoever read
the output has gone.
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
        arguments: What follows the program's name. If None, those of this process, which is then
            the command's own: its streams and signals are set up too.
    """
    if arguments is not None:
        from cfqa_data.cli.commands import run

        return run(arguments)
    try:
        from cfqa_data.cli.commands import run
        from cfqa_data.cli.process import leave, own_process

        own_process()
        status = run(sys.argv[1:])
        leave()
    except KeyboardInterrupt as stop:  # while starting, or once more while ending
        with suppress(OSError):
            print("cfqa: interrupted", file=sys.stderr, flush=True)
        status = 128 + (stop.args[0] if stop.args else 2)
    return status


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cfqa_data.cli import commands

    return commands.app
