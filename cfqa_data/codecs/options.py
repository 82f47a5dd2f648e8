"""Codec options that name files.

A manifest from an unknown source must not make a codec open files.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from cfqa_data.format.facts import PROGRAMS
from cfqa_data.registry import path_options

__all__ = ["is_local", "named_files", "scalars"]

LOCAL = re.compile(r"(?![/\\]+$)[/\\~]|\.\.?[/\\]|[A-Za-z]:[/\\]|file:", re.I)
"""Matches the beginning of a local path: an absolute path, one relative to the home or working
directory, one on a drive, or a ``file:`` address. Separators alone name no file."""

FILE_KEYS = re.compile(r"(?!profile$)[\w-]*file|scaling-?list|analysis-(save|load)|csv|stats", re.I)
"""Encoder parameters whose value is a file name, unless it is one of :data:`NO_FILE`."""

NO_FILE = ("", "0", "off", "none", "default")


def is_local(text: str) -> bool:
    """Return whether a text begins like a local path."""
    return LOCAL.match(text) is not None


def named_files(
    target: Any, options: Mapping[str, Any], known: Collection[str] = ()
) -> list[tuple[str, str]]:
    """Return the options of a codec that name files, with their values, except programs.

    Args:
        target: The codec's class, or None if it is not known. Its annotations say which options are
            paths. Its ``parameter_names``, if it has any, are the encoder ``parameters`` that open
            no file.
        options: The keyword arguments of the codec.
        known: Names of files whose SHA-256 is known.

    Returns:
        Pairs of the option's dotted key and its value.
    """
    paths = path_options(target) if target else ()
    names = getattr(target, "parameter_names", None)
    files = []
    for key, value in options.items():
        if key in PROGRAMS:
            continue
        for place, entry in scalars(f"options.{key}", value):
            allowed = names if key == "parameters" and place.count(".") == 2 else None
            text = str(entry)
            is_file = (isinstance(entry, str) and key in paths) or _opens_file(
                place.rpartition(".")[2], text, allowed
            )
            if is_file and text not in known:
                files.append((place, text))
    return files


def _opens_file(key: str, text: str, names: Collection[str] | None) -> bool:
    """Return whether an encoder may open a file for `key=text`, a colon-separated option."""
    for part in f"{key}={text}".split(":"):
        name, _, value = part.partition("=")
        normal = name.lower().replace("_", "-")
        if is_local(value or name) or (
            FILE_KEYS.fullmatch(normal) and value.lower() not in NO_FILE
        ):
            return True
        is_number = not value and re.fullmatch(r"-?\d+", name)
        if names is not None and not is_number and normal.removeprefix("no-") not in names:
            return True
    return False


def scalars(where: str, value: Any, skip: Collection[str] = ()) -> Iterator[tuple[str, Any]]:
    """Yield each scalar in nested tables and lists with its dotted key, except below ``skip``."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in skip:
                yield from scalars(f"{where}.{key}", inner, skip)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from scalars(where, inner, skip)
    else:
        yield where, value
