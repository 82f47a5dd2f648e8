"""Open datasets for scoring, identify them by a digest, and look up the facts of their tasks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

import numpy as np
from numpy.typing import NDArray

from cfqa_data.errors import MetricError
from cfqa_data.format.facts import Loss, Score, TaskFacts
from cfqa_data.format.format_1 import TASKS

if TYPE_CHECKING:
    import pyarrow as pa

    from cfqa_data.access.dataset import Dataset

__all__ = [
    "FeatureSource",
    "dataset_facts",
    "dataset_identity",
    "dataset_name",
    "facts_of",
    "feature_count",
    "opened",
    "stored_rows",
    "task_facts",
]

KEYS = ("task", "source_id", "codec", "level")
"""Columns of the labels that name a row."""


class FeatureSource(Protocol):
    """What is evaluated: a `cfqa_data.Dataset`, or anything that answers like one.

    It may also have ``codes(source_id, codec, level)``, a compressed feature as integers with the
    tables of their values, which are then dequantised on the device; and ``tasks``, a mapping of
    names to `cfqa_data.format.facts.TaskFacts`, for what it knows of its tasks.
    """

    @property
    def labels(self) -> pa.Table:
        """One row per compressed feature: task, source_id, codec, level and the target."""

    def original(self, source_id: str) -> NDArray[Any]:
        """Return an original, float32 (N, C, T, D)."""

    def compressed(self, source_id: str, codec: str, level: int) -> NDArray[Any]:
        """Return a compressed feature, float32 (N, C, T, D)."""


def opened(dataset: FeatureSource | str | Path, **options: Any) -> FeatureSource:
    """Return an open dataset as it is, and that at a path opened.

    Args:
        dataset: The dataset, or its path.
        options: Of `cfqa_data.load`, for a path only.

    Raises:
        MetricError: An option was given, and the dataset is open.
        FormatError: The folder is not a dataset.
    """
    if isinstance(dataset, str | Path):
        from cfqa_data.access.dataset import load

        return load(dataset, **options)
    given = [name for name, value in options.items() if value is not None and value is not False]
    if given:
        message = f"{' and '.join(given)} can be given only with a path"
        raise MetricError(f"{message}; open the dataset with them instead")
    return dataset


def dataset_identity(dataset: FeatureSource) -> str:
    """Return what tells a dataset from others: the hash of its manifest, or else of its labels.

    Only what `cfqa_data.load` opened is known to hold what its manifest says. Anything else, though
    it borrow a manifest, may give other arrays: it is identified by its labels.
    """
    from cfqa_data.format.layout import Layout
    from cfqa_data.format.manifest import hash_file, manifest_text

    if not _told_by_manifest(dataset):
        return table_digest(dataset.labels)
    if dataset.path is not None:
        return hash_file(Layout(dataset.path).manifest)
    # Of a repo on the Hub: as it is written.
    return hashlib.sha256(manifest_text(dataset.manifest).encode()).hexdigest()


def dataset_name(dataset: Any) -> str:
    """Return what an open dataset is called; empty where it has no manifest."""
    return str(getattr(getattr(dataset, "manifest", None), "name", ""))


def feature_count(dataset: FeatureSource) -> int:
    """Return how many compressed features a dataset has, also of one opened in part."""
    if not _told_by_manifest(dataset):
        return int(dataset.labels.num_rows)
    tasks = dataset.manifest.tasks.values()
    return sum(len(t.sources) * len(codec.levels) for t in tasks for codec in t.codecs.values())


def dataset_facts(dataset: FeatureSource) -> dict[str, Any]:
    """Return what an `Evaluation` keeps of its dataset, by attribute."""
    return {
        "dataset": dataset_identity(dataset),
        "dataset_name": dataset_name(dataset),
        "dataset_features": feature_count(dataset),
        "tasks": task_facts(dataset),
    }


def _told_by_manifest(dataset: Any) -> TypeGuard[Dataset]:
    """Whether a dataset was opened with a manifest of its files."""
    from cfqa_data.access.dataset import Dataset

    manifest = getattr(dataset, "manifest", None)
    return isinstance(dataset, Dataset) and manifest is not None and bool(manifest.files)


def arrays_digest(dataset: FeatureSource) -> str:
    """Return a hash of some features of a dataset whose labels alone would tell it from others."""
    if _told_by_manifest(dataset):
        return ""
    found = hashlib.sha256()
    rows = dataset.labels.select(KEYS[1:])
    for row in sorted({0, rows.num_rows // 2, rows.num_rows - 1}):
        source, codec, level = (column[row].as_py() for column in rows.columns)
        for array in (dataset.original(source), dataset.compressed(source, codec, int(level))):
            found.update(np.asarray(array).tobytes())
    return found.hexdigest()


def stored_rows(dataset: FeatureSource) -> NDArray[np.bool_]:
    """Return which rows have a feature: a folder need not hold those of every codec."""
    labels = dataset.labels
    if "array" in labels.column_names and hasattr(dataset, "manifest"):
        return np.asarray(labels["array"].is_valid().to_numpy())
    return np.ones(labels.num_rows, dtype=bool)


def table_digest(table: pa.Table) -> str:
    """Return a hash of what a table holds, however it is cut into chunks."""
    return hashlib.sha256(repr(table.to_pydict()).encode()).hexdigest()


def task_facts(dataset: Any) -> Mapping[str, TaskFacts]:
    """Return the facts that an open dataset gives of its tasks, by name."""
    manifest = getattr(dataset, "manifest", None)
    if manifest is None:
        return dict(getattr(dataset, "tasks", {}))
    return {name: entry.facts for name, entry in manifest.tasks.items()}


def facts_of(task: str, given: Mapping[str, TaskFacts]) -> TaskFacts:
    """Return the facts of a task; where none are given, what there is to assume.

    That is what format 1 says of a task of this name, or else a score and a loss without a unit, of
    which any difference counts.
    """
    assumed = TaskFacts(task, task, Score("score", lower_better=True), Loss("loss"))
    return given.get(task) or TASKS.get(task) or assumed
