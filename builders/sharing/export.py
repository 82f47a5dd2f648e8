"""Export the features of a dataset as plain float32 files for other tools.

Files are written atomically, one by one. If an export is interrupted, running it again resumes it
after the last complete file. The index is written last and marks the export as complete.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby, repeat
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from cfqa_data.access.dataset import Dataset, LoadOptions, load
from cfqa_data.arrow import pa, pc
from cfqa_data.builders.sharing.export_formats import FORMATS, ExportFile, Format
from cfqa_data.console.progress import Progress, Silent
from cfqa_data.errors import CfqaError, check_known, clear_disk_errors
from cfqa_data.extras import extras
from cfqa_data.format.facts import TaskEntry
from cfqa_data.format.layout import is_tool_file
from cfqa_data.format.storage import PARTIAL, check_folder, write_table, write_text
from cfqa_data.paths import absolute_path, real_path

__all__ = ["INDEX", "MARKER", "Exported", "export"]

INDEX = "index.parquet"
"""Table with a row per compressed feature: its label, and its and its original's location."""

COLUMNS = ("task", "codec", "level", "fold")
"""Columns by which the features of an export are selected."""

MARKER = "export.json"
"""File that describes an export, by which a later run decides whether it may resume it."""

ORIGINAL = "original"
"""Name that originals have in place of a codec's name."""

FACTS = ("task", "source_id", "group", "fold", "reference_score", "reference_loss", "tokens")
"""Columns of the labels that describe the original."""


