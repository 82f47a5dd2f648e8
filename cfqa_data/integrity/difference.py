"""Compare two datasets built from the same recipe, such as on two machines.

Other processors and software versions round differently: features differ in their last digits, a
few codes differ by one, and labels differ accordingly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cfqa_data.access.dataset import Dataset
from cfqa_data.arrow import pa, pc
from cfqa_data.console.progress import Progress, Silent
from cfqa_data.console.text import percent, table_text
from cfqa_data.errors import CfqaError, FormatError
from cfqa_data.format.layout import NAMES

__all__ = ["Difference", "difference_text", "differences"]

ORIGINALS = ("reference_score", "reference_loss")
COMPRESSED = ("score", "loss", "bits", "mse", "cosine", "cka")
"""Columns to compare. The distortion is not among them: as the difference of two scores, it has a
large relative error where it is small."""

Key = tuple[str, ...] | tuple[str, int]


@dataclass(frozen=True)
class Difference:
    """Differences of the features of a codec, or of the originals of a task.

    Attributes:
        task: Name of the task.
        codec: Name of the codec; None for the originals.
        features: Number of features in both datasets.
        lacking: Number of features in only one dataset.
        labels: Number of features with a label that differs by more than the tolerance.
        distortion: Largest difference of the distortion; for originals, of the reference score.
        values: Share of feature values that differ.
        error: RMS of the differences of feature values, relative to the RMS of the values.
    """

    task: str
    codec: str | None
    features: int
    lacking: int
    labels: int
    distortion: float
    values: float
    error: float


def differences(
    dataset: Dataset, other: Dataset, tolerance: float = 1e-6, progress: Progress | None = None
) -> list[Difference]:
    """Compare two datasets: for each task the originals, then the features of each codec.

    Features whose files have the same hashes in both manifests are not read.

    Args:
        dataset: A dataset.
        other: The dataset to compare it with.
        tolerance: Largest relative difference at which labels agree.
        progress: Listener that is notified of every part.

    Raises:
        FormatError: If the datasets have no common task, or a file is missing or damaged.
        CfqaError: If the tolerance is not a number from 0 to 1.
    """
    if not 0 <= tolerance <= 1:
        raise CfqaError(f"tolerance must be a number from 0 to 1, not {tolerance}")
    tasks = [task for task in dataset.manifest.tasks if task in other.manifest.tasks]
    if not tasks:
        raise FormatError(f"{dataset.location} and {other.location} have no common task")
    parts = [
        (task, codec)
        for task in tasks
        for codec in (None, *dict.fromkeys((*_codecs(dataset, task), *_codecs(other, task))))
    ]
    progress = progress or Silent()
    progress.start("compare", len(parts), "parts")
    compared = []
    for task, codec in parts:
        compared.append(_difference(dataset, other, task, codec, tolerance))
        progress.advance()
    progress.finish()
    return compared


def difference_text(compared: Sequence[Difference]) -> str:
    """Return differences as a table with a legend and a verdict on the labels."""
    heads = ["task", "codec", "features", "lacking", "labels differ", "distortion"]
    rows = [
        [
            one.task,
            one.codec or "originals",
            f"{one.features:,}",
            f"{one.lacking:,}",
            f"{one.labels:,}",
            f"{one.distortion:.2g}",
            percent(one.values, 3),
            f"{one.error:.2g}",
        ]
        for one in compared
    ]
    table = table_text([[*heads, "values differ", "error"], *rows], left=2)
    verdict = "labels differ" if any(one.labels for one in compared) else "labels agree"
    if lacking := sum(one.lacking for one in compared):
        verdict += f"; {lacking} features are in one dataset only"
    return (
        f"{table}\n\nfeatures: in both; lacking: in one only; labels differ: features with a "
        "label beyond\nthe tolerance; distortion: largest difference; values differ: share of "
        "values that differ;\nerror: RMS of the differences relative to the RMS of the values"
        f"\n\n{verdict}"
    )


def _codecs(dataset: Dataset, task: str) -> list[str]:
    return list(dataset.manifest.tasks[task].codecs)


def _difference(
    dataset: Dataset, other: Dataset, task: str, codec: str | None, tolerance: float
) -> Difference:
    ours, theirs = (_rows(one.labels, task, codec) for one in (dataset, other))
    common = [key for key in ours if key in theirs]
    labels = [[rows[key] for key in common] for rows in (ours, theirs)]
    distortion, differing = _label_difference(labels, codec, tolerance)
    values, error = 0.0, 0.0
    if not _same_files(dataset, other, task, codec):
        values, error = _value_difference(_features(dataset, other, common, codec))
    return Difference(
        task,
        codec,
        features=len(common),
        lacking=len(ours.keys() ^ theirs.keys()),
        labels=differing,
        distortion=distortion,
        values=values,
        error=error,
    )


def _rows(labels: pa.Table, task: str, codec: str | None) -> dict[Key, Mapping[str, float]]:
    """Return the rows of a codec by source and level; without a codec, one row per source."""
    chosen = pc.equal(labels["task"], task)
    if codec:
        chosen = pc.and_(chosen, pc.equal(labels["codec"], codec))
    rows = labels.filter(chosen).to_pylist()
    return {(r["source_id"], r["level"]) if codec else (r["source_id"],): r for r in rows}


def _label_difference(
    tables: Sequence[Sequence[Mapping[str, float]]], codec: str | None, tolerance: float
) -> tuple[float, int]:
    """Return the largest difference of the distortion, and the number of rows that differ."""
    first, others = ("distortion", COMPRESSED) if codec else ("reference_score", ORIGINALS)
    columns = (first, *others)
    ours, theirs = (
        np.array([[row[name] for name in columns] for row in rows], float).reshape(-1, len(columns))
        for rows in tables
    )
    difference = np.abs(ours - theirs)
    one_missing = np.isnan(ours) != np.isnan(theirs)
    beyond = difference > tolerance * np.maximum(np.abs(ours), np.abs(theirs))
    differing = (beyond | one_missing)[:, 1:].any(axis=1)
    return float(np.nan_to_num(difference[:, 0]).max(initial=0)), int(differing.sum())


def _same_files(dataset: Dataset, other: Dataset, task: str, codec: str | None) -> bool:
    """Return whether the files of a codec's features, or of the originals, have equal hashes."""
    starts = [f"originals/{task}-"]
    if codec:
        array = NAMES.compressed(task, codec).as_posix()
        starts = [f"{array}/", f"bitstreams/{task}-{codec}-"]
    for start in starts:
        ours, theirs = (
            {
                path: entry["sha256"]
                for path, entry in one.manifest.files.items()
                if path.startswith(start)
            }
            for one in (dataset, other)
        )
        if ours and ours == theirs:
            return True
    return False


def _features(
    dataset: Dataset, other: Dataset, keys: Sequence[Key], codec: str | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for source, *level in keys:
        if codec:
            yield dataset.compressed(source, codec, *level), other.compressed(source, codec, *level)
        else:
            yield dataset.original(source), other.original(source)


def _value_difference(pairs: Iterator[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """Return the share of values that differ, and the relative RMS error.

    A feature whose shapes differ counts as if it were zero in one dataset.
    """
    number = differing = 0
    squares = energy = 0.0
    for ours, theirs in pairs:
        number += theirs.size
        energy += float(np.square(theirs, dtype=np.float64).sum())
        if ours.shape == theirs.shape:
            differing += int(np.count_nonzero(ours != theirs))
            squares += float(np.square(np.subtract(ours, theirs, dtype=np.float64)).sum())
        else:
            differing += theirs.size
            squares += float(np.square(theirs, dtype=np.float64).sum())
    return differing / max(number, 1), float(np.sqrt(squares / energy)) if energy else 0.0
