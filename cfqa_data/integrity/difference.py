"""How far two datasets of one recipe are apart, such as those that two machines made of it.

Other processors, and other versions of programs, round differently: features differ in their last
digits, here and there a code by one, and labels with them.
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
"""Labels that are compared. A distortion is the difference of two scores: as a share of itself it
may be far off where there is hardly any."""

Key = tuple[str, ...] | tuple[str, int]


@dataclass(frozen=True)
class Difference:
    """How far the features of a codec are apart, or the originals of a task.

    Attributes:
        task: The task.
        codec: The codec; None for the originals.
        features: How many are in both datasets.
        lacking: How many are in one of them only.
        labels: How many of those in both have a label that differs by more than the tolerance.
        distortion: Largest difference of a distortion; of a reference score for originals.
        values: Share of the features' values that differ.
        error: Root mean square of their differences, over that of the values.
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
    """Compare two datasets: of each task the originals, then codec after codec.

    Arrays and bitstreams whose files have the same hashes in both manifests are not read.

    Args:
        dataset: A dataset.
        other: What it is compared with.
        tolerance: Relative difference up to which labels agree.
        progress: Notified of every part.

    Raises:
        FormatError: They have no common task, or a file is missing or damaged.
        CfqaError: The tolerance is no number from 0 to 1.
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
    found = []
    for task, codec in parts:
        found.append(_difference(dataset, other, task, codec, tolerance))
        progress.advance()
    progress.finish()
    return found


def difference_text(found: Sequence[Difference]) -> str:
    """Lay out differences as a table."""
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
        for one in found
    ]
    table = table_text([[*heads, "values differ", "error"], *rows], left=2)
    return (
        f"{table}\n\nfeatures: in both; lacking: in one only; labels differ: features with a "
        "label beyond\nthe tolerance; distortion: largest difference; values differ: share of "
        "values that differ;\nerror: RMS of the differences relative to the RMS of the values"
    )


def _codecs(dataset: Dataset, task: str) -> list[str]:
    return list(dataset.manifest.tasks[task].codecs)


def _difference(
    dataset: Dataset, other: Dataset, task: str, codec: str | None, tolerance: float
) -> Difference:
    both = dataset, other
    rows = [_rows(one.labels, task, codec) for one in both]
    known = [key for key in rows[0] if key in rows[1]]
    apart, off = _labels([[of[key] for key in known] for of in rows], codec, tolerance)
    values, error = 0.0, 0.0
    if not _same_files(dataset, other, task, codec):
        values, error = _apart(_features(dataset, other, known, codec))
    return Difference(
        task,
        codec,
        features=len(known),
        lacking=len(rows[0].keys() ^ rows[1].keys()),
        labels=off,
        distortion=apart,
        values=values,
        error=error,
    )


def _rows(labels: pa.Table, task: str, codec: str | None) -> dict[Key, Mapping[str, float]]:
    """Return the rows of a codec by source and level, or one row of each source."""
    chosen = pc.equal(labels["task"], task)
    if codec:
        chosen = pc.and_(chosen, pc.equal(labels["codec"], codec))
    rows = labels.filter(chosen).to_pylist()
    return {(r["source_id"], r["level"]) if codec else (r["source_id"],): r for r in rows}


def _labels(
    rows: Sequence[Sequence[Mapping[str, float]]], codec: str | None, tolerance: float
) -> tuple[float, int]:
    """Return the largest difference of a distortion, and how many rows are beyond the tolerance."""
    told, names = ("distortion", COMPRESSED) if codec else ("reference_score", ORIGINALS)
    ours, theirs = (
        np.array([[row[name] for name in (told, *names)] for row in of], float).reshape(
            -1, 1 + len(names)
        )
        for of in rows
    )
    apart = np.abs(ours - theirs)
    one_lacks = np.isnan(ours) != np.isnan(theirs)
    beyond = apart > tolerance * np.maximum(np.abs(ours), np.abs(theirs))
    off = (beyond | one_lacks)[:, 1:].any(axis=1)
    return float(np.nan_to_num(apart[:, 0]).max(initial=0)), int(off.sum())


def _same_files(dataset: Dataset, other: Dataset, task: str, codec: str | None) -> bool:
    """Whether both datasets have the same bytes of a codec's features, or of the originals."""
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


def _apart(pairs: Iterator[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """Return the share of values that differ, and their relative error; 1 where shapes differ."""
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
