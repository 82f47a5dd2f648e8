"""What was scored, and what it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfqa_data.errors import MetricError
from cfqa_data.eval.datasets import dataset_identity, opened

if TYPE_CHECKING:
    from cfqa_data.eval import Evaluation
    from cfqa_data.eval.datasets import FeatureSource
    from cfqa_data.format.manifest import Manifest

__all__ = ["Origin", "TaskCounts", "counts", "origin_of"]


@dataclass(frozen=True)
class Origin:
    """The dataset's manifest as the page shows it.

    Attributes:
        manifest: The manifest.
        identity: SHA-256 of its file, as hex.
        format: Version of the folder's format.
        ladders: (task, codec, parameter, its levels, options) of every ladder.
    """

    manifest: Manifest
    identity: str
    format: int
    ladders: tuple[tuple[str, str, str, str, str], ...]


@dataclass(frozen=True)
class TaskCounts:
    """What was scored of a task.

    Attributes:
        task: The task.
        sources: Sources that were scored.
        of: Sources that the dataset has; None if that is not known.
        features: Compressed features that were scored.
        valid: Sources whose label varies over all codecs and levels: the means are over these,
            but for those on which a metric lacks a score.
    """

    task: str
    sources: int
    of: int | None
    features: int
    valid: int


def origin_of(
    evaluation: Evaluation, dataset: FeatureSource | str | Path | None, follow_links: bool
) -> Origin | None:
    """Return what the dataset that was scored was made from; None where that is not known.

    Raises:
        MetricError: Another dataset was scored.
        FormatError: The folder is not a dataset.
    """
    from cfqa_data.access.dataset import Dataset

    if dataset is None:
        return None
    dataset = opened(dataset, follow_links=follow_links)
    identity = dataset_identity(dataset)
    if evaluation.dataset not in (None, identity):
        raise MetricError("another dataset was scored; give that one, or none")
    if not isinstance(dataset, Dataset):
        return None
    manifest = dataset.manifest
    ladders = [
        (
            task,
            codec,
            held.facts.parameter.name,
            ", ".join(f"{level:g}" for level in held.levels),
            ", ".join(f"{name} {value}" for name, value in options.items() if name != "models"),
        )
        for task, entry in manifest.tasks.items()
        for codec, held in entry.codecs.items()
        for options in [held.origin.options if held.origin else {}]
    ]
    return Origin(manifest, identity, manifest.format, tuple(ladders))


def counts(evaluation: Evaluation, origin: Origin | None) -> list[TaskCounts]:
    """Count what was scored of each task."""
    held: Mapping[str, Any] = origin.manifest.tasks if origin else {}
    pairs = evaluation.labels.select(["task", "source_id"]).to_pylist()
    rows = {row["task"]: row for row in evaluation.across_codecs.to_pylist()}
    found = []
    for task, row in rows.items():
        ids = [pair["source_id"] for pair in pairs if pair["task"] == task]
        of = len(held[task].sources) if task in held else None
        valid = row["n_valid"] + row["n_missing"]
        found.append(TaskCounts(task, len(set(ids)), of, len(ids), valid))
    return found
