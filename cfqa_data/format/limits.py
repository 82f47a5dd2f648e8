"""Size limits for untrusted files, and functions that read JSON and TOML within them.

The limits are far above any existing dataset: the paper's largest feature has 2^25 elements, its
largest table 10^5 rows. A larger file is refused before memory is allocated for it.
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
"""Elements N*C*T*D of a feature: a gigabyte as float32."""

LARGEST_WHOLE = 256 << 20
"""Bytes of a file, such as a table, that is read into memory as a whole."""

LARGEST_JSON = 64 << 20
"""Bytes of a manifest, of Zarr metadata, or of a build record."""

LARGEST_HEADER = 16 << 20
"""Bytes of the header of a safetensors file; the paper's largest is below 100 kB."""

LARGEST_TEXT = 16 << 20
"""Bytes of a recipe or a score log."""

LONGEST_ID = 1024
"""Characters of a source id."""

MAX_ROWS = 1 << 24
"""Rows of a table whose expected number of rows is unknown."""

MAX_VALUES = 1 << 25
"""Values of all quantisers of a manifest: 128 MiB of tables if all are used."""

LARGEST_PAGES = 1 << 30
"""Bytes of all uncompressed pages of a Parquet file."""

LARGEST_PICTURE = 1 << 18
"""Bytes of a picture in a table; the largest has fewer even as uncompressed pixels."""

LONGEST_CELL = 1 << 12
"""Bytes of a string in a table."""

LFS = "a Git LFS pointer; 'git lfs pull' gets the file itself"
ANNEX = "a git-annex pointer; 'git annex get' gets the file itself"

POINTER_PREFIXES = ((b"version https://git-lfs", LFS), (b"/annex/objects/", ANNEX))
LARGEST_POINTER = 1024
"""Bytes of a pointer file, the maximum of Git LFS."""


def pointer(data: bytes) -> str:
    """Return a description of a pointer file and how to fetch its file, or "" for other content."""
    return next((text for start, text in POINTER_PREFIXES if data.startswith(start)), "")


def pointer_at(path: str | os.PathLike[str]) -> str:
    """Return :func:`pointer` of the file at a path; large files are not read.

    A symbolic link into git-annex's store whose target is missing is a pointer, too.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST_POINTER:
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
    """Open a regular file for reading; others, such as pipes that would block, are refused.

    Raises:
        OSError: If the file does not exist, cannot be read, or is not a regular file.
    """
    file = open(path, "rb", opener=_open_nonblocking)  # noqa: SIM115 - for the caller to close
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(f"{path}: is not a regular file")
    return file


def _open_nonblocking(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_limited(path: Path, max_bytes: int) -> bytes:
    """Return the content of a regular file of at most ``max_bytes`` bytes.

    Raises:
        OSError: If the file does not exist, cannot be read, or is not a regular file.
        ValueError: If it is larger, or a pointer of Git LFS or git-annex.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        # Files of the kernel (/proc) have size 0, so the length is checked again.
        data = file.read(max_bytes + 1) if size <= max_bytes else b""
    if size > max_bytes or len(data) > max_bytes:
        raise ValueError(f"more than the {max_bytes:,} bytes allowed for such a file")
    if kind := pointer(data):
        raise ValueError(kind)
    return data


def parse_json(data: bytes) -> Any:
    """Parse JSON that contains no NaN, no infinity, and no integers of more than 64 bits.

    Raises:
        ValueError: If it is too large, invalid, or nested too deeply.
    """
    if len(data) > LARGEST_JSON:
        raise ValueError(f"more than the {LARGEST_JSON:,} bytes allowed for such a file")
    try:
        text = data.decode("utf-8")
        return json.loads(
            text, parse_constant=_parse_float, parse_float=_parse_float, parse_int=_parse_int
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None


def parse_toml(data: bytes) -> dict[str, Any]:
    """Parse TOML that contains only tables, lists, strings and numbers as in :func:`parse_json`.

    Raises:
        ValueError: If it is invalid, or nested too deeply.
    """
    try:
        table = tomllib.loads(data.decode("utf-8-sig"))  # some editors write a byte order mark
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


def _parse_int(literal: str) -> int:
    if len(literal) > 20 or not -(1 << 63) <= (number := int(literal)) < 1 << 64:
        raise ValueError(f"{literal[:40]} is a number of more than 64 bits")
    return number


def _parse_float(literal: str) -> float:
    number = float(literal)
    if not math.isfinite(number):
        raise ValueError(f"{literal[:40]} is not a finite number")
    return number
