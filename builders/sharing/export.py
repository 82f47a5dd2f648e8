"""Export the features of a dataset as plain float32 files for other tools.

An export appears file by file, each whole or not at all, and goes on after the last whole one when
it is run again; its index, written last, says that it is complete.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np

from cfqa_data.access.dataset import Dataset, load
from cfqa_data.builders.sharing.export_formats import FORMATS, ExportFile, Format
from cfqa_data.console.progress import Progress, Silent
from cfqa_data.disk import clear_disk_errors
from cfqa_data.errors import CfqaError, unknown_name
from cfqa_data.extras import extras
from cfqa_data.format.layout import left_by_tools
from cfqa_data.format.storage import PARTIAL, check_folder, write_table, write_text
from cfqa_data.paths import absolute_path, real_path
from cfqa_data.registry import Plugins

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["INDEX", "MARKER", "Exported", "export"]

INDEX = "index.parquet"
"""One row per exported compressed feature: its label, and where it and its original are."""

COLUMNS = ("task", "codec", "level", "fold")
"""What the features of an export are chosen by."""

MARKER = "export.json"
"""What an export folder is of; by it a later run knows that it may go on there."""

TABLES_AT_ONCE = 256
"""Tables of the index before they are joined."""

FACTS = ("task", "source_id", "group", "fold", "reference_score", "reference_loss", "tokens")
"""Columns of the labels that say something of the original."""


@dataclass(frozen=True)
class Exported:
    """What an export did.

    Attributes:
        root: its folder.
        written: files (for Zarr, arrays) that this run wrote.
        kept: those that an earlier run had written.
        features: float32 features in all of them, originals included.
        size: bytes of those as plain arrays.
        notes: codecs that were left out, as nothing is stored of their features.
    """

    root: Path
    written: int
    kept: int
    features: int
    size: int
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the facts, JSON-safe."""
        return self.__dict__ | {"root": str(self.root), "notes": list(self.notes)}


@extras()
@clear_disk_errors("exporting")
def export(
    path: str | Path,
    out: str | Path,
    kind: str,
    *,
    task: str | None = None,
    codec: str | Iterable[str] | None = None,
    level: SupportsIndex | Iterable[SupportsIndex] | None = None,
    fold: SupportsIndex | Iterable[SupportsIndex] | None = None,
    originals: bool = True,
    progress: Progress | None = None,
    untrusted: bool = False,
    follow_links: bool = False,
    plugins: Plugins | None = None,
) -> Exported:
    """Write features as plain float32 files; goes on where an earlier run stopped.

    Codecs of which a folder stores nothing are left out, which ``notes`` of the answer tell.

    Args:
        path: what :func:`cfqa_data.load` opens.
        out: the folder to make; one that an export of the same began is gone on with.
        kind: name of the format, one of `FORMATS`.
        task: only this task.
        codec: only this codec, or these.
        level: only this level, or these.
        fold: only the sources of this fold, or of these.
        originals: also write the originals.
        progress: notified of every feature.
        untrusted: decode bitstreams in child processes that can do nothing else.
        follow_links: read what links in a folder lead to, wherever that is.
        plugins: classes of codecs that are not installed, or `module:Class` of some.

    Raises:
        DiskError: the disk is full, or may not be written to; what is finished is kept.
        CfqaError: there is no such format, nothing to export, or the folder holds something else.
        FormatError: the dataset, or a feature in it, cannot be read.
    """
    import pyarrow.compute as pc

    if kind not in FORMATS:
        raise CfqaError(unknown_name("format", kind, FORMATS))
    progress, out = progress or Silent(), absolute_path(out)
    dataset = load(
        path,
        task,
        codec=codec,
        level=level,
        fold=fold,
        untrusted=untrusted,
        follow_links=follow_links,
        plugins=plugins,
    )
    if not len(dataset):
        raise CfqaError(f"{path}: no compressed feature is of that task, codec, level and fold")
    stored = dataset.labels["array"].is_valid()
    labels = dataset.labels.filter(stored)
    if not labels.num_rows:
        raise CfqaError(f"{path}: nothing is stored of those features")
    rest = dataset.labels.filter(pc.invert(stored))
    left_out = dict.fromkeys(
        zip(*(rest[name].to_pylist() for name in ("task", "codec")), strict=True)
    )
    message = "nothing is stored of its features, which are left out"
    notes = tuple(f"codec {codec!r} of {task}: {message}" for task, codec in left_out)
    _open_folder(out, dataset, _facts(dataset, labels, kind, originals))
    form, index = FORMATS[kind], _Index(FORMATS[kind])
    features = len(labels) + (len(pc.unique(labels["source_id"])) if originals else 0)
    parts = written = size = 0
    progress.start("export", features, "features")
    for part in _parts(dataset, labels, form, originals):
        parts += 1
        size += 4 * sum(map(math.prod, part.shapes))
        if (out / part.name).exists():
            progress.advance(part.rows.num_rows)
        else:
            form.write(out / part.name, part, _features(dataset, part, progress))
            written += 1
        index.add(part)
    progress.finish()
    write_table(out / INDEX, index.table())
    return Exported(out, written, parts - written, features, size, notes)


