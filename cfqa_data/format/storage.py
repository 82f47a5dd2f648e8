"""Write the files of a dataset folder atomically and durably, and read its tables.

Identical input gives identical bytes, so a folder that is built twice has the same hashes.

A file is written under a temporary name beside its path, synced and renamed, and then its folder is
synced. When a writer returns, neither a kill nor a power cut can remove the file, so that a file
written later (a marker, a manifest) may refer to it. Syncing a folder takes 0.1 ms, syncing a file
1 ms.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryFile
from typing import Any

import numpy as np

from cfqa_data.arrow import pa, pc, pq
from cfqa_data.errors import CfqaError, FormatError, unknown_name
from cfqa_data.format.layout import TOP_NAMES
from cfqa_data.format.limits import MAX_ROWS, pointer
from cfqa_data.format.schema import NULLABLE, label_schema
from cfqa_data.paths import real_path

__all__ = [
    "PARTIAL",
    "atomic_path",
    "check_folder",
    "check_rows",
    "check_writable",
    "make_folder",
    "read_labels",
    "read_table",
    "remove_partials",
    "sync_folders",
    "write_bytes",
    "write_csv",
    "write_table",
    "write_tensors",
    "write_text",
]

ROW_GROUP_SIZE = 1 << 16
"""Rows per row group; readers of a few rows read whole row groups."""

PARTIAL = ".partial"
"""Suffix of files that are being written."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success, sync it and rename it to ``path``.

    The caller writes a file or a folder of files there. The parent folder is created if necessary,
    and synced at the end. After an exception, nothing remains; after a kill, at most files that
    :func:`remove_partials` removes.

    Raises:
        OSError: If the file cannot be written; the error names ``path``.
    """
    # Processes of two machines that share the folder may have the same number.
    partial = path.with_name(f"{path.name}.{os.getpid()}-{token_hex(4)}{PARTIAL}")
    make_folder(path.parent)
    try:
        yield partial
        if not partial.is_dir():
            # Some writers make files that only their owner can read. Grant the folder's read
            # permissions, and write permission to the group at most, before the sync.
            partial.chmod(path.parent.stat().st_mode & 0o664)
        for file_path in partial.rglob("*") if partial.is_dir() else [partial]:
            if file_path.is_file():
                with file_path.open("rb") as file:
                    os.fsync(file.fileno())
        if partial.is_dir():
            sync_folders(partial)
        partial.replace(path)
        sync_folder(path.parent)
    except BaseException as error:
        shutil.rmtree(partial) if partial.is_dir() else partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and str(error.filename or partial).startswith(str(partial)):
            error.filename = str(path)
        raise


def make_folder(folder: Path) -> None:
    """Create a folder and its parents durably."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the entries of a folder are on disk, where the platform supports it.

    Raises:
        OSError: If they cannot be written.
    """
    if os.name == "nt":  # Windows has no file descriptors of folders
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems do not support this.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            error.filename = str(folder)
            raise
    finally:
        os.close(handle)


def sync_folders(root: Path) -> None:
    """Sync a folder and all folders below it."""
    for folder, _, _ in os.walk(root):
        sync_folder(Path(folder))


def check_writable(path: Path) -> None:
    """Check that a file can be written, before the work that produces it.

    Raises:
        CfqaError: If the path is a folder, a special file or a file of a dataset, or its folder
            does not exist or is not writable.
    """
    if path.is_dir():
        raise CfqaError(f"{path}: is a folder; name a file to write to")
    if path.exists() and not path.is_file():
        raise CfqaError(f"{path}: is not a regular file; name another file")
    if not path.parent.is_dir():
        raise CfqaError(f"{path}: there is no folder {path.parent}")
    target = real_path(path)
    for root in target.parents:
        is_part = target.relative_to(root).parts[0] in TOP_NAMES and (root / "labels").is_dir()
        if is_part and (root / "manifest.json").is_file():
            raise CfqaError(f"{path}: belongs to the dataset in {root}; write to another file")
    _check_can_create(path, path.parent)


def check_folder(folder: Path) -> None:
    """Check that a folder can be written to, or created, before the work that fills it.

    Raises:
        CfqaError: If the path is not a folder, or no file can be created in it or in its nearest
            existing parent.
    """
    nearest = folder
    while not os.path.lexists(nearest) and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        raise CfqaError(f"{nearest}: exists and is not a folder; name another path")
    _check_can_create(folder, nearest)


def _check_can_create(path: Path, folder: Path) -> None:
    try:
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        why = error.strerror or error
        raise CfqaError(f"{path}: cannot create a file in {folder}: {why}") from None


def remove_partials(root: Path) -> int:
    """Remove partial files of killed writers below ``root`` and return their number.

    No writer may be active there.
    """
    partials = list(root.rglob(f"*{PARTIAL}"))
    for path in partials:
        path.unlink(missing_ok=True)
    return len(partials)


def write_bytes(path: Path, data: bytes) -> None:
    """Write bytes to a file."""
    with atomic_path(path) as partial:
        partial.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file."""
    write_bytes(path, text.encode("utf-8"))


