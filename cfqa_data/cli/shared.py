"""The typer application: options that commands share, and how they answer."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from cfqa_data.cli.process import say
from cfqa_data.paths import expanded, real_path
from cfqa_data.recipe.resources import ROOT_VARIABLE

__all__ = [
    "AnyDataset",
    "Codecs",
    "DataRoot",
    "Folder",
    "FollowLinks",
    "Force",
    "Json",
    "Task",
    "Tier",
    "Untrusted",
    "Workers",
    "app",
    "cores",
    "folder_there",
    "interrupted",
    "local_path",
    "plain_file",
    "print_json",
    "resumable",
    "use_root",
]

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Compressed Feature Quality Assessment: build a dataset, look at it, score metrics on it.",
)


class Tier(StrEnum):
    """Which files a dataset folder holds."""

    full = "full"
    light = "light"


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Force = Annotated[
    bool, typer.Option("--force", help="Replace what is there at the start, whatever it holds.")
]
Untrusted = Annotated[
    bool,
    typer.Option(
        "--untrusted", help="Decode a stranger's bitstreams in processes that can do nothing else."
    ),
]

FollowLinks = Annotated[
    bool,
    typer.Option(
        "--follow-links", help="Read what links lead to out of the folder: for one of your own."
    ),
]


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


Folder = Annotated[Path, typer.Argument(metavar="DIR", parser=local_path, help="A dataset folder.")]
AnyDataset = Annotated[
    str, typer.Argument(metavar="DIR", help="A dataset folder, or org/name on the Hub.")
]


Task = Annotated[str | None, typer.Option(metavar="TASK", help="Only this task: cls, seg or dpt.")]
Codecs = Annotated[
    list[str] | None,
    typer.Option("--codec", metavar="CODEC", help="Only this codec; repeat it for several."),
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", "-j", min=1, help="Processes. Default: one per core, up to 8."),
]
DataRoot = Annotated[
    Path | None,
    typer.Option(
        "--root",
        parser=folder_there,
        metavar="DIR",
        help="Where root:// is: images and weights of a recipe.",
    ),
]


def use_root(root: Path | None) -> None:
    """Have ``root://`` stand for a folder in this process and in those that it starts."""
    if root is not None:
        os.environ[ROOT_VARIABLE] = str(real_path(root))


def cores() -> int:
    """Return how many cores this process may use, up to 8: the default of `--workers`."""
    if hasattr(os, "sched_getaffinity"):
        return min(8, len(os.sched_getaffinity(0)))
    return min(8, os.cpu_count() or 1)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"cfqa {version('cfqa-data')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the version and exit.",
            is_eager=True,
            callback=_print_version,
        ),
    ] = False,
) -> None:
    pass


def print_json(data: dict[str, Any]) -> None:
    """Print an object as JSON; NaN and infinity, which JSON lacks, are null."""
    print(json.dumps(_json_safe(data), indent=1, allow_nan=False))


def _json_safe(value: Any) -> Any:
    """Return the value with NaN and infinity, which JSON lacks, as None."""
    if isinstance(value, dict):
        return {key: _json_safe(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_json_safe(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def resumable(more: str) -> Iterator[None]:
    """Say on an interrupt what the next run of the command goes on from, and exit."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise typer.Exit(interrupted(stop, more)) from None


def interrupted(stop: BaseException, more: str = "") -> int:
    """Say in one line that the command was interrupted, and return the exit status for it.

    Args:
        stop: what interrupted it; a KeyboardInterrupt may have the signal's number.
        more: what there is to know.
    """
    number = stop.args[0] if stop.args and isinstance(stop.args[0], int) else signal.SIGINT
    say(f"interrupted{'; ' if more else ''}{more}")
    return 128 + number
