"""Declare commands: each is a function whose parameters are its arguments and options.

Positional parameters are arguments, keyword-only parameters are options, and a bool that is False
by default is a flag. The docstring entry `name (METAVAR): text` is the help of a parameter. The
help of parameters that several commands share is in `SHARED`.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
import types
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

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
"""Name -> command, in the order of the help."""

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
    """Return a decorator that registers a function as a command.

    Args:
        name: Name of the command.
        extra: Extra that installs the packages that the command requires.
    """

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
    """Return the metavar and help of each parameter in an "Args" section."""
    entries = re.findall(r"^    (\w+)(?: \((.+?)\))?: (.+(?:\n {5,}.+)*)", text, re.M)
    return {name: (metavar or None, " ".join(about.split())) for name, metavar, about in entries}


def _declared(
    parameter: inspect.Parameter, kind: Any, entries: dict[str, tuple[str | None, str]]
) -> Any:
    """Return the declaration of a parameter for typer."""
    name = parameter.name
    metavar, about = entries[name] if __doc__ else (None, "")  # python -OO removes docstrings
    how: dict[str, Any] = {"metavar": metavar, "help": about, **HOW.get(name, {})}
    for value_type in _value_types(kind):
        if value_type is Path:
            how.setdefault("parser", local_path)
        elif value_type in (int, float):
            how["metavar"] = metavar or "N"
            how["parser"] = number_parser(value_type, how.get("min"), how.get("max"))
        elif get_origin(value_type) is Literal:
            how["metavar"] = metavar or "|".join(get_args(value_type))
            how["parser"] = choice_parser(get_args(value_type))
        elif value_type is bool:
            how["metavar"] = ""
    if parameter.kind is not parameter.KEYWORD_ONLY:
        return typer.Argument(**how)
    names = NAMES.get(name, ())
    if kind is bool and not parameter.default:
        names = names or (f"--{name.replace('_', '-')}",)
    return typer.Option(*names, **how)


def _value_types(kind: Any) -> list[Any]:
    """Return the types of the values in an annotation such as ``list[int] | None``."""
    if get_origin(kind) in (list, Union, types.UnionType):
        return [value for argument in get_args(kind) for value in _value_types(argument)]
    return [kind]


# Parsers of values, and callbacks that run before the command.


def number_parser(
    kind: type[int] | type[float], low: float | None, high: float | None
) -> Callable[[Any], int | float]:
    """Return a parser of numbers in a closed range."""
    wanted = "a whole number" if kind is int else "a number"
    if low is not None:
        wanted += f" from {low:g}" + ("" if high is None else f" to {high:g}")

    def parse(text: Any) -> int | float:
        with suppress(ValueError):
            number = kind(text)
            if (low is None or number >= low) and (high is None or number <= high):
                return number
        raise typer.BadParameter(f"{text!r} is not {wanted}")

    return parse


def choice_parser(choices: tuple[str, ...]) -> Callable[[str], str]:
    """Return a parser that accepts only some texts."""

    def parse(text: str) -> str:
        if text not in choices:
            raise typer.BadParameter(f"{text!r} is not one of {', '.join(choices)}")
        return text

    return parse


def local_path(text: str) -> Path:
    """Return a local path; `~` is expanded, since shells do not expand it in ``--out=~/x``."""
    if "://" in text:
        raise typer.BadParameter(f"{text!r} is a URL; give a local path")
    return expanded(text)


def plain_file(text: str) -> Path:
    """Return the path of an existing file."""
    path = local_path(text)
    if not path.is_file():
        raise typer.BadParameter(f"{text}: there is no such file")
    return path


def existing_folder(text: str) -> Path:
    """Return the path of an existing folder."""
    path = local_path(text)
    if not path.is_dir():
        raise typer.BadParameter(f"{text}: there is no such folder")
    return path


def use_root(root: Path | None) -> Path | None:
    """Set the folder of ``root://`` for this process and its workers."""
    from cfqa_data.format.resources import ROOT_VARIABLE

    if root is not None:
        os.environ[ROOT_VARIABLE] = str(real_path(root))
    return root


def use_file(parameter: typer.CallbackParam, file: Path | None) -> Path | None:
    """Set the environment variable of a file, such as ``CFQA_HM_ENCODER``."""
    if file is not None:
        os.environ[f"CFQA_{parameter.name}".upper()] = str(absolute_path(file))
    return file


def use_modules(names: Iterable[str] | None) -> Any:
    """Add the working directory to the import path if a name is `module:Class`."""
    if any(re.search(r":(?!\s*\w+=)", name) for name in names or ()):  # not for NAME:OPTION=VALUE
        sys.path.insert(0, os.getcwd())
    return names


def use_recipe(recipe: str) -> str:
    """Add the working directory to the import path if a recipe names a `module:Class`."""
    from cfqa_data.recipe.load import classes_in

    # Errors in the recipe are reported when it is loaded.
    with suppress(CfqaError, AttributeError, LookupError, TypeError):
        use_modules(classes_in(recipe))
    return recipe


def use_plugins(names: Any) -> Any:
    """Check that each plugin can be imported."""
    for name in use_modules(names) or ():
        Registry("plugin", {}, CfqaError).find(name, classes=True)
    return names


def cores() -> int:
    """Return the number of cores that this process may use, at most 8."""
    if hasattr(os, "sched_getaffinity"):
        return min(8, len(os.sched_getaffinity(0)))
    return min(8, os.cpu_count() or 1)


NAMES = {
    "as_json": ("--json",),
    "out": ("--out", "-o"),
    "originals": ("--originals/--no-originals",),
    "workers": ("--workers", "-j"),
}
"""Parameter -> names of its option, if they differ from the parameter's name."""

HOW: dict[str, dict[str, Any]] = {
    "against": {"callback": use_modules},
    "dims": {"min": 1},
    "max_sources": {"min": 1},
    "metric": {"callback": use_modules},
    "plugin": {"callback": use_plugins},
    "recipe": {"callback": use_recipe},
    "root": {"callback": use_root, "parser": existing_folder},
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
"""Parameter -> further arguments of its declaration."""
