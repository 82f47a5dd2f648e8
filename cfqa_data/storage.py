"""Writing the files of a dataset folder: each appears whole, under its name, or not at all.

Identical input gives identical bytes, so a folder built twice has the same hashes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cfqa_data.errors import FormatError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "atomic_path",
    "read_table",
    "remove_partials",
    "write_table",
    "write_tensors",
    "write_text",
]

PARTIAL = ".partial"
"""Suffix of files being written; zarr's local store uses the same."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to; on success it is synced and becomes ``path``.

    The folder is made if it is not there. After an exception nothing is left behind; after a kill,
    at most a file that :func:`remove_partials` removes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    try:
        yield partial
        # Some writers make files that only their owner reads; these are for whom the folder is for.
        partial.chmod(path.parent.stat().st_mode & 0o666)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def remove_partials(root: Path) -> int:
    """Remove what killed writers left below ``root`` and return how many files that were.

    No writer may be at work there.
    """
    partials = list(root.rglob(f"*{PARTIAL}"))
    for path in partials:
        path.unlink()
    return len(partials)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def write_tensors(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write arrays as one safetensors file.

    Args:
        path: the file.
        tensors: arrays by key.
        metadata: JSON-safe facts, kept as one JSON text under the key ``cfqa`` because the
            format's writer does not keep the order of several.
    """
    from safetensors.numpy import save_file

    header = {"cfqa": json.dumps(dict(metadata), sort_keys=True)} if metadata else None
    with atomic_path(path) as partial:
        save_file({key: np.asarray(t, order="C") for key, t in tensors.items()}, partial, header)


def write_table(path: Path, table: pa.Table) -> None:
    """Write a table as Parquet, zstd compressed."""
    import pyarrow.parquet as pq

    with atomic_path(path) as partial:
        pq.write_table(table, partial, compression="zstd")


def read_table(path: Path, schema: pa.Schema) -> pa.Table:
    """Read a Parquet table that must have exactly ``schema``.

    Raises:
        FormatError: the file is not there, not Parquet, or has other columns.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, partitioning=None)
    except FileNotFoundError:
        raise FormatError(f"{path}: missing; is this a complete dataset folder?") from None
    except (OSError, pa.ArrowException) as error:
        raise FormatError(f"{path}: not a Parquet table that can be read: {error}") from None
    if not table.schema.equals(schema):
        wrong = [f.name for f in schema if f not in list(table.schema)] or ["their order or number"]
        raise FormatError(f"{path}: columns are not as expected: {', '.join(wrong)}")
    return table