@dataclass(frozen=True)
class Exported:
    """Result of an export.

    Attributes:
        root: Folder of the export.
        written: Number of files (for Zarr, arrays) that this run wrote.
        kept: Number of files that an earlier run had written.
        features: Number of features in all files, including originals.
        size: Bytes of all features as float32 arrays.
        notes: A line for each codec that was left out, because its features are not stored.
    """

    root: Path
    written: int
    kept: int
    features: int
    size: int
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-safe data."""
        return self.__dict__ | {"root": str(self.root), "notes": list(self.notes)}


@extras()
@clear_disk_errors("exporting")
def export(
    path: str | Path,
    out: str | Path,
    kind: str,
    *,
    task: str | None = None,
    originals: bool = True,
    progress: Progress | None = None,
    **options: Unpack[LoadOptions],
) -> Exported:
    """Write features as plain float32 files, or resume an interrupted export.

    Codecs whose features are not stored are left out; ``notes`` of the result names them.

    Args:
        path: Dataset, as for :func:`cfqa_data.load`.
        out: Output folder: new, empty, or with an interrupted export of the same features.
        kind: Name of the format, one of `FORMATS`.
        task: Task to export; all if None.
        originals: Whether to write the originals too.
        progress: Display that is notified of every feature.
        options: Further arguments of :func:`cfqa_data.load`, which select rows.

    Raises:
        DiskError: If the disk is full or not writable; finished files are kept.
        CfqaError: If there is no such format, nothing to export, or the folder contains other
            files.
        FormatError: If the dataset, or a feature in it, cannot be read.
    """
    check_known("format", kind, FORMATS, CfqaError)
    progress, out = progress or Silent(), absolute_path(out)
    dataset = load(path, task, **options)
    if not len(dataset):
        raise CfqaError(f"{path}: no compressed feature has that task, codec, level and fold")
    stored = dataset.labels["array"].is_valid()
    labels = dataset.labels.filter(stored)
    if not labels.num_rows:
        raise CfqaError(f"{path}: those features are not stored")
    rest = dataset.labels.filter(pc.invert(stored))
    left_out = rest.group_by(["task", "codec"], use_threads=False).aggregate([]).to_pylist()
    message = "its features are not stored and are left out"
    notes = tuple(f"codec {row['codec']!r} of {row['task']}: {message}" for row in left_out)
    facts = _facts(dataset, labels, kind, originals)
    if options.get("source") is not None:
        facts["source_id"] = sorted(set(labels["source_id"].to_pylist()))
    _open_folder(out, dataset, facts)
    features = len(labels) + (len(pc.unique(labels["source_id"])) if originals else 0)
    progress.start("export", features, "features")
    run = _Run(dataset, out, FORMATS[kind], progress)
    index = [
        table for name in dataset.manifest.tasks for table in run.task(name, labels, originals)
    ]
    progress.finish()
    write_table(out / INDEX, pa.concat_tables(index).combine_chunks())
    return Exported(out, run.written, run.kept, features, run.size, notes)


def _facts(dataset: Dataset, labels: pa.Table, kind: str, originals: bool) -> dict[str, Any]:
    """Return the description of an export, which must be equal for an export to be resumed."""
    manifest = json.dumps(dataset.manifest.to_dict(), sort_keys=True)
    return {
        "format": kind,
        "dataset": dataset.manifest.name,
        "manifest": hashlib.sha256(manifest.encode()).hexdigest(),
        "originals": originals,
    } | {column: sorted(set(labels[column].to_pylist())) for column in COLUMNS}


def _open_folder(out: Path, dataset: Dataset, facts: dict[str, Any]) -> None:
    """Create the export's folder, or check that it may be resumed and remove partial files.

    Raises:
        CfqaError: If it is inside the dataset's folder, is a file, or contains other files.
    """
    root = dataset.path.resolve() if dataset.path else None
    target = real_path(out)
    if root is not None and root in (target, *target.parents):
        raise CfqaError(f"{out}: is inside the dataset folder; export to another")
    check_folder(out)
    marker = out / MARKER
    if not marker.exists():
        names = [path.name for path in out.iterdir()] if out.is_dir() else []
        if not all(name.endswith(PARTIAL) or is_tool_file(name) for name in names):
            raise CfqaError(f"{out}: is not empty; name a new folder")
    else:
        recorded = None
        with suppress(OSError, ValueError, RecursionError):
            recorded = json.loads(marker.read_text(encoding="utf-8"))
        if recorded != facts:
            raise CfqaError(
                f"{out}: contains another export; name a new folder, or remove that one"
            )
        for partial in list(out.rglob(f"*{PARTIAL}")):
            shutil.rmtree(partial) if partial.is_dir() else partial.unlink(missing_ok=True)
    write_text(marker, json.dumps(facts, indent=1) + "\n")


@dataclass
class _Run:
    """A run of an export: writes the missing files, and counts all."""

    dataset: Dataset
    out: Path
    form: Format
    progress: Progress
    written: int = 0
    kept: int = 0
    size: int = 0

    def task(self, task: str, labels: pa.Table, originals: bool) -> Iterator[pa.Table]:
        """Write the files of a task; yield each codec's rows with the locations of features."""
        entry = self.dataset.manifest.tasks[task]
        rows = labels.filter(pc.equal(labels["task"], task)).drop_columns(["array", "index"])
        number = pc.index_in(rows["source_id"], pa.array(entry.sources)).to_numpy()
        keys = [rows["level"].to_numpy(), number]
        rows = rows.take(pa.array(np.lexsort(keys[::-1] if self.form.by_level else keys)))
        if originals and rows.num_rows:
            first = pc.index_in(pa.array(entry.sources), rows["source_id"].combine_chunks())
            facts = [name for name in FACTS if name in rows.column_names]
            located = self._write(rows.take(first.drop_null()).select(facts), ORIGINAL, entry)
            locations = [name for name in located.column_names if name not in FACTS]
        for codec in entry.codecs:
            chosen = rows.filter(pc.equal(rows["codec"], codec))
            if not chosen.num_rows:
                continue
            table = self._write(chosen, codec, entry)
            if originals:
                own = located.take(pc.index_in(table["source_id"], located["source_id"]))
                for name in locations:
                    table = table.append_column(f"original_{name}", own[name])
            yield table

    def _write(self, rows: pa.Table, codec: str, entry: TaskEntry) -> pa.Table:
        """Write the files of the rows of a codec or of originals; add columns of locations."""
        numbers = pc.index_in(rows["source_id"], pa.array(entry.sources)).to_pylist()
        levels = rows["level"].to_pylist() if "level" in rows.column_names else repeat(None)
        names = [
            self.form.name(entry.name, codec, level, number)
            for level, number in zip(levels, numbers, strict=False)
        ]
        for name, same in groupby(range(len(names)), names.__getitem__):
            indices = list(same)
            part = ExportFile(name, entry.shape, rows.slice(indices[0], len(indices)))
            self.size += 4 * sum(map(math.prod, part.shapes))
            if (self.out / name).exists():
                self.kept += 1
                self.progress.advance(len(indices))
            else:
                self.form.write(self.out / name, part, self._features(part))
                self.written += 1
        whole = ExportFile("", entry.shape, rows)
        for name, values in {"file": names, **self.form.locations(whole)}.items():
            rows = rows.append_column(name, pa.array(values))
        return rows

    def _features(self, part: ExportFile) -> Iterator[np.ndarray]:
        """Yield the features of a file's rows, one at a time."""
        for row in part.rows.to_pylist():
            source = row["source_id"]
            if "level" in row:
                yield self.dataset.compressed(source, row["codec"], row["level"])
            else:
                yield self.dataset.original(source)
            self.progress.advance()
