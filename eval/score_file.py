"""The score file of an evaluation: saving, resuming, and adding to an existing file.

While it runs, an evaluation saves its scores next to the output, as the score file
``NAME.unfinished``; the output itself is written atomically at the end. Scores are reused if
dataset, code, options, device and precision are the same. Scores of the same dataset in an existing
Parquet file are kept; a different metric of the same name, or a file of other content, is replaced
only with ``force``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cfqa_data.errors import MetricError
from cfqa_data.eval.account import Scored
from cfqa_data.eval.features.datasets import dataset_facts, table_digest
from cfqa_data.eval.fingerprint import fingerprint
from cfqa_data.eval.merging import align_labels, combine, compare_labels
from cfqa_data.eval.metrics import Metric
from cfqa_data.eval.provenance import Provenance
from cfqa_data.eval.results import Evaluation, make_evaluation
from cfqa_data.eval.score_format import write_scores
from cfqa_data.eval.score_reading import read_scores
from cfqa_data.eval.score_rows import row_keys
from cfqa_data.eval.statistics import check_labels
from cfqa_data.format.storage import check_writable

if TYPE_CHECKING:
    import pyarrow as pa

    from cfqa_data.eval.features.datasets import FeatureSource

__all__ = ["ScoreFile"]

SAVE_INTERVAL = 20.0
"""Minimum seconds between two saves; longer if saving would take a twentieth of the time."""


class _FileChangedError(Exception):
    """Another run has written the file meanwhile."""


class ScoreFile:
    """The score file of an evaluation.

    Args:
        path: Path of a ``.parquet`` or ``.csv`` file.
        dataset: The open dataset.
        rows: Numbers of the label rows to score.
        metrics: M metrics.
        provenance: Provenance of the scores before the run, by metric.
        target: Label column that the scores are correlated with.
        limit: Maximum number of training sources of each fold; None for all.
        force: Replace metrics that have changed, a file of other content, and the unfinished file
            of another dataset.

    Raises:
        MetricError: If the suffix is unknown, or the existing file cannot be added to.
        CfqaError: If the file cannot be written.
    """

    def __init__(
        self,
        path: Path,
        dataset: FeatureSource,
        rows: NDArray[np.intp],
        metrics: Sequence[Metric],
        provenance: Mapping[str, Provenance],
        target: str = "distortion",
        limit: int | None = None,
        force: bool = False,
    ) -> None:
        check_writable(path)
        if path.suffix not in (".parquet", ".csv"):
            raise MetricError(f"{path}: the file name must end in .parquet or .csv")
        self.path = path
        self.unfinished = path.with_name(f"{path.name}.unfinished")
        self._dataset, self._metrics, self._force = dataset, metrics, force
        self._labels = dataset.labels.take(rows)
        self._facts: dict[str, Any] = {
            "target": target,
            "failures": {},
            **dataset_facts(dataset),
        }
        self._provenance = {}
        training = target if limit is None else f"{target}, {limit} sources of each fold"
        for metric in metrics:
            more = _joint_input(metric, self._labels)
            more += _training_input(metric, dataset.labels, training)
            record = replace(provenance[metric.name], fingerprint=fingerprint(metric, *more))
            self._provenance[metric.name] = record
        self._last_save = self._interval = 0.0
        self._identity = self._file_identity()
        self._existing, why = self._read_existing()
        self._changed = self._conflicts(self._existing)
        if not force:
            self._refuse(why, *self._changed.values())

    def _file_identity(self) -> tuple[int, ...] | None:
        """Return what identifies this version of the output file; None if there is no file."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return None
        return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size

    def _refuse(self, *reasons: str) -> None:
        """Raise the first reason not to write to the file, if there is one."""
        for why in filter(None, reasons):
            remedy = "write to another file, or overwrite it with --force (force=True)"
            raise MetricError(f"{self.path}: {why}; {remedy}")

    def _read_existing(self) -> tuple[Evaluation | None, str]:
        """Return the scores in the output file, or the reason why none can be added to it."""
        if self._file_identity() is None:
            return None, ""
        try:
            if self.path.suffix == ".csv":
                raise MetricError("it has no metadata")
            existing = read_scores(self.path, self._dataset.labels.num_rows)
        except MetricError:
            return None, "exists and does not record what was scored"
        if existing.dataset != self._facts["dataset"]:
            features = self._facts["dataset_features"]
            agreement = compare_labels(existing, self._dataset.labels, features)
            if not agreement.same or agreement.differ.any():
                return None, "holds the scores of another dataset"
        own = {record.arrays for record in self._provenance.values()}
        if {record.arrays for record in existing.provenance.values()} - own - {None}:
            return None, "holds scores of other arrays"
        existing = align_labels(existing, self._dataset.labels)
        try:
            no_scores = self._evaluation(np.empty((len(self._labels), 0)), ())
            check_labels(combine(existing, no_scores).labels, self._facts["target"])
        except MetricError:
            return None, "holds the scores of other features"
        return existing, ""

    def _evaluation(self, values: NDArray[np.float64], metrics: Sequence[Metric]) -> Evaluation:
        return make_evaluation(self._labels, metrics, values, **self._facts)

    def _conflicts(self, existing: Evaluation | None) -> dict[str, str]:
        """Return how existing metrics differ from those of the same name in this run, by name."""
        conflicts = {}
        records = existing.provenance if existing else {}
        for name, own in self._provenance.items():
            if (known := records.get(name)) is None or own.fingerprint is None:
                continue
            if not (known.fingerprint and known.fingerprint.digest and own.fingerprint.digest):
                why = own.fingerprint.reason or "the file does not record its code"
                conflicts[name] = f"holds scores of a {name!r} that may be different ({why})"
            elif own.fingerprint.digest != known.fingerprint.digest:
                how = own.fingerprint.difference(known.fingerprint)
                conflicts[name] = f"holds scores of a {name!r} with {how}"
            elif (known.device, known.precision) != (own.device, own.precision):
                conflicts[name] = f"holds scores of {name!r} made with another device or precision"
        return conflicts

    def resume(self) -> Scored:
        """Return the scores of these metrics in the existing file and of an interrupted run.

        Raises:
            MetricError: If the interrupted run is of another dataset.
        """
        scored = Scored.empty(self._labels.num_rows, self._provenance)
        for part in (self._existing, self._read_unfinished()):
            if part is None:
                continue
            row_of_key = {key: row for row, key in enumerate(row_keys(part.labels))}
            rows = np.array([row_of_key.get(key, -1) for key in row_keys(self._labels)])
            shared, conflicts = rows >= 0, self._conflicts(part)
            for name, column in part.columns().items():
                if name not in self._provenance or name in conflicts:
                    continue
                values = scored.values[:, list(self._provenance).index(name)]
                values[shared] = np.where(np.isnan(values), column[rows], values)[shared]
                record, own = part.provenance[name], self._provenance[name]
                scored.provenance[name] = replace(record, fingerprint=own.fingerprint)
                scored.earlier[name] = part.labels.filter(~np.isnan(column))
                if record.alone:
                    scored.alone.add(name)
                    scored.notes[name] = part.notes.get(name, "")
        return scored

    def _read_unfinished(self) -> Evaluation | None:
        """Return the scores of an interrupted run, if they can be reused."""
        if not self.unfinished.is_file():
            return None
        remedy = "delete it, or write to another file"
        try:
            unfinished = read_scores(self.unfinished, self._dataset.labels.num_rows)
        except MetricError:
            raise MetricError(
                f"{self.unfinished}: not the scores of an interrupted run; {remedy}"
            ) from None
        if unfinished.dataset == self._facts["dataset"]:
            arrays = {record.arrays for record in self._provenance.values()}
            same = {record.arrays for record in unfinished.provenance.values()} <= arrays
            return unfinished if same else None
        if not self._force:
            raise MetricError(f"{self.unfinished}: an interrupted run on another dataset; {remedy}")
        return None

    def save(self, scored: Scored, *, now: bool = False) -> None:
        """Save the scores if the interval has passed, or now; a full disk does not stop the run.

        Scores that are not computed yet are null in the unfinished file.
        """
        start = time.monotonic()
        self._last_save = self._last_save or start
        if not now and start - self._last_save < max(SAVE_INTERVAL, self._interval):
            return
        provenance = {
            name: replace(r, alone=name in scored.alone) for name, r in scored.provenance.items()
        }
        partial = self._evaluation(scored.values, self._metrics)
        with suppress(OSError):
            facts: dict[str, Any] = {"notes": scored.notes, "provenance": provenance}
            write_scores(replace(partial, **facts), self.unfinished)
        self._last_save = time.monotonic()
        self._interval = 20 * (self._last_save - start)

    def finish(self, result: Evaluation) -> Evaluation:
        """Write the output and remove the unfinished file.

        Args:
            result: The scores of this run, which are added to an existing Parquet file.

        Returns:
            All scores in the file of the features of this run.

        Raises:
            MetricError: If the file cannot be written, or another run has written something else.
        """
        while True:
            whole = result if self._existing is None else self._add(self._existing, result)
            try:
                write_scores(whole, self.path, self._check_unchanged)
                break
            except _FileChangedError:
                self._identity = self._file_identity()
                self._existing, why = self._read_existing()
                self._changed = {}
                self._refuse(why, *self._conflicts(self._existing).values())
            except OSError as error:
                why = error.strerror or str(error)
                raise MetricError(f"{self.path}: the scores could not be written: {why}") from None
        self.unfinished.unlink(missing_ok=True)
        row_of_key = {key: row for row, key in enumerate(row_keys(whole.labels))}
        rows = [row_of_key[key] for key in row_keys(result.labels)]
        scored = [
            name for name, column in whole.columns().items() if np.isfinite(column[rows]).any()
        ]
        return whole.part(rows, scored)

    def _check_unchanged(self) -> None:
        if self._file_identity() != self._identity:
            raise _FileChangedError

    def _add(self, existing: Evaluation, result: Evaluation) -> Evaluation:
        """Add the scores of this run to existing ones, without those that they replace."""
        metrics = (*existing.metrics, *existing.without)
        kept = [
            metric.name
            for metric in metrics
            if metric.name not in self._changed and metric.base_name not in self._changed
        ]
        existing = existing.part(range(existing.labels.num_rows), kept)
        facts: dict[str, Any] = {}
        for field in ("failures", "notes", "provenance"):
            earlier = {
                name: value
                for name, value in getattr(existing, field).items()
                if name not in self._provenance or (field == "provenance" and name in kept)
            }
            facts[field] = earlier | dict(getattr(result, field))
        whole = align_labels(combine(existing, result), self._dataset.labels)
        return replace(whole, errors=result.errors, fitted=result.fitted, **facts)


def _joint_input(metric: Metric, scored: pa.Table) -> list[str]:
    """Return what identifies the features that a metric scores jointly; empty for pairs."""
    return [] if metric.scope == "pair" else [metric.scope, table_digest(scored)]


def _training_input(metric: Metric, whole: pa.Table, training: str) -> list[str]:
    """Return what identifies the other sources on which the scores of a metric depend."""
    if not metric.fit and all(name in metric.options for name in metric.needs):
        return []
    keys = ("task", "source_id", "fold", "codec", "level")
    digest = table_digest(whole.select([name for name in keys if name in whole.schema.names]))
    left_out = [] if metric.left_out is None else [metric.left_out]
    return [digest, training, *left_out] if metric.fit else [digest]
