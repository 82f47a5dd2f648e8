"""Score every compressed feature of a dataset and correlate the scores with its labels."""

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
from cfqa_data.eval.account import Scored
from cfqa_data.eval.features.datasets import (
    KEYS,
    arrays_digest,
    dataset_facts,
    opened,
    stored_rows,
)
from cfqa_data.eval.metrics import Metric, MetricLike, as_metrics
from cfqa_data.eval.provenance import provenance_of
from cfqa_data.eval.results import Evaluation, conclude
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

__all__ = ["DEFAULT_METRICS", "PRECISIONS", "Evaluation", "conclude", "evaluate"]

DEFAULT_METRICS = ("mse", "cosine", "cka")

PRECISIONS = ("highest", "high")
"""Of float32 matrix products: exact, or what the device does fastest (TF32 on NVIDIA's)."""


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
    """Run metrics over a dataset in one pass and correlate them with the labels.

    Each original is read once and kept, with what metrics derive from it, while all its compressed
    versions are scored by all metrics, a batch at a time: memory does not grow with the dataset.
    A metric that fails on a feature has no score there, which ``failures`` and a `MetricWarning`
    tell; the others go on. One whose scores depend on the batch scores one feature at a time, which
    ``notes`` and a `MetricWarning` tell. Where a metric is not defined, as CKA is not for a single
    token, it has no score either, which ``notes`` tell.

    Args:
        dataset: An open dataset, or the path of one. One that is not a folder's is anything that
            answers like `cfqa_data.eval.features.datasets.FeatureSource`, with tasks of any names.
        metrics: One or several of: names, ``"module:attribute"`` strings, `Metric` objects or
            callables ``(x, y) -> (B,)`` on float32 tensors of shape (B, N, C, T, D). One that
            has a method ``fit`` is trained for each task and fold on the sources of the others.
        device: Torch device of the metrics.
        task: Only this task (with a path only: an open dataset is what it is).
        codec: Only this codec, or these (with a path only).
        fold: Only the sources of this fold: those that a metric trained on the others has not seen.
        limit: At most so many sources of each task, the first ones; trained on are at most so many
            of each other fold.
        target: Label to follow: ``distortion`` (harm to the task's score) or ``loss`` (a
            continuous task loss). Both grow with the damage.
        leave_out: ``codec``: train each trained metric also without each codec, on sources of the
            other folds; the table ``left_out`` tells how well it places versions of a codec that it
            has not seen.
        precision: Of float32 matrix products: ``highest`` is exact, ``high`` allows TF32.
        batch: Compressed features per batch; by default as many as make 2 MiB on a CPU, or
            256 MiB on another device.
        workers: Processes that score, a source at a time, with one thread each; 1 is this process.
            On ``cuda`` they take the GPUs in turn. Metrics are pickled, and a script needs
            ``if __name__ == "__main__":``. Scores are those of one process and one thread.
        client: `distributed.Client`, or a scheduler's address: Dask's workers score instead.
        out: File for the scores, ``.parquet`` or ``.csv``. What an interrupted run leaves beside
            it is gone on from. A Parquet file that is there and holds scores of this dataset is
            added to: only what it lacks is scored, and its other metrics are part of the result.
        force: Replace what is at ``out`` now: metrics of these names that are others than these,
            with other code, options, device or precision; a file that holds anything else.
        progress: Told about every batch that is done; ``auto`` shows a bar in a terminal or a
            notebook, None shows nothing.
        untrusted: Decode bitstreams in child processes that can do nothing else (with a path only).
        follow_links: Read what links in a folder lead to, wherever that is (with a path only).
        plugins: Classes of codecs that are not installed, or `module:Class` of some (with a path
            only).

    Raises:
        MetricError: Unknown metric; no metric scored anything; NaN or Inf in a feature, which is
            named; nothing is left to score; ``out`` holds something else; workers cannot be
            started, or were killed.
        FormatError: The folder is not a dataset, or something in it is missing.
        MissingDependencyError: What the metrics or the statistics need is not installed.
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
    resolved = as_metrics(metrics, device)  # imports modules, which may do anything
    import scipy  # noqa: F401  (the statistics need it: missed now, not when all is scored)

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
    begun = {metric.name: provenance_of(metric, precision, arrays) for metric in resolved}
    file, scored = None, Scored.nothing(len(rows), begun)
    if path is not None:
        file = ScoreFile(path, source, rows, resolved, begun, target, limit, force)
        scored = file.resume()
    how: dict[str, Any] = {"target": target, "device": device, "precision": precision}
    run = Run(resolved, source, rows, scored, **how, batch=batch, limit=limit)
    values, account = scored.values, run.account
    try:
        shown = listener(Silent() if progress is None else progress)
        state, processes = torch_state(grad=False, precision=precision), (workers, client, device)
        with state, shown as told, _executor(*processes) as executor:
            run.run(file, told, executor)
        failures = account.failures(resolved)
        notes = account.notes(resolved, run.fitted) | _not_stored(source.labels, stored)
        usable = np.flatnonzero(~np.isnan(values).all(axis=0))
        if not len(usable):
            name, message = next(iter((failures or notes).items()))
            raise MetricError(message) from cause_of(account.errors.get(name))
        good = [resolved[column] for column in usable]
        known = dataset_facts(source) | {"notes": notes, "provenance": run.provenance()}
        known |= {"errors": account.errors, "fitted": run.fitted}
        found = conclude(labels, good, values[:, usable], target, failures, **known)
    except BaseException:
        if file and (scored.alone or not np.isnan(values).all()):
            file.save(scored, now=True)
        raise
    if file:
        try:
            found = file.finish(found)
        except MetricError as error:  # the tables are worth having all the same
            failures[str(out)] = found.failures[str(out)] = str(error)
            file.save(scored, now=True)
    for name, message in (*failures.items(), *scored.notes.items()):
        warning = MetricWarning(message)
        warning.__cause__ = cause_of(account.errors.get(name))
        warnings.warn(warning, stacklevel=3)  # past `extras`
    return found


@contextmanager
def _executor(workers: int, client: Any, device: str) -> Iterator[Executor | None]:
    """Return what runs work in other processes; nothing if this one is to do it.

    Raises:
        MetricError: They cannot be started, or were killed; both workers and a client are given.
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
    """Return what a user's metric raised, where an error is of that."""
    return error and error.__cause__


def _without_codecs(metrics: Sequence[Metric], labels: pa.Table) -> tuple[Metric, ...]:
    """Return each trained metric once for each codec, which its training is to do without.

    Raises:
        MetricError: No metric is trained, or there is one codec only.
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
    """Return notes on the codecs of which nothing is stored."""
    lacking = labels.select(["codec", "task"]).filter(~stored).to_pydict()
    message = "its features are not stored and are left out"
    return {
        f"codec {codec}": f"codec {codec!r} of {task}: {message}"
        for codec, task in zip(*lacking.values(), strict=True)
    }


def _selected(
    labels: pa.Table, stored: NDArray[np.bool_], fold: int | None, limit: int | None
) -> NDArray[np.intp]:
    """Return the label rows to score."""
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
            here = np.flatnonzero(selected & (tasks == task))
            first = list(dict.fromkeys(sources[here].tolist()))[:limit]
            selected[here] = np.isin(sources[here], first)
    return np.flatnonzero(selected)
