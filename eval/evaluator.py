"""Score the compressed features of a dataset and correlate the scores with its labels."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from cfqa_data.console.progress import Progress, Silent
from cfqa_data.console.terminal import listener
from cfqa_data.errors import BuildError, MetricError, MetricWarning
from cfqa_data.eval.account import Account, Scored
from cfqa_data.eval.cross_fitting import CrossFitter
from cfqa_data.eval.features.datasets import (
    KEYS,
    arrays_digest,
    dataset_facts,
    opened,
    stored_rows,
)
from cfqa_data.eval.metrics import Metric, MetricLike, as_metrics
from cfqa_data.eval.provenance import provenance_of
from cfqa_data.eval.results import Evaluation, make_evaluation
from cfqa_data.eval.run import Run
from cfqa_data.eval.score_file import ScoreFile
from cfqa_data.eval.statistics import check_labels
from cfqa_data.extras import extras
from cfqa_data.paths import absolute_path
from cfqa_data.registry import Plugins
from cfqa_data.torch_state import torch_state

if TYPE_CHECKING:
    import pyarrow as pa

    from cfqa_data.eval.features.datasets import FeatureSource
    from cfqa_data.processes.executor import Executor

__all__ = ["DEFAULT_METRICS", "PRECISIONS", "Evaluation", "evaluate"]

DEFAULT_METRICS = ("mse", "cosine", "cka")

PRECISIONS = ("highest", "high")
"""Precisions of float32 matrix products: exact, or the fastest of the device (TF32 on NVIDIA)."""


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
    leave_out: Literal["codec"] | None = None,
    precision: Literal["highest", "high"] = "highest",
    batch: int | None = None,
    workers: int = 1,
    client: Any = None,
    out: str | Path | None = None,
    force: bool = False,
    progress: Progress | Literal["auto"] | None = "auto",
    untrusted: bool = False,
    follow_links: bool = False,
    plugins: Plugins | None = None,
) -> Evaluation:
    """Score a dataset with metrics and correlate the scores with its labels.

    Each original is read once. All metrics score its compressed versions batch by batch and share
    what they derive from the original, so memory does not grow with the dataset.

    A metric that fails on a feature gets no score for it, and the other metrics continue; the
    attribute ``failures`` and a `MetricWarning` report the first error. A metric whose scores
    depend on the other features of a batch scores one feature at a time; ``notes`` and a
    `MetricWarning` report it. A metric that is undefined for a feature, as CKA is for a single
    token, gets no score for it, and ``notes`` report it.

    Args:
        dataset: An open dataset or its path. Any object that implements
            `cfqa_data.eval.features.datasets.FeatureSource` works too, with tasks of any name.
        metrics: One or several metrics, each a name, a ``"module:attribute"`` string, a `Metric`,
            or a callable ``(x, y) -> (B,)`` on float32 tensors of shape (B, N, C, T, D). A callable
            with a ``fit`` method is trained for each task and fold, on the sources of the others.
        device: Torch device on which the metrics are computed.
        task: Score only this task; only for a dataset that is given as a path.
        codec: Score only this codec, or these; only for a path.
        fold: Score only the sources of this fold. Metrics trained on the other folds have not seen
            them.
        limit: Score at most this many sources of each task, the first ones, and train on at most
            this many sources of each fold.
        target: Label to correlate with: ``distortion``, the degradation of the task's score, or
            ``loss``, a continuous loss of the task. Larger is worse for both.
        leave_out: ``codec`` also trains each trained metric without each codec, on sources of the
            other folds. The table ``left_out`` says how well it orders versions by a codec that
            it was not trained on.
        precision: Precision of float32 matrix products: ``highest`` is exact, ``high`` allows TF32.
        batch: Compressed features per batch. By default, as many as fit into 4 MiB on a CPU, but
            one if it has 1 MiB or more; as many as fit into 256 MiB on another device.
        workers: Number of processes, with one thread each, that score one source at a time; 1
            scores in this process. On ``cuda`` they are distributed over the GPUs. Metrics must be
            picklable, and a script needs ``if __name__ == "__main__":``. The scores equal those of
            one process with one thread.
        client: A `distributed.Client` or the address of a scheduler, whose Dask workers score.
        out: Path of the ``.parquet`` or ``.csv`` file to write. An interrupted run is resumed from
            the unfinished file next to it. If a Parquet file with scores of this dataset exists,
            only missing scores are computed and added, and the result includes its other metrics.
        force: Replace what exists at ``out``: metrics of the same name with different code,
            options, device or precision, or a file with any other content.
        progress: Receives a call for every batch; ``auto`` shows a bar in a terminal or a notebook,
            None shows nothing.
        untrusted: Decode bitstreams in sandboxed child processes; only for a path.
        follow_links: Follow symbolic links in the dataset's folder, even out of it; only for a
            path.
        plugins: Codec classes that are not installed, or ``module:Class`` strings; only for a path.

    Returns:
        The scores, and tables of statistics, which are computed when they are first accessed.

    Raises:
        MetricError: If a metric is unknown or none has scored anything, a feature contains NaN or
            Inf, nothing is left to score, ``out`` holds something else, or workers cannot be
            started or were killed.
        FormatError: If the folder is not a dataset, or a part of it is missing.
        MissingDependencyError: If a package that metrics or statistics need is not installed.
    """
    for name, value, (one, other) in (
        ("target", target, ("distortion", "loss")),
        ("precision", precision, PRECISIONS),
        ("leave_out", leave_out, ("codec", None)),
    ):
        if value not in (one, other):
            raise MetricError(f"{name} is {one!r} or {other!r}, not {value!r}")
    for name, number in (("batch", batch), ("limit", limit), ("workers", workers)):
        if number is not None and number < 1:
            raise MetricError(f"{name} must be at least 1, not {number}")
    path = None if out is None else absolute_path(out)
    opening = {"task": task, "codec": codec, "untrusted": untrusted, "follow_links": follow_links}
    source = opened(dataset, **opening, plugins=plugins)
    resolved = as_metrics(metrics, device)
    import scipy  # noqa: F401  (fail before scoring if the statistics cannot be computed)

    for name in (*KEYS, target):
        if name not in source.labels.column_names:
            what = f"{target!r} to follow" if name == target else repr(name)
            raise MetricError(f"the labels have no column {what}")
    stored = stored_rows(source)
    rows = _selected(source.labels, stored, fold, limit)
    labels = source.labels.take(rows)
    check_labels(labels, target)
    if leave_out:
        resolved += _without_codecs(resolved, labels)
    arrays = arrays_digest(source) if path else ""
    provenance = {metric.name: provenance_of(metric, precision, arrays) for metric in resolved}
    file, scored = None, Scored.empty(len(rows), provenance)
    if path is not None:
        file = ScoreFile(path, source, rows, resolved, provenance, target, limit, force)
        scored = file.resume()
    account = Account(scored, device)
    settings: dict[str, Any] = {"target": target, "device": device, "limit": limit}
    fitter = CrossFitter(resolved, source, rows, account, **settings)
    run, values = Run(fitter, precision, batch), scored.values
    try:
        reported = listener(Silent() if progress is None else progress)
        state, processes = torch_state(grad=False, precision=precision), (workers, client, device)
        with state, reported as shown, _executor(*processes) as executor:
            run.run(file, shown, executor)
        failures = account.failures(resolved)
        notes = account.notes(resolved, fitter.fitted) | _not_stored(source.labels, stored)
        usable = np.flatnonzero(~np.isnan(values).all(axis=0))
        if not len(usable):
            name, message = next(iter((failures or notes).items()))
            raise MetricError(message) from cause_of(account.errors.get(name))
        good = [resolved[column] for column in usable]
        facts = dataset_facts(source) | {"notes": notes, "provenance": run.provenance()}
        facts |= {"errors": account.errors, "fitted": fitter.fitted}
        result = make_evaluation(labels, good, values[:, usable], target, failures, **facts)
    except BaseException:
        if file and (scored.alone or not np.isnan(values).all()):
            file.save(scored, now=True)
        raise
    if file:
        try:
            result = file.finish(result)
        except MetricError as error:  # return the scores that could not be written
            failures[str(out)] = result.failures[str(out)] = str(error)
            file.save(scored, now=True)
    for name, message in (*failures.items(), *scored.notes.items()):
        warning = MetricWarning(message)
        warning.__cause__ = cause_of(account.errors.get(name))
        warnings.warn(warning, stacklevel=3)  # the caller of the function that `extras` wraps
    return result


@contextmanager
def _executor(workers: int, client: Any, device: str) -> Iterator[Executor | None]:
    """Yield an executor of other processes, or None to score in this process.

    Raises:
        MetricError: If the processes cannot be started or were killed, or both workers and a
            client are given.
    """
    if client is None and workers == 1:
        yield None
        return
    from cfqa_data.processes.executor import Executor

    gpus: list[str] = []
    if device == "cuda":
        import torch

        numbers = ",".join(map(str, range(torch.cuda.device_count())))
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES", numbers).split(",")
    try:
        with Executor(workers, client, gpus) as executor:
            yield executor
    except BuildError as error:
        raise MetricError(str(error)) from error.__cause__


def cause_of(error: BaseException | None) -> BaseException | None:
    """Return the exception of a user's metric that caused an error, if one did."""
    return error and error.__cause__