def write_tensors(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, Any] | None = None,
    *,
    key: str = "cfqa",
) -> None:
    """Write arrays as one safetensors file, regardless of their memory order.

    This package writes all safetensors files, data and weights, with this function. The library's
    own writer (0.8.0) copies an array's memory, which scrambles arrays in Fortran order.

    Args:
        path: The file.
        tensors: Arrays by key.
        metadata: JSON-serialisable facts, stored as one JSON text because the format's writer does
            not keep the order of several entries.
        key: Metadata key of that text.
    """
    from safetensors.numpy import save

    header = {key: json.dumps(dict(metadata), sort_keys=True)} if metadata else None
    # The library's own writer does not raise OSError if the disk is full.
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    write_bytes(path, save(arrays, header))


def write_table(
    path: Path,
    table: pa.Table,
    check: Callable[[], None] | None = None,
    row_group_size: int = ROW_GROUP_SIZE,
) -> None:
    """Write a table as Parquet with zstd compression.

    Args:
        path: The file.
        table: The table.
        check: Called after writing, before the file becomes ``path``; if it raises, ``path`` is
            left unchanged.
        row_group_size: Rows per row group.
    """
    # Passed as an open file: pyarrow takes names such as s3:/x as URIs, and requires UTF-8.
    with atomic_path(path) as partial:
        with partial.open("wb") as file:
            pq.write_table(table, file, row_group_size, compression="zstd")
        if check:
            check()


def write_csv(path: Path, table: pa.Table) -> None:
    """Write a table as CSV."""
    from pyarrow import csv

    with atomic_path(path) as partial:
        csv.write_csv(table, partial)


def read_labels(
    path: Path | str,
    data: bytes | None = None,
    *,
    max_rows: int = MAX_ROWS,
    format: int = 1,
    sources: Sequence[int] | None = None,
) -> pa.Table:
    """Read a table of labels, where unknown rates are null (`bits`) and NaN (`bpfp`).

    Earlier versions imported releases without bitstreams with 0 bits. No bitstream of format 1 has
    0 bits, so in format 1 these are read as unknown, too. If ``sources``, sorted positions, are
    given, rows of other sources may be left out. See :func:`read_table`.
    """
    within = None if sources is None else ("index", sources)
    options: dict[str, Any] = {"max_rows": max_rows, "nullable": NULLABLE[format]}
    table = read_table(path, label_schema(format), data, within=within, **options)
    known = pc.fill_null(pc.greater_equal(table["bits"], 1 if format == 1 else 0), False)
    if pc.all(known).as_py() is False:
        for name, unknown in (("bits", None), ("bpfp", math.nan)):
            column = pc.if_else(known, table[name], pa.scalar(unknown, table[name].type))
            position = table.column_names.index(name)
            table = table.set_column(position, table.schema.field(name), column)
    return table