def _facts(dataset: Dataset, labels: pa.Table, kind: str, originals: bool) -> dict[str, Any]:
    """Return what two exports share if one may go on with the other."""
    manifest = json.dumps(dataset.manifest.to_dict(), sort_keys=True)
    return {
        "format": kind,
        "dataset": dataset.manifest.name,
        "manifest": hashlib.sha256(manifest.encode()).hexdigest(),
        "originals": originals,
    } | {column: sorted(set(labels[column].to_pylist())) for column in COLUMNS}


def _open_folder(out: Path, dataset: Dataset, facts: dict[str, Any]) -> None:
    """Make the export's folder, or see that it is one of the same, and clear what a kill left.

    Raises:
        CfqaError: it is in the dataset's folder, a file, or a folder that holds something else.
    """
    root = dataset.path.resolve() if dataset.path else None
    target = real_path(out)
    if root is not None and root in (target, *target.parents):
        raise CfqaError(f"{out}: is in the dataset's own folder; export to another")
    check_folder(out)
    marker = out / MARKER
    if not marker.exists():
        names = [path.name for path in out.iterdir()] if out.is_dir() else []
        if not all(name.endswith(PARTIAL) or left_by_tools(name) for name in names):
            raise CfqaError(f"{out}: holds something else; name a new folder to export to")
    else:
        found = None
        with suppress(OSError, ValueError, RecursionError):
            found = json.loads(marker.read_text(encoding="utf-8"))
        if found != facts:
            raise CfqaError(f"{out}: holds another export; name a new folder, or remove that one")
        for partial in list(out.rglob(f"*{PARTIAL}")):
            shutil.rmtree(partial) if partial.is_dir() else partial.unlink(missing_ok=True)
    write_text(marker, json.dumps(facts, indent=1) + "\n")


def _parts(
    dataset: Dataset, labels: pa.Table, form: Format, originals: bool
) -> Iterator[ExportFile]:
    """Yield what to write, originals of a task first."""
    import pyarrow as pa
    import pyarrow.compute as pc

    labels = labels.drop_columns(["array", "index"])
    for task in dict.fromkeys(labels["task"].to_pylist()):
        entry = dataset.manifest.tasks[task]
        numbers = {source: number for number, source in enumerate(entry.sources)}
        rows = labels.filter(pc.equal(labels["task"], task))
        number = np.array([numbers[source] for source in rows["source_id"].to_pylist()])
        rows = rows.take(pa.array(np.lexsort((rows["level"].to_numpy(), number))))
        if originals:
            first = np.unique(np.sort(number), return_index=True)[1]
            facts = [name for name in FACTS if name in rows.column_names]
            yield from form.split(rows.take(pa.array(first)).select(facts), entry.shape, numbers)
        for codec in dataset.manifest.tasks[task].codecs:
            chosen = rows.filter(pc.equal(rows["codec"], codec))
            yield from form.split(chosen, entry.shape, numbers)


def _features(dataset: Dataset, part: ExportFile, progress: Progress) -> Iterator[np.ndarray]:
    """Yield the features of a part's rows, one at a time."""
    for row in part.rows.to_pylist():
        source = row["source_id"]
        if part.levels:
            yield dataset.compressed(source, row["codec"], row["level"])
        else:
            yield dataset.original(source)
        progress.advance()


class _Index:
    """The labels of what was exported, with the places of the features and originals.

    Tables of few rows take many times the memory of their rows: they are joined now and then.
    """

    def __init__(self, form: Format) -> None:
        self._form = form
        self._tables: dict[bool, list[pa.Table]] = {False: [], True: []}

    def add(self, part: ExportFile) -> None:
        """Take the rows of a part."""
        import pyarrow as pa

        table = part.rows.append_column("file", pa.array([part.name] * part.rows.num_rows))
        for name, values in self._form.places(part).items():
            table = table.append_column(name, pa.array(values))
        tables = self._tables[bool(part.levels)]
        tables.append(table)
        if len(tables) >= TABLES_AT_ONCE:
            tables[:] = [pa.concat_tables(tables).combine_chunks()]

    def table(self) -> pa.Table:
        """Return a row per compressed feature."""
        import pyarrow as pa

        index = pa.concat_tables(self._tables[True])
        if self._tables[False]:
            first = pa.concat_tables(self._tables[False])
            places = [name for name in first.column_names if name not in FACTS]
            rows = {source: row for row, source in enumerate(first["source_id"].to_pylist())}
            sources = index["source_id"].to_pylist()
            chosen = first.take(pa.array([rows[source] for source in sources]))
            for name in places:
                index = index.append_column(f"original_{name}", chosen[name])
        return index.combine_chunks()
