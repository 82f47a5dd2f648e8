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
    """The interface of datasets that can be evaluated, such as `cfqa_data.Dataset`.

    Optional members are ``codes(source_id, codec, level)``, which returns a compressed feature as
    integers with the tables of their values, to be dequantised on the device, and ``tasks``, a
    mapping of task names to `cfqa_data.format.facts.TaskFacts`.
    """

    @property
    def labels(self) -> pa.Table:
        """One row per compressed feature: task, source_id, codec, level and the target."""

    def original(self, source_id: str) -> NDArray[Any]:
        """Return an original, float32 (N, C, T, D)."""

    def compressed(self, source_id: str, codec: str, level: int) -> NDArray[Any]:
        """Return a compressed feature, float32 (N, C, T, D)."""


def opened(dataset: FeatureSource | str | Path, **options: Any) -> FeatureSource:
    """Open the dataset at a path; return an open dataset unchanged.

    Args:
        dataset: The dataset, or its path.
        options: Options of `cfqa_data.load`, for a path only.

    Raises:
        MetricError: If options were given with an open dataset.
        FormatError: If the folder is not a dataset.
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
    """Return a hash that identifies a dataset, that of its manifest or else of its labels.

    The manifest identifies datasets that `cfqa_data.load` opened, whose files it lists with their
    hashes. Other datasets with a manifest may return other arrays, so their labels identify them.
    """
    from cfqa_data.format.layout import Layout
    from cfqa_data.format.manifest import hash_file, manifest_text

    if not _identified_by_manifest(dataset):
        return table_digest(dataset.labels)
    if dataset.path is not None:
        return hash_file(Layout(dataset.path).manifest)
    # For a repo on the Hub, hash the manifest as it would be written.
    return hashlib.sha256(manifest_text(dataset.manifest).encode()).hexdigest()


def dataset_name(dataset: Any) -> str:
    """Return the name of an open dataset; empty where it has no manifest."""
    return str(getattr(getattr(dataset, "manifest", None), "name", ""))


def feature_count(dataset: FeatureSource) -> int:
    """Return the number of compressed features of a dataset, even if it is opened in part."""
    if not _identified_by_manifest(dataset):
        return int(dataset.labels.num_rows)
    tasks = dataset.manifest.tasks.values()
    return sum(len(t.sources) * len(codec.levels) for t in tasks for codec in t.codecs.values())


def dataset_facts(dataset: FeatureSource) -> dict[str, Any]:
    """Return the attributes of an `Evaluation` that describe its dataset."""
    return {
        "dataset": dataset_identity(dataset),
        "dataset_name": dataset_name(dataset),
        "dataset_features": feature_count(dataset),
        "tasks": task_facts(dataset),
    }


def _identified_by_manifest(dataset: Any) -> TypeGuard[Dataset]:
    """Return whether a dataset was opened with a manifest that lists its files."""
    from cfqa_data.access.dataset import Dataset

    manifest = getattr(dataset, "manifest", None)
    return isinstance(dataset, Dataset) and manifest is not None and bool(manifest.files)


def arrays_digest(dataset: FeatureSource) -> str:
    """Return a hash of some features; empty where the manifest identifies the dataset."""
    if _identified_by_manifest(dataset):
        return ""
    digest = hashlib.sha256()
    rows = dataset.labels.select(KEYS[1:])
    for row in sorted({0, rows.num_rows // 2, rows.num_rows - 1}):
        source, codec, level = (column[row].as_py() for column in rows.columns)
        for array in (dataset.original(source), dataset.compressed(source, codec, int(level))):
            digest.update(np.asarray(array).tobytes())
    return digest.hexdigest()


def stored_rows(dataset: FeatureSource) -> NDArray[np.bool_]:
    """Return a mask of the rows whose features are stored; a folder may lack those of a codec."""
    labels = dataset.labels
    if "array" in labels.column_names and hasattr(dataset, "manifest"):
        return np.asarray(labels["array"].is_valid().to_numpy())
    return np.ones(labels.num_rows, dtype=bool)


def table_digest(table: pa.Table) -> str:
    """Return a hash of the values of a table that does not depend on its chunks."""
    return hashlib.sha256(repr(table.to_pydict()).encode()).hexdigest()


def task_facts(dataset: Any) -> Mapping[str, TaskFacts]:
    """Return the facts of the tasks of an open dataset, by name."""
    manifest = getattr(dataset, "manifest", None)
    if manifest is None:
        return dict(getattr(dataset, "tasks", {}))
    return {name: entry.facts for name, entry in manifest.tasks.items()}


def facts_of(task: str, known: Mapping[str, TaskFacts]) -> TaskFacts:
    """Return the facts of a task, with defaults where ``known`` has none.

    The defaults are the facts of format 1 for a task of this name, or else a score and a loss
    without a unit or a threshold of noticeable differences.
    """
    assumed = TaskFacts(task, task, Score("score", lower_better=True), Loss("loss"))
    return known.get(task) or TASKS.get(task) or assumed