def read_table(
    path: Path | str,
    schema: pa.Schema,
    data: bytes | None = None,
    *,
    max_rows: int = MAX_ROWS,
    nullable: Collection[str] = (),
    within: tuple[str, Sequence[int]] | None = None,
) -> pa.Table:
    """Read a Parquet table that must have exactly the columns of ``schema``, without nulls.

    Args:
        path: The file, or its name if ``data`` is given.
        schema: The expected schema.
        data: The content of the file, if it is not on this machine.
        max_rows: Largest number of rows; a larger table is refused before any row is read.
        nullable: Columns that may contain nulls.
        within: See :func:`cfqa_data.format.parquet.read_parquet`.

    Raises:
        FormatError: If the file does not exist, is not Parquet, has other columns, has nulls, or
            would need more memory than a table of that many rows.
    """
    from cfqa_data.format.parquet import read_parquet, read_schema

    try:
        data = Path(path).read_bytes() if data is None else data
        if kind := pointer(data):
            raise FormatError(f"{path}: {kind}")
        found = read_schema(data)[0]
        if not found.equals(schema):
            wrong = [f.name for f in schema if f not in list(found)] or ["their order or number"]
            raise FormatError(f"{path}: columns are not as expected: {', '.join(wrong)}")
        table = read_parquet(data, max_rows, within=within)
    except FileNotFoundError:
        raise FormatError(f"{path}: missing; is this a complete dataset folder?") from None
    except (OSError, ValueError, pa.ArrowException) as error:
        raise FormatError(f"{path}: not a readable Parquet table: {error}") from None
    for name, column in zip(table.column_names, table.columns, strict=True):
        if column.null_count and name not in nullable:
            row = pc.index(pc.is_null(column), True).as_py()
            raise FormatError(f"{path}: {name} is null in row {row}; build or fetch it again")
    return table


def check_rows(
    path: Path | str,
    table: pa.Table,
    axes: Mapping[str, Sequence[object]],
    sizes: Sequence[int] = (),
) -> dict[str, np.ndarray]:
    """Check that a table has one row per combination of the values of some columns, in any order.

    Args:
        path: Name of the table, for messages.
        table: A table without nulls.
        axes: Column -> its values.
        sizes: Lengths of the last axis for each value of the axis before, if they differ.

    Returns:
        Column -> index of each row's value, int64 (rows,).

    Raises:
        FormatError: If a row is missing, duplicate or has another value; the message names the
            first.
    """
    again = "build or fetch it again"
    positions: dict[str, np.ndarray] = {}
    for column, values in axes.items():
        value_set = pa.array(values, table.schema.field(column).type)
        indices = pc.fill_null(pc.index_in(table[column], value_set=value_set), -1).to_numpy()
        positions[column] = indices.astype(np.int64)
        if (indices < 0).any():
            row = int((indices < 0).argmax())
            wrong = unknown_name(column, table[column][row].as_py(), map(str, values))
            raise FormatError(f"{path}: row {row}: {wrong}; {again}")
    *outer, last = map(len, axes.values())
    lengths = np.array(sizes or [last] * (outer[-1] if outer else 1))
    ends = np.cumsum(np.tile(lengths, math.prod(outer[:-1])))
    starts = ends - np.tile(lengths, math.prod(outer[:-1]))
    *before, index = positions.values()
    line = np.ravel_multi_index(tuple(before), outer) if before else np.zeros_like(index)
    if (outside := index >= (ends - starts)[line]).any():
        row, column = int(outside.argmax()), list(axes)[-1]
        raise FormatError(f"{path}: row {row}: has no {column} {axes[column][index[row]]}; {again}")
    cells = starts[line] + index
    counts = np.bincount(cells, minlength=int(ends[-1]))

    def describe(cell: int) -> str:
        line = int(np.searchsorted(ends, cell, side="right"))
        indices = [*map(int, np.unravel_index(line, outer or [1])), cell - int(starts[line])]
        pairs = zip(axes.items(), indices[-len(axes) :], strict=True)
        return ", ".join(f"{column} {values[index]}" for (column, values), index in pairs)

    if (counts == 0).any():
        lacks = f"lacks {(counts == 0).sum()} of {len(counts)} rows"
        raise FormatError(f"{path}: {lacks}, first {describe(int(counts.argmin()))}; {again}")
    if len(cells) > len(counts):
        repeated = np.ones(len(cells), bool)
        repeated[np.unique(cells, return_index=True)[1]] = False
        row = int(repeated.argmax())
        raise FormatError(f"{path}: duplicate row {row}: {describe(int(cells[row]))}; {again}")
    return positions
