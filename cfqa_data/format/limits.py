"""Limits for files from untrusted origins, and reading JSON and TOML within them.

They are far beyond any dataset that there is: the paper's largest feature has 2^25 elements, its
largest table 10^5 rows. What claims more is refused before anything is allocated for it.
"""

from __future__ import annotations

import json
import math
import os
import stat
import tomllib
from io import BufferedReader
from pathlib import Path
from typing import Any

__all__ = [
    "LARGEST_FEATURE",
    "LARGEST_HEADER",
    "LARGEST_JSON",
    "LARGEST_PAGES",
    "LARGEST_PICTURE",
    "LARGEST_TEXT",
    "LARGEST_WHOLE",
    "LONGEST_CELL",
    "LONGEST_ID",
    "MAX_ROWS",
    "MAX_VALUES",
    "open_regular",
    "parse_json",
    "parse_toml",
    "pointer",
    "pointer_at",
    "read_limited",
]

LARGEST_FEATURE = 1 << 28
"""Elements N C T D of a feature: a gigabyte as float32."""

LARGEST_WHOLE = 256 << 20
"""Bytes of the largest file that is read whole into memory: a table."""

LARGEST_JSON = 64 << 20
"""Bytes of a manifest, of Zarr metadata, of a record of a build."""

LARGEST_HEADER = 16 << 20
"""Bytes of the header of a safetensors file; the paper's largest is below 100 kB."""

LARGEST_TEXT = 16 << 20
"""Bytes of a recipe or a score log."""

LONGEST_ID = 1024
"""Characters of a source's id."""

MAX_ROWS = 1 << 24
"""Rows of a table of which nothing says how many it should have."""

MAX_VALUES = 1 << 25
"""Values of all quantisers of a manifest: 128 MiB of tables, if every one is used."""

LARGEST_PAGES = 1 << 30
"""Bytes of all pages of a Parquet file when they are unpacked."""

LARGEST_PICTURE = 1 << 18
"""Bytes of a picture in a table; as plain numbers, the largest has fewer."""

LONGEST_CELL = 1 << 12
"""Bytes of a text in a table."""

LFS = "a Git LFS pointer; 'git lfs pull' gets the file itself"
ANNEX = "a git-annex pointer; 'git annex get' gets the file itself"

STARTS = ((b"version https://git-lfs", LFS), (b"/annex/objects/", ANNEX))
"""How a pointer begins."""

LARGEST_POINTER = 1024
"""Bytes of a pointer: of Git LFS at most; those of git-annex are a path."""


def pointer(data: bytes) -> str:
    """If a file's content is a pointer, return its kind and how to fetch the file; else ""."""
    return next((text for start, text in STARTS if data.startswith(start)), "")


def pointer_at(path: str | os.PathLike[str]) -> str:
    """Return what :func:`pointer` does of a file, of which only a small one is read.

    A link into git-annex's store whose content is not there is a pointer, too.
    """
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode) or found.st_size > LARGEST_POINTER:
            return ""
        with open(path, "rb") as file:
            return pointer(file.read(LARGEST_POINTER))
    except FileNotFoundError:
        try:
            return ANNEX if "/annex/objects/" in Path(os.readlink(path)).as_posix() else ""
        except OSError:
            return ""
    except (OSError, ValueError):
        return ""


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading; others, such as pipes that block, are refused.

    Raises:
        OSError: If it is not there, cannot be read, or is no plain file.
    """
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 - for the caller to close
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(f"{path}: is not a regular file")
    return file


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_limited(path: Path, most: int) -> bytes:
    """Return a file's whole content, if it is a plain file of at most ``most`` bytes.

    Raises:
        OSError: If it is not there, cannot be read, or is no plain file.
        ValueError: If it is larger, or Git keeps it elsewhere.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(most + 1) if size <= most else b""  # 0 of what the kernel makes up
    if size > most or len(data) > most:
        raise ValueError(f"more than the {most:,} bytes allowed for such a file")
    if kind := pointer(data):
        raise ValueError(kind)
    return data


def parse_json(data: bytes) -> Any:
    """Parse a JSON text, without NaN, infinity and numbers of more than 64 bits.

    Raises:
        ValueError: If it is too large, is not such a text, or is nested too deeply.
    """
    if len(data) > LARGEST_JSON:
        raise ValueError(f"more than the {LARGEST_JSON:,} bytes allowed for such a file")
    try:
        text = data.decode("utf-8")
        return json.loads(text, parse_constant=_finite, parse_float=_finite, parse_int=_whole)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def parse_toml(data: bytes) -> dict[str, Any]:
    """Parse a TOML text: tables, lists, texts and numbers as of :func:`parse_json`.

    Raises:
        ValueError: If it is not such a text, or is nested too deeply.
    """
    try:
        table = tomllib.loads(data.decode("utf-8-sig"))  # as some editors save it
    except RecursionError:
        raise ValueError("nested too deeply") from None
    entries: list[Any] = [table]
    while entries:
        entry = entries.pop()
        if isinstance(entry, dict | list):
            entries += entry.values() if isinstance(entry, dict) else entry
        elif isinstance(entry, float) and not math.isfinite(entry):
            raise ValueError(f"{entry} is not a finite number")
        elif isinstance(entry, int) and not -(1 << 63) <= entry < 1 << 64:
            raise ValueError("a number of more than 64 bits")
        elif not isinstance(entry, str | int | float):
            raise ValueError(f"a {type(entry).__name__}, neither text nor number")
    return table


def _whole(literal: str) -> int:
    if len(literal) > 20 or not -(1 << 63) <= (number := int(literal)) < 1 << 64:
        raise ValueError(f"{literal[:40]} is a number of more than 64 bits")
    return number


def _finite(literal: str) -> float:
    number = float(literal)
    if not math.isfinite(number):
        raise ValueError(f"{literal[:40]} is not a finite number")
    return number
