"""Run a command; convert any failure to one line on stderr and an exit status."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from typing import Annotated, Any

import typer

from cfqa_data.cli import (
    build,
    check,
    curves,
    eval,
    extend,
    fit_head,
    label,
    leaderboard,
    metrics,
    share,
    show,
)
from cfqa_data.cli.command import COMMANDS, app
from cfqa_data.cli.process import STDOUT, discard, print_error
from cfqa_data.cli.shared import interrupted
from cfqa_data.errors import CfqaError

__all__ = [
    "COMMANDS",
    "app",
    "build",
    "check",
    "curves",
    "eval",
    "extend",
    "fit_head",
    "label",
    "leaderboard",
    "metrics",
    "run",
    "share",
    "show",
]

# Base class of typer's usage errors, which typer does not export.
USAGE_ERROR: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


RENAMED = {
    ("build", "--plan"): "--dry-run",
    ("eval", "--limit"): "--max-sources",
    **{
        (command, "--accept-versions"): "--allow-version-mismatch"
        for command in ("build", "extend", "import-release", "repair")
    },
}
"""(Command, former name of an option) -> current name."""

REMOVAL = "the old name will be removed in version 0.3"


def _print_version(requested: bool) -> None:
    if requested:
        print(f"cfqa {metadata.version('cfqa-data')}")
        raise typer.Exit


VERSION = typer.Option(
    "--version", help="Print the version and exit.", is_eager=True, callback=_print_version
)


@app.callback()
def _options(version: Annotated[bool, VERSION] = False) -> None:
    pass


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit status."""
    try:
        _check(arguments)
        status = _invoke(_renamed(arguments) or ["--help"])
        sys.stdout.flush()
        return status if arguments else 2
    except USAGE_ERROR as error:
        named = [word for word in arguments[:1] if word in COMMANDS]
        help_of = " ".join(["cfqa", *named, "--help"])
        return _fail(f"{error.format_message()} (see {help_of})")
    except CfqaError as error:
        if "--debug" in arguments:
            with suppress(OSError):
                traceback.print_exception(error.__cause__ or error)
        return _fail(str(error))
    except KeyboardInterrupt as stop:
        return interrupted(stop)
    except MemoryError as error:
        return _fail(
            f"out of memory: {error or 'allocation failed'}; "
            "free memory, then run the same command again"
        )
    except (BrokenPipeError, SystemExit) as stop:
        # Rich converts a BrokenPipeError to SystemExit(1).
        if not isinstance(stop.__context__ if isinstance(stop, SystemExit) else stop, OSError):
            raise
        discard(1)  # the reader has closed the pipe, as in `cfqa info DIR | head -1`
        return 141
    except OSError as error:
        return _fail(_os_error_line(error))


def _renamed(arguments: Sequence[str]) -> list[str]:
    """Replace the former names of options, with a warning for each."""
    renamed = list(arguments)
    for index, argument in enumerate(arguments):
        old, sign, value = argument.partition("=")
        if new := RENAMED.get((arguments[0], old)):
            print_error(f"warning: {old} is now {new}; {REMOVAL}")
            renamed[index] = f"{new}{sign}{value}"
    return renamed


def _invoke(arguments: list[str]) -> int:
    """Run a command without typer's `main`, which would handle its exceptions."""
    command = typer.main.get_command(app)
    try:
        with command.make_context("cfqa", arguments) as context:
            command.invoke(context)
    except typer.Exit as done:
        return done.exit_code
    return 0


def _check(arguments: Sequence[str]) -> None:
    """Refuse empty arguments and NUL bytes.

    An empty path would mean the working directory; usually it is an unset shell variable.
    """
    for index, argument in enumerate(arguments):
        if not argument or (argument.startswith("--") and argument.endswith("=")):
            after = argument or (f"after {arguments[index - 1]}" if index else "first")
            raise CfqaError(f"an argument is empty ({after.strip()}): is a shell variable unset?")
        if "\0" in argument:
            raise CfqaError(f"{argument!r}: contains a NUL byte; remove it")


def _os_error_line(error: OSError) -> str:
    why = error.strerror or str(error)
    if error.filename == STDOUT:
        discard(1)
        return f"{STDOUT}: {why}; the answer could not be written"
    return why if error.filename is None else f"{os.fsdecode(error.filename)}: {why}"


def _fail(message: str) -> int:
    """Print an error and return its exit status."""
    print_error(message)
    return 2
