"""Table of the commands, and running one: any failure becomes one line and an exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import typer

from cfqa_data.cli import shared
from cfqa_data.cli.build import build
from cfqa_data.cli.curves import curves
from cfqa_data.cli.eval import evaluate
from cfqa_data.cli.export import export
from cfqa_data.cli.import_release import import_release
from cfqa_data.cli.info import info
from cfqa_data.cli.process import STDOUT, drop, say
from cfqa_data.cli.publish import publish
from cfqa_data.cli.repair import repair
from cfqa_data.cli.report import report
from cfqa_data.cli.verify import verify
from cfqa_data.errors import CfqaError
from cfqa_data.extras import extras

__all__ = ["COMMANDS", "run"]

# Base of all of typer's usage errors; typer itself does not export it.
USAGE_ERROR: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

# Commands that need what the extra `build` brings, whatever else brings it too.
BUILDING = ("build", "import-release", "repair")

# In the order in which the help shows them.
COMMANDS: dict[str, Callable[..., None]] = {
    "build": build,
    "import-release": import_release,
    "info": info,
    "verify": verify,
    "repair": repair,
    "eval": evaluate,
    "report": report,
    "curves": curves,
    "export": export,
    "publish": publish,
}
for _name, _command in COMMANDS.items():
    shared.command(_name, _command)


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit status."""
    try:
        _check(arguments)
        with extras("build" if arguments and arguments[0] in BUILDING else None):
            status = _invoke(list(arguments) or ["--help"])
        sys.stdout.flush()
        return status if arguments else 2
    except USAGE_ERROR as error:
        named = [word for word in arguments[:1] if word in COMMANDS]
        help_of = " ".join(["cfqa", *named, "--help"])
        return _fail(f"{error.format_message()} (see {help_of})")
    except CfqaError as error:
        return _fail(str(error))
    except KeyboardInterrupt as stop:
        return shared.interrupted(stop)
    except MemoryError as error:
        return _fail(f"out of memory: {error or 'nothing more can be had'}; free some, go on then")
    except BrokenPipeError:
        return _reader_gone()
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # rich makes that an exit with 1
            return _reader_gone()
        raise
    except OSError as error:
        return _fail(_os_error_line(error))


def _invoke(arguments: list[str]) -> int:
    """Run a command; what it raises comes through, which typer's own `main` would answer."""
    command = typer.main.get_command(shared.app)
    try:
        with command.make_context("cfqa", arguments) as context:
            command.invoke(context)
    except typer.Exit as done:
        return done.exit_code
    return 0


def _check(arguments: Sequence[str]) -> None:
    """Refuse what no argument can be.

    A path that is empty would be taken for the working directory: mostly it is a shell's variable
    that is not set.
    """
    for place, argument in enumerate(arguments):
        if not argument or (argument.startswith("--") and argument.endswith("=")):
            after = argument or (f"after {arguments[place - 1]}" if place else "first")
            raise CfqaError(f"an argument is empty ({after.strip()}): is a variable not set?")
        if "\0" in argument:
            raise CfqaError(f"{argument!r}: no name has a NUL byte in it; give another")


def _os_error_line(error: OSError) -> str:
    why = error.strerror or str(error)
    if error.filename == STDOUT:
        drop(1)
        return f"{STDOUT}: {why}; the answer could not be written"
    return why if error.filename is None else f"{os.fsdecode(error.filename)}: {why}"


def _reader_gone() -> int:
    """Return the status for a reader that stopped, as in `cfqa info DIR | head -1`."""
    drop(1)
    return 141


def _fail(message: str) -> int:
    """Say in one line what is wrong, and return the exit status for it."""
    say(message)
    return 2
