"""The command `cfqa`. Whatever is heavy is imported inside the command that needs it.

Exit status: 0 done; 2 bad use or bad input, with one line on stderr; 130 interrupted;
141 whoever read the output has gone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import typer

from cfqa_data.cli import looking, making, scoring, sharing
from cfqa_data.cli.app import app, interrupted
from cfqa_data.errors import CfqaError

__all__ = ["app", "main"]

# Base of all of typer's usage errors; typer itself does not export it.
USAGE_ERROR: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

# Module that may be absent -> the extra that brings it.
EXTRAS = {
    "av": "codecs",
    "constriction": "codecs",
    "dask": "build",
    "datasets": "hf",
    "distributed": "build",
    "huggingface_hub": "hf",
    "imageio_ffmpeg": "codecs",
    "jinja2": "eval",
    "matplotlib": "build",
    "PIL": "build",
    "scipy": "eval",
    "torch": "eval",
}

# In the order in which the help shows them.
COMMANDS: dict[str, Callable[..., None]] = {
    "build": making.build,
    "import-release": making.import_release,
    "info": looking.info,
    "eval": scoring.evaluate,
    "report": scoring.write_page,
    "export": sharing.export,
    "publish": sharing.publish,
}
for _name, _command in COMMANDS.items():
    app.command(_name)(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        command = typer.main.get_command(app)
        status = command.main(arguments or ["--help"], prog_name="cfqa", standalone_mode=False)
        sys.stdout.flush()
        if not arguments:
            return 2
        return status if isinstance(status, int) else 0
    except USAGE_ERROR as error:
        return _fail(f"{error.format_message()} (see cfqa --help)")
    except CfqaError as error:
        return _fail(str(error))
    except ModuleNotFoundError as error:
        module = (error.name or "").split(".")[0]
        if module not in EXTRAS:
            raise
        extra = "build" if arguments[:1] in (["build"], ["import-release"]) else EXTRAS[module]
        return _fail(f"{module} is not installed: pip install 'cfqa-data[{extra}]'")
    except (KeyboardInterrupt, typer.Abort):
        return interrupted()
    except BrokenPipeError:
        return _reader_gone()
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # typer makes that an exit with 1
            return _reader_gone()
        raise
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}")


def _reader_gone() -> int:
    """Return the status for a reader that stopped, as in `cfqa info DIR | head -1`.

    Stdout goes nowhere from here, so that the interpreter's last flush does not fail again.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 141


def _fail(message: str) -> int:
    """Say in one line what is wrong, and return the exit status for it."""
    print(f"cfqa: {' '.join(message.split())}", file=sys.stderr)
    return 2
