"""The typer application, and options and output functions that commands share."""

from __future__ import annotations

import inspect
import json
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from copy import copy
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import typer

from cfqa_data.cli.process import say
from cfqa_data.console import terminal
from cfqa_data.console.progress import Progress
from cfqa_data.errors import CfqaError
from cfqa_data.paths import expanded, real_path
from cfqa_data.registry import Registry

__all__ = [
    "OUT",
    "AcceptVersions",
    "AnyDataset",
    "Codecs",
    "DataRoot",
    "Folder",
    "FollowLinks",
    "Force",
    "Json",
    "Plugins",
    "Target",
    "Task",
    "Tier",
    "Untrusted",
    "Workers",
    "answer",
    "app",
    "check_free",
    "cores",
    "interrupted",
    "local_path",
    "path_option",
    "plain_file",
    "use_modules",
    "use_plugins",
    "use_recipe",
    "use_root",
    "working",
]

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Compressed Feature Quality Assessment: build a dataset, look at it, score metrics on it.",
)

Tier = Literal["full", "light"]
Target = Literal["distortion", "loss"]

OUT = ("--out", "-o")
"""Names of the option that says where to write."""


def local_path(text: str) -> Path:
    """Return the path on this machine that an argument names; a shell leaves --out=~/x as it is."""
    if "://" in text:
        raise typer.BadParameter(f"{text!r} is an address; name a place on this machine")
    return expanded(text)


def plain_file(text: str) -> Path:
    """Return the path of a file that is there."""
    path = local_path(text)
    if not path.is_file():
        raise typer.BadParameter(f"{text}: there is no such file")
    return path


def folder_there(text: str) -> Path:
    """Return the path of a folder that is there."""
    path = local_path(text)
    if not path.is_dir():
        raise typer.BadParameter(f"{text}: there is no such folder")
    return path


def path_option(
    metavar: str, *names: str, help: str | None = None, parser: Any = local_path
) -> Any:
    """Return an option that takes a path."""
    return typer.Option(*names, parser=parser, metavar=metavar, help=help)


def flag(name: str, help: str) -> Any:
    """Return an option that takes no value."""
    return typer.Option(name, help=help)


Out = Annotated[Path, path_option("DIR", *OUT)]
Json = Annotated[bool, flag("--json", "Print one JSON object instead of text.")]
Force = Annotated[bool, flag("--force", "Replace what is there at the start, whatever it holds.")]
Untrusted = Annotated[
    bool,
    flag("--untrusted", "Decode untrusted bitstreams in confined processes."),
]
FollowLinks = Annotated[
    bool,
    flag("--follow-links", "Read what links lead to out of the folder: for one of your own."),
]
AcceptVersions = Annotated[
    bool, flag("--accept-versions", "Go on with what other versions of software began.")
]
PLUGIN_HELP = (
    "Class that the dataset was made with and that is not installed; repeat it for several."
)
Folder = Annotated[Path, typer.Argument(metavar="DIR", parser=local_path, help="A dataset folder.")]
AnyDataset = Annotated[
    str, typer.Argument(metavar="DIR", help="A dataset folder, or org/name on the Hub.")
]
Task = Annotated[str | None, typer.Option(metavar="TASK", help="Only this task.")]
Codecs = Annotated[
    list[str] | None,
    typer.Option("--codec", metavar="CODEC", help="Only this codec; repeat it for several."),
]
Plugins = Annotated[
    list[str] | None,
    typer.Option("--plugin", metavar="MODULE:CLASS", help=PLUGIN_HELP),
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", "-j", min=1, help="Processes. Default: one per core, up to 8."),
]
ROOT_HELP = "Where root:// is: images and weights of a recipe."
DataRoot = Annotated[Path | None, path_option("DIR", "--root", help=ROOT_HELP, parser=folder_there)]


def command(name: str, function: Callable[..., None]) -> None:
    """Add a command; the help of its parameters is what its docstring says of them."""
    about, _, parameters = inspect.cleandoc(function.__doc__ or "").partition("\n\nArgs:\n")
    hints = get_type_hints(function, include_extras=True)
    for entry in filter(None, re.split(r"^    (?=\w)", parameters, flags=re.M)):
        parameter, _, text = entry.partition(": ")
        kind, option = hints[parameter], typer.Option()
        if hasattr(kind, "__metadata__"):
            kind, option = kind.__origin__, copy(kind.__metadata__[0])
        option.help = " ".join(text.split())
        hints[parameter] = Annotated[kind, option]
    function.__annotations__ = hints
    app.command(name, help=about)(function)


def use_root(root: Path | None) -> None:
    """Have ``root://`` stand for a folder in this process and in those that it starts."""
    if root is not None:
        from cfqa_data.format.resources import ROOT_VARIABLE

        os.environ[ROOT_VARIABLE] = str(real_path(root))


def use_modules(names: Iterable[str] | None) -> None:
    """Find the modules of a user's classes, `module:Class`, where the command is run, too."""
    if any(":" in name for name in names or ()):
        sys.path.insert(0, os.getcwd())


def use_recipe(recipe: str) -> None:
    """Find the modules of the classes that a recipe names where the command is run, too."""
    from cfqa_data.recipe.load import classes_in

    with suppress(
        CfqaError, AttributeError, LookupError, TypeError
    ):  # told when the recipe is loaded
        use_modules(classes_in(recipe))


def use_plugins(names: list[str] | None) -> list[str]:
    """Return the names of a user's classes, each of which there is."""
    use_modules(names)
    for name in names or ():
        Registry("plugin", {}, CfqaError).find(name, classes=True)
    return names or []


def cores() -> int:
    """Return how many cores this process may use, up to 8: the default of `--workers`."""
    if hasattr(os, "sched_getaffinity"):
        return min(8, len(os.sched_getaffinity(0)))
    return min(8, os.cpu_count() or 1)


def check_free(page: Path, force: bool) -> None:
    """Check that a page replaces nothing, unless that is asked for."""
    if page.exists() and not force:
        raise CfqaError(f"{page}: is there; write to another file, or replace it with --force")


def _print_version(asked: bool) -> None:
    if asked:
        print(f"cfqa {metadata.version('cfqa-data')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    pass


def answer(as_json: bool, data: Callable[[], dict[str, Any]], text: Callable[[], str]) -> None:
    """Print the answer as text, or as JSON; NaN and infinity, which JSON lacks, are null there."""
    print(json.dumps(_json_safe(data()), indent=1, allow_nan=False) if as_json else text())


def _json_safe(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _json_safe(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_json_safe(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def working(
    hint: str = "what is finished is kept, the same command goes on from here",
) -> Iterator[Progress]:
    """Show progress; on an interrupt, say what the next run of the command goes on from."""
    try:
        with terminal.show_progress() as progress:
            yield progress
    except KeyboardInterrupt as stop:
        raise typer.Exit(interrupted(stop, hint)) from None


def interrupted(stop: BaseException, more: str = "") -> int:
    """Say in one line that the command was interrupted, and return the exit status for it.

    Args:
        stop: what interrupted it; a KeyboardInterrupt may have the signal's number.
        more: what there is to know.
    """
    number = stop.args[0] if stop.args and isinstance(stop.args[0], int) else signal.SIGINT
    say(f"interrupted{'; ' if more else ''}{more}")
    return 128 + number
