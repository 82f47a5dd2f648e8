"""Write a dataset that is in memory as a dataset folder."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np

from cfqa_data.access.dataset import Dataset
from cfqa_data.access.memory import MemoryFolder
from cfqa_data.arrow import pa
from cfqa_data.builders.pipeline.label import baseline_values
from cfqa_data.builders.pipeline.lock import try_lock
from cfqa_data.builders.sharing.hub_limits import check_terms
from cfqa_data.card.write import write_card
from cfqa_data.console.progress import Progress
from cfqa_data.console.terminal import listener
from cfqa_data.errors import CfqaError, clear_disk_errors
from cfqa_data.extras import extras
from cfqa_data.format import storage
from cfqa_data.format.codes import create_codes_array, write_codes
from cfqa_data.format.facts import CodecEntry, TaskEntry, Terms
from cfqa_data.format.invariants import shard_of
from cfqa_data.format.layout import Layout, is_tool_file
from cfqa_data.format.manifest import package_versions, write_manifest
from cfqa_data.format.schema import BASELINES, label_schema, original_rows, originals_schema
from cfqa_data.integrity.health import health
from cfqa_data.paths import real_path

__all__ = ["save"]


@extras("eval")
def save(
    dataset: Dataset,
    folder: str | Path,
    *,
    licence: str,
    link: str = "",
    attribution: str = "",
    progress: Progress | None = None,
) -> Path:
    """Write a dataset of :func:`cfqa_data.from_arrays` as a folder.

    Memory holds the originals of one shard and the compressed features of one source at a time. A
    temporary folder beside the target is renamed when it is complete. One that a killed process
    left is removed when the same folder is saved again.

    Args:
        dataset: The complete dataset, not a part of its rows.
        folder: Target folder, new or empty.
        licence: Licence identifier of the Hub, such as "cc-by-4.0", or "other" with a `link`.
        link: URL of the licence's text.
        attribution: Authors to credit.
        progress: Display that is notified of every source; bars on a terminal if None.

    Returns:
        The absolute path of the folder.

    Raises:
        CfqaError: If the folder is not empty, the dataset is already a folder or is incomplete, or
            the licence is not an identifier.
        FormatError: If an array has values that are not finite.
        DiskError: If the disk is full or not writable.
    """
    if not isinstance(dataset._folder, MemoryFolder):
        raise CfqaError(f"{dataset.location} is already a folder: copy it, or export its features")
    (entry,) = dataset.manifest.tasks.values()
    if len(dataset) != entry.rows:
        raise CfqaError(
            f"{len(dataset)} of {entry.rows} rows are not the complete dataset: save all of it"
        )
    terms = Terms(licence, link, attribution)
    check_terms(terms)
    entry = replace(entry, terms=terms)
    with clear_disk_errors(f"saving {dataset.manifest.name!r}"), _new_folder(folder) as root:
        layout = Layout(root)
        with listener(progress) as shown:
            rows = _write_features(layout, dataset, entry, shown)
        labels = _labels(dataset, rows)
        storage.write_table(layout.labels(entry.name), labels)
        storage.write_table(layout.originals_table, _originals(layout, dataset, entry))
        manifest = replace(
            dataset.manifest,
            tasks={entry.name: entry},
            versions=package_versions(("cfqa-data",)),
            health=tuple(health(labels)),
        )
        write_card(root, manifest)
        write_manifest(root, manifest)
    return real_path(folder)


@contextmanager
def _new_folder(folder: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside the target, and rename it once it is complete.

    Raises:
        CfqaError: If the target is not an empty folder, or cannot be written to.
    """
    root = real_path(folder)
    storage.check_folder(root)
    if root.exists() and not root.is_dir():
        raise CfqaError(f"{folder} is a file: choose a folder")
    if root.exists() and any(not is_tool_file(path.name) for path in root.iterdir()):
        raise CfqaError(f"{folder} is not empty: choose a new or empty folder")
    _clear(root)
    try:
        with ExitStack() as locks, storage.atomic_path(root) as partial:
            partial.mkdir()
            _lock(partial, locks)
            yield partial
            for left in root.iterdir() if root.exists() else ():
                if is_tool_file(left.name):
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        raise CfqaError(f"{folder} is no longer empty: choose another folder") from None


def _clear(root: Path) -> None:
    """Remove the temporary folders beside a folder that no running process has locked."""
    for left in root.parent.glob(f"{escape(root.name)}.*-*{storage.PARTIAL}"):
        with ExitStack() as locks:
            if left.is_dir() and not left.is_symlink() and _lock(left, locks):
                shutil.rmtree(left, ignore_errors=True)


def _lock(folder: Path, locks: ExitStack) -> bool:
    """Lock a folder until the stack is closed or the process ends; return whether it succeeded."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # some systems cannot open folders
        return False
    locks.callback(os.close, handle)
    return try_lock(handle) is True


def _write_features(
    layout: Layout, dataset: Dataset, entry: TaskEntry, progress: Progress
) -> dict[tuple[str, str], dict[str, np.ndarray]]:
    """Write originals and arrays; return the baseline values (L,) of each source and codec."""
    for codec in entry.codecs.values():
        create_codes_array(
            layout.compressed(entry.name, codec.name),
            sources=len(entry.sources),
            levels=len(codec.levels),
            shape=entry.shape,
            quantizer=None,
            centres=(),
            source_ids=entry.sources,
        )
    progress.start("save", len(entry.sources), "sources")
    values = {}
    for shard in range(entry.shards):
        ids = entry.sources[shard * entry.shard : (shard + 1) * entry.shard]
        path = layout.originals(entry.name, shard, entry.shards)
        storage.write_tensors(path, {source: dataset.original(source) for source in ids})
        for position, source in enumerate(ids, shard * entry.shard):
            original = dataset.original(source)
            for codec in entry.codecs.values():
                decoded = _versions(dataset, source, codec)
                write_codes(layout.compressed(entry.name, codec.name), position, decoded)
                values[source, codec.name] = baseline_values(original, decoded)
            progress.advance()
    progress.finish()
    return values


def _versions(dataset: Dataset, source: str, codec: CodecEntry) -> np.ndarray:
    """Return a source's compressed features by a codec, float32 (L, N, C, T, D)."""
    levels = range(len(codec.levels))
    return np.stack([dataset.compressed(source, codec.name, level) for level in levels])


def _labels(dataset: Dataset, values: dict[tuple[str, str], dict[str, np.ndarray]]) -> Any:
    """Return the label rows with the baselines."""
    rows = []
    for row in dataset.labels.to_pylist():
        arrays = values[row["source_id"], row["codec"]]
        at_level = {name: float(arrays[name][row["level"]]) for name in BASELINES}
        baselines = {name: None if np.isnan(value) else value for name, value in at_level.items()}
        rows.append(row | baselines)
    return pa.Table.from_pylist(rows, schema=label_schema(2))


def _originals(layout: Layout, dataset: Dataset, entry: TaskEntry) -> Any:
    """Return the table of originals, one row per original."""
    labels = {row["source_id"]: row for row in dataset.labels.to_pylist()}
    names = "tokens", "reference_score", "reference_loss"
    columns = ([labels[source][name] for source in entry.sources] for name in names)
    rows = original_rows(entry, range(len(entry.sources)), *columns)
    for index, row in enumerate(rows):
        path = layout.originals(entry.name, shard_of(index, entry.shard), entry.shards)
        row |= {"array": layout.relative(path), "key": row["source_id"]}
    return pa.Table.from_pylist(rows, schema=originals_schema(2))
