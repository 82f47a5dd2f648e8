"""Declare the commands: each is a function, and its parameters are its arguments and options.

Positional parameters are arguments, those that can only be named are options, and a bool that is
False is a flag. The docstring's entry `name (METAVAR): text` is the help of a parameter; parameters
that several commands share have theirs in `SHARED`.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import typer

from cfqa_data.errors import CfqaError
from cfqa_data.extras import extras
from cfqa_data.paths import absolute_path, expanded, real_path
from cfqa_data.registry import Registry

__all__ = ["COMMANDS", "Target", "Tier", "app", "command", "cores", "plain_file"]

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Compressed Feature Quality Assessment: build, inspect and share a dataset of compressed "
    "features, and evaluate metrics on it.",
)

COMMANDS: dict[str, Callable[..., None]] = {}
"""The commands by name, in the order in which the help shows them."""

Tier = Literal["full", "light"]
Target = Literal["distortion", "loss"]

SHARED = """
    allow_version_mismatch: Resume work that other software versions began.
    as_json: Print one JSON object instead of text.
    codec (CODEC): Only this codec; may be repeated.
    folder (DIR): A dataset folder, or org/name on the Hub.
    follow_links: Follow links that lead out of the folder; only for a folder you trust.
    force: Overwrite an existing file, whatever it holds.
    plugin (MODULE:CLASS): Class that the dataset was built with, where its package is not
        installed; may be repeated.
    root (DIR): Folder that root:// stands for: images and weights of a recipe.
    task (TASK): Only this task.
    untrusted: Decode untrusted bitstreams in sandboxed processes.
    workers: Number of worker processes. Default: one per core, up to 8.
"""


def command(
    name: str, extra: str | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that adds a function as a command, which needs what an extra brings."""

    def add(function: Callable[..., None]) -> Callable[..., None]:
        about, _, own = inspect.cleandoc(function.__doc__ or "").partition("\n\nArgs:\n")
        entries = _entries(SHARED) | _entries(own)
        hints = get_type_hints(function, include_extras=True)
        for parameter in inspect.signature(function).parameters.values():
            kind = hints[parameter.name]
            if kind is not typer.Context:
                hints[parameter.name] = Annotated[kind, _declared(parameter, kind, entries)]
        function.__annotations__ = hints
        COMMANDS[name] = function
        return app.command(name, help=about)(extras(extra)(function))

    return add


def _entries(text: str) -> dict[str, tuple[str | None, str]]:
    """Return metavar and help of each parameter that a docstring describes."""
    found = re.findall(r"^    (\w+)(?: \((.+?)\))?: (.+(?:\n {5,}.+)*)", text, re.M)
    return {name: (metavar or None, " ".join(about.split())) for name, metavar, about in found}


def _declared(
    parameter: inspect.Parameter, kind: Any, entries: dict[str, tuple[str | None, str]]
) -> Any:
    """Return the declaration of a parameter for typer."""
    name = parameter.name
    metavar, about = entries[name] if __doc__ else (None, "")  # Python -OO strips what says it
    how: dict[str, Any] = {"metavar": metavar, "help": about, **HOW.get(name, {})}
    if Path in (kind, *getattr(kind, "__args__", ())):
        how.setdefault("parser", local_path)
    if parameter.kind is not parameter.KEYWORD_ONLY:
        return typer.Argument(**how)
    names = NAMES.get(name, ())
    if kind is bool and not parameter.default:
        names = names or (f"--{name.replace('_', '-')}",)
    return typer.Option(*names, **how)


# What a value may be, and what a command does with it before all else.


def local_path(text: str) -> Path:
    """Return the path on this machine that an argument names; a shell leaves --out=~/x as it is."""
    if "://" in text:
        raise typer.BadParameter(f"{text!r} is a URL; give a local path")
    return expanded(text)


def plain_file(text: str) -> Path:
    """Return the path of an existing file."""
    path = local_path(text)
    if not path.is_file():
        raise typer.BadParameter(f"{text}: there is no such file")
    return path


def folder_there(text: str) -> Path:
    """Return the path of an existing folder."""
    path = local_path(text)
    if not path.is_dir():
        raise typer.BadParameter(f"{text}: there is no such folder")
    return path


def use_root(root: Path | None) -> Path | None:
    """Have ``root://`` stand for a folder in this process and in those that it starts."""
    from cfqa_data.format.resources import ROOT_VARIABLE

    if root is not None:
        os.environ[ROOT_VARIABLE] = str(real_path(root))
    return root


def use_file(parameter: typer.CallbackParam, file: Path | None) -> Path | None:
    """Give a file to this process, and to those that it starts, as ``CFQA_HM_ENCODER`` or so."""
    if file is not None:
        os.environ[f"CFQA_{parameter.name}".upper()] = str(absolute_path(file))
    return file


def use_modules(names: Iterable[str] | None) -> Any:
    """Also find the modules of user-defined classes, `module:Class`, in the working directory."""
    if any(re.search(r":(?!\s*\w+=)", name) for name in names or ()):  # not of options alone
        sys.path.insert(0, os.getcwd())
    return names


def use_recipe(recipe: str) -> str:
    """Also find the modules of the classes that a recipe names in the working directory."""
    from cfqa_data.recipe.load import classes_in

    # What is wrong with a recipe is reported when it is loaded.
    with suppress(CfqaError, AttributeError, LookupError, TypeError):
        use_modules(classes_in(recipe))
    return recipe


def use_plugins(names: Any) -> Any:
    """Check that each user-defined class exists."""
    for name in use_modules(names) or ():
        Registry("plugin", {}, CfqaError).find(name, classes=True)
    return names


def cores() -> int:
    """Return how many cores this process may use, up to 8: the default of `--workers`."""
    if hasattr(os, "sched_getaffinity"):
        return min(8, len(os.sched_getaffinity(0)))
    return min(8, os.cpu_count() or 1)


NAMES = {
    "as_json": ("--json",),
    "out": ("--out", "-o"),
    "originals": ("--originals/--no-originals",),
    "workers": ("--workers", "-j"),
}
"""Names of options, where they are not as the parameter's."""

HOW: dict[str, dict[str, Any]] = {
    "against": {"callback": use_modules},
    "dims": {"min": 1},
    "max_sources": {"min": 1},
    "metric": {"callback": use_modules},
    "plugin": {"callback": use_plugins},
    "recipe": {"callback": use_recipe},
    "root": {"callback": use_root, "parser": folder_there},
    "sample": {"min": 0},
    "seed": {"min": 0},
    "sources": {"min": 1},
    "tolerance": {"min": 0.0, "max": 1.0},
    "workers": {"min": 1},
    **{
        f"{codec}_{what}": {"callback": use_file, "parser": plain_file}
        for codec in ("hm", "vtm")
        for what in ("encoder", "config")
    },
}
"""Further arguments of the declaration of a parameter, by its name."""
