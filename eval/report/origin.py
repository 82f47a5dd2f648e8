"""What was scored, and what it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfqa_data.eval.stored import dataset_identity
from cfqa_data.manifest import FORMAT_VERSION

if TYPE_CHECKING:
    from cfqa_data.dataset import Dataset
    from cfqa_data.eval import Evaluation
    from cfqa_data.manifest import Manifest

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
        valid: Sources whose label varies over all codecs and levels: the means are over these.
    """

    task: str
    sources: int
    of: int | None
    features: int
    valid: int


def origin_of(dataset: Dataset | str | Path | None) -> Origin | None:
    """Return what a dataset was made from; None where there is no dataset.

    Raises:
        FormatError: The folder is not a dataset.
    """
    if dataset is None:
        return None
    if isinstance(dataset, str | Path):
        from cfqa_data.dataset import load

        dataset = load(dataset)
    manifest = dataset.manifest
    ladders = [
        (
            task,
            codec,
            ladder.parameter_name,
            ", ".join(f"{level:g}" for level in ladder.levels),
            ", ".join(f"{name} {value}" for name, value in ladder.options.items()),
        )
        for task, entry in manifest.recipe.tasks.items()
        for codec, ladder in entry.ladders.items()
    ]
    return Origin(manifest, dataset_identity(dataset), FORMAT_VERSION, tuple(ladders))


def counts(evaluation: Evaluation, origin: Origin | None) -> list[TaskCounts]:
    """Count what was scored of each task."""
    held: Mapping[str, Any] = origin.manifest.tasks if origin else {}
    pairs = evaluation.labels.select(["task", "source_id"]).to_pylist()
    rows = {row["task"]: row for row in evaluation.across_codecs.to_pylist()}
    found = []
    for task, row in rows.items():
        ids = [pair["source_id"] for pair in pairs if pair["task"] == task]
        of = len(held[task].sources) if task in held else None
        found.append(TaskCounts(task, len(set(ids)), of, len(ids), row["n_valid"]))
    return found
