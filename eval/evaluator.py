"""Score every compressed feature of a dataset and correlate the scores with its labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from cfqa_data.errors import CfqaError, MetricError
from cfqa_data.eval.metrics import Metric, MetricLike, as_metrics
from cfqa_data.eval.metrics.base import error_line
from cfqa_data.eval.statistics import check_labels, statistics
from cfqa_data.eval.tables import scores_table
from cfqa_data.extras import extras
from cfqa_data.progress import Progress, Silent
from cfqa_data.torch_state import torch_state

if TYPE_CHECKING:
    import pyarrow as pa

    from cfqa_data.eval.features import Features
    from cfqa_data.eval.originals import OriginalStatistics
    from cfqa_data.eval.reading import Batch, FeatureSource

__all__ = ["DEFAULT_METRICS", "PRECISIONS", "Evaluation", "conclude", "evaluate"]

DEFAULT_METRICS = ("mse", "cosine", "cka")

PRECISIONS = ("highest", "high")
"""Of float32 matrix products: exact, or what the device does fastest (TF32 on NVIDIA's)."""


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found; docs/statistics.md describes the tables, null where no figure is.

    Attributes:
        labels: The rows that were scored.
        scores: One row per compressed feature and metric.
        correlations: One row per task, codec and metric.
        across_codecs: One row per task and metric, all codecs together.
        across_tasks: One row per metric, all tasks together.
        per_level: One row per task, codec, level and metric, over the sources.
        comparisons: One row per pair of metrics, coefficient, and row of the first three tables.
        discrimination: One row per task and metric: can it tell versions of a source apart?
        metrics: The metrics, in the tables' order; those that failed are not among them.
        target: Label column that the scores were correlated with.
        failures: What went wrong with each metric that failed, by name, and with the file of
            scores, by path.
    """

    labels: pa.Table
    scores: pa.Table
    correlations: pa.Table
    across_codecs: pa.Table
    across_tasks: pa.Table
    per_level: pa.Table
    comparisons: pa.Table
    discrimination: pa.Table
    metrics: tuple[Metric, ...]
    target: str
    failures: dict[str, str] = field(default_factory=dict)


@extras()
def evaluate(
    dataset: FeatureSource | str | Path,
    metrics: MetricLike | Iterable[MetricLike] = DEFAULT_METRICS,
    device: str = "cpu",
    *,
    task: str | None = None,
    codec: str | Iterable[str] | None = None,
    fold: int | None = None,
    limit: int | None = None,
    target: Literal["distortion", "loss"] = "distortion",
    precision: Literal["highest", "high"] = "highest",
    batch: int | None = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
    untrusted: bool = False,
) -> Evaluation:
    """Run metrics over a dataset in one pass and correlate them with the labels.

    Each original is read once and kept, with what metrics derive from it, while all its compressed
    versions are scored by all metrics, a batch at a time: memory does not grow with the dataset.
    A metric that fails is left out from there on, and told of in ``failures``; the others go on.

    Args:
        dataset: An open dataset, or the path of one.
        metrics: One or several of: names, ``"module:attribute"`` strings, `Metric` objects or
            callables ``(x, y) -> (B,)`` on float32 tensors of shape (B, N, C, T, D). One that
            has a method ``fit`` is trained for each task and fold on the sources of the others.
        device: Torch device of the metrics.
        task: Only this task (with a path only: an open dataset is what it is).
        codec: Only this codec, or these (with a path only).
        fold: Only the sources of this fold: those that a metric trained on the others has not seen.
        limit: At most so many sources of each task, the first ones.
        target: Label to follow: ``distortion`` (harm to the task's score) or ``loss`` (a
            continuous task loss). Both grow with the damage.
        precision: Of float32 matrix products: ``highest`` is exact, ``high`` allows TF32.
        batch: Compressed features per batch; by default as many as make 4 MiB on a CPU, or
            256 MiB on another device.
        out: File for the scores, ``.parquet`` or ``.csv``. What an interrupted run leaves beside
            it is gone on from.
        progress: Told about every batch that is done.
        untrusted: Decode bitstreams in child processes that can do nothing else (with a path only).

    Raises:
        MetricError: Unknown metric; all metrics failed; NaN or Inf in a feature, which is named;
            nothing is left to score.
        FormatError: The folder is not a dataset, or something in it is missing.
        MissingDependencyError: What the metrics or the statistics need is not installed.
    """
    _check(target, precision, batch, limit)
    resolved = as_metrics(metrics, device)
    import scipy  # noqa: F401  (the statistics need it: missed now, not when all is scored)

    opened = _open(dataset, task, codec, untrusted)
    for name in ("task", "source_id", "codec", "level", target):
        if name not in opened.labels.column_names:
            what = f"{target!r} to follow" if name == target else repr(name)
            raise MetricError(f"the labels have no column {what}")
    rows = _selected(opened.labels, fold, limit)
    labels = opened.labels.take(rows)
    check_labels(labels, target)
    file = _score_file(out, opened, labels, resolved, device, precision)
    values = file.resume() if file else np.full((len(rows), len(resolved)), np.nan)
    failures: dict[str, str] = {}
    try:
        with torch_state(grad=False, precision=precision):
            reading = (opened, rows, device, batch)
            _fill(values, failures, resolved, reading, file, progress or Silent())
    except BaseException:
        if file and not np.isnan(values).all():
            file.save(values, now=True)
        raise
    if len(failures) == len(resolved):
        raise MetricError(next(iter(failures.values())))
    kept = [column for column, metric in enumerate(resolved) if metric.name not in failures]
    good, values = tuple(resolved[column] for column in kept), values[:, kept]
    if file:
        try:
            file.finish(scores_table(labels, good, values), good, target, failures)
        except MetricError as error:  # the tables are worth having all the same
            failures[str(out)] = str(error)
    return conclude(labels, good, values, target, failures)


def conclude(
    labels: pa.Table,
    metrics: Sequence[Metric],
    values: NDArray[Any],
    target: str,
    failures: Mapping[str, str],
) -> Evaluation:
    """Make the tables of an evaluation from its scores.

    Args:
        labels: The rows that were scored.
        metrics: M metrics.
        values: (rows, M) float64 scores.
        target: Label column to follow.
        failures: See `Evaluation`.
    """
    found = statistics(labels, metrics, values, target)
    return Evaluation(
        labels=labels,
        scores=scores_table(labels, metrics, values),
        correlations=found.correlations,
        across_codecs=found.across_codecs,
        across_tasks=found.across_tasks,
        per_level=found.per_level,
        comparisons=found.comparisons,
        discrimination=found.discrimination,
        metrics=tuple(metrics),
        target=target,
        failures=dict(failures),
    )


def _check(target: str, precision: str, batch: int | None, limit: int | None) -> None:
    if target not in ("distortion", "loss"):
        raise MetricError(f"target is 'distortion' or 'loss', not {target!r}")
    if precision not in PRECISIONS:
        raise MetricError(f"precision is 'highest' or 'high', not {precision!r}")
    for name, value in (("batch", batch), ("limit", limit)):
        if value is not None and value < 1:
            raise MetricError(f"{name} is at least 1, not {value}")


def _open(
    dataset: FeatureSource | str | Path,
    task: str | None,
    codec: str | Iterable[str] | None,
    untrusted: bool,
) -> FeatureSource:
    if isinstance(dataset, str | Path):
        from cfqa_data.dataset import load

        return load(dataset, task, codec=codec, untrusted=untrusted)
    if task is not None or codec is not None or untrusted:
        raise MetricError(
            "task, codec and untrusted say how to open a path; open the dataset with them instead"
        )
    return dataset


def _selected(labels: pa.Table, fold: int | None, limit: int | None) -> NDArray[np.intp]:
    """Return the label rows to score."""
    if labels.num_rows == 0:
        raise MetricError("the dataset has no compressed features to score")
    kept = np.ones(labels.num_rows, dtype=bool)
    if fold is not None:
        if "fold" not in labels.column_names:
            raise MetricError("the labels have no column 'fold' to select by")
        folds = labels["fold"].to_numpy()
        kept &= folds == fold
        if not kept.any():
            there = ", ".join(str(number) for number in np.unique(folds))
            raise MetricError(f"no source is in fold {fold}; there are {there}")
    if limit is not None:
        sources: dict[str, dict[str, None]] = {}
        columns = zip(labels["task"].to_pylist(), labels["source_id"].to_pylist(), strict=True)
        for row, (task, source_id) in enumerate(columns):
            if kept[row]:
                of_task = sources.setdefault(task, {})
                kept[row] = source_id in of_task or len(of_task) < limit
                if kept[row]:
                    of_task[source_id] = None
    return np.flatnonzero(kept)


def _score_file(
    out: str | Path | None,
    dataset: FeatureSource,
    labels: pa.Table,
    metrics: Sequence[Metric],
    device: str,
    precision: str,
) -> Any:
    if out is None:
        return None
    from cfqa_data.eval.score_file import ScoreFile
    from cfqa_data.eval.stored import dataset_identity

    settings = {"device": device, "precision": precision}
    identity = dataset_identity(dataset)
    return ScoreFile(Path(out), identity, labels, metrics, dataset.labels, settings)


def _fill(
    values: NDArray[Any],
    failures: dict[str, str],
    metrics: Sequence[Metric],
    reading: tuple[FeatureSource, NDArray[np.intp], str, int | None],
    file: Any,
    progress: Progress,
) -> None:
    """Score what has no score yet.

    Args:
        values: (rows, M), filled in place.
        failures: What went wrong, by metric; filled in place.
        metrics: M metrics.
        reading: The dataset, the label rows to score, the device, and features per batch.
        file: Where scores are saved now and then, if anywhere.
        progress: Told about every batch.
    """
    from cfqa_data.eval.originals import original_statistics
    from cfqa_data.eval.reading import Part, read_batches

    dataset, rows, device, batch = reading
    missing = np.isnan(values).any(axis=1)
    if not missing.any():
        return
    needed = [name for metric in metrics for name in metric.needs if name not in metric.options]
    by_fold = bool(needed) or any(metric.fit for metric in metrics)
    known = original_statistics(dataset, needed, device, progress)
    places = {row: place for place, row in enumerate(rows)}
    progress.start("evaluate", len(rows), "features")
    progress.advance(int((~missing).sum()))
    task_of, fold_of = _tasks_and_folds(dataset, by_fold)
    ready: dict[tuple[str, int], list[Metric]] = {}
    for part in read_batches(dataset, rows[missing].tolist(), device, batch):
        key = task_of[part.rows[0]], fold_of[part.rows[0]]
        if key not in ready:
            others = np.flatnonzero((task_of == key[0]) & (fold_of != key[1]))
            ready[key] = _given(metrics, known, key, Part(dataset, others), failures)
        at = [places[row] for row in part.rows]
        for column, metric in enumerate(ready[key]):
            if metric.name not in failures and np.isnan(values[at, column]).any():
                try:
                    values[at, column] = _score(metric, part)
                except MetricError as error:
                    failures[metric.name] = str(error)
        if len(failures) == len(metrics):
            break
        if file:
            file.save(values)
        progress.advance(len(at))
    progress.finish()


def _tasks_and_folds(
    dataset: FeatureSource, by_fold: bool
) -> tuple[NDArray[Any], NDArray[np.intp]]:
    """Return the task and the fold of each label row; fold 0 where folds do not matter."""
    labels = dataset.labels
    tasks = np.array(labels["task"].to_pylist())
    if not by_fold:
        return tasks, np.zeros(len(tasks), dtype=np.intp)
    if "fold" not in labels.column_names:
        raise MetricError("the labels have no column 'fold': there is nothing to hold out")
    return tasks, labels["fold"].to_numpy().astype(np.intp)


def _given(
    metrics: Sequence[Metric],
    known: OriginalStatistics,
    key: tuple[str, int],
    training: FeatureSource,
    failures: dict[str, str],
) -> list[Metric]:
    """Return the metrics with what they need of the other folds: statistics, or training."""
    given = []
    for metric in metrics:
        needed = [name for name in metric.needs if name not in metric.options]
        if needed:
            metric = metric.with_options(**known.of(*key, needed))
        if metric.fit and metric.name not in failures:
            try:
                if training.labels.num_rows == 0:
                    raise MetricError(f"metric {metric.name!r}: no other fold to train on")
                metric = metric.fitted(training)
            except MetricError as error:
                failures[metric.name] = f"{error} ({key[0]}, all folds but {key[1]})"
        given.append(metric)
    return given


def _score(metric: Metric, part: Batch) -> NDArray[Any]:
    """Return a metric's scores of a batch; an error names the metric and the feature."""
    from cfqa_data.eval.features import Features

    try:
        return _scores(metric, part.x, part.y)
    except MetricError as error:
        if len(part.names) > 1:  # one by one, to say with which feature it begins
            for item, name in enumerate(part.names):
                try:
                    _scores(metric, part.x, Features(part.y.values[item : item + 1]))
                except MetricError as alone:
                    raise MetricError(f"{alone} ({name})") from error
            together = f"source {part.source_id}, {len(part.names)} versions at once"
            raise MetricError(f"{error} ({together})") from error
        raise MetricError(f"{error} ({part.names[0]})") from error


def _scores(metric: Metric, x: Features, y: Features) -> NDArray[Any]:
    try:
        return np.asarray(metric.score(x, y).detach().cpu())
    except CfqaError as error:
        raise MetricError(str(error)) from error
    except (Exception, SystemExit) as error:  # whatever a user's function raises
        raise MetricError(f"metric {metric.name!r} failed: {error_line(error)}") from error