def _without_codecs(metrics: Sequence[Metric], labels: pa.Table) -> tuple[Metric, ...]:
    """Return a variant of each trained metric for each codec, to be trained without that codec.

    Raises:
        MetricError: If no metric is trained, or there is only one codec.
    """
    codecs = dict.fromkeys(labels["codec"].to_pylist())
    trained = [metric for metric in metrics if metric.fit]
    if not trained:
        raise MetricError("leave_out needs a trained metric, and none of these is trained")
    if len(codecs) < 2:
        raise MetricError(f"leave_out needs several codecs, and there is only {', '.join(codecs)}")
    return tuple(
        replace(metric, name=f"{metric.name} without {codec}", left_out=codec)
        for metric in trained
        for codec in codecs
    )


def _not_stored(labels: pa.Table, stored: NDArray[np.bool_]) -> dict[str, str]:
    """Return a note for each codec whose features are not stored."""
    missing = labels.select(["codec", "task"]).filter(~stored).to_pydict()
    message = "its features are not stored and are left out"
    return {
        f"codec {codec}": f"codec {codec!r} of {task}: {message}"
        for codec, task in zip(*missing.values(), strict=True)
    }


def _selected(
    labels: pa.Table, stored: NDArray[np.bool_], fold: int | None, limit: int | None
) -> NDArray[np.intp]:
    """Return the numbers of the label rows to score."""
    if not stored.any():
        raise MetricError("the dataset has no compressed features to score")
    selected = stored.copy()
    if fold is not None:
        if "fold" not in labels.column_names:
            raise MetricError("the labels have no column 'fold' to select by")
        folds = labels["fold"].to_numpy()
        selected &= folds == fold
        if not selected.any():
            available = ", ".join(str(number) for number in np.unique(folds))
            raise MetricError(f"no source is in fold {fold}; folds are {available}")
    if limit is not None:
        tasks, sources = (np.array(labels[name].to_pylist()) for name in ("task", "source_id"))
        for task in np.unique(tasks[selected]):
            rows = np.flatnonzero(selected & (tasks == task))
            first = list(dict.fromkeys(sources[rows].tolist()))[:limit]
            selected[rows] = np.isin(sources[rows], first)
    return np.flatnonzero(selected)
