"""The file that an evaluation's scores go to: it grows, and an interrupted run goes on from it.

While it runs, an evaluation saves its scores beside the output, as ``NAME.unfinished``, a file of
scores too; the output itself is written atomically at the end.  Scores are reused where dataset,
code, options, device and precision are the same.  What a finished Parquet file holds of the same
dataset stays in it; a metric of the same name that is another one is replaced only with ``force``,
as is a file of anything else.
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
from cfqa_data.eval.merging import compared, joined, relabelled
from cfqa_data.eval.metrics import Metric
from cfqa_data.eval.provenance import Provenance
from cfqa_data.eval.results import Evaluation, conclude
from cfqa_data.eval.score_format import write_scores
from cfqa_data.eval.score_reading import read_scores
from cfqa_data.eval.score_rows import row_keys
from cfqa_data.eval.statistics import check_labels
from cfqa_data.format.storage import check_writable

if TYPE_CHECKING:
    import pyarrow as pa

    from cfqa_data.eval.features.datasets import FeatureSource

__all__ = ["ScoreFile"]

SECONDS = 20.0
"""Between two savings; more where one takes over a twentieth of it."""


class _OtherFileError(Exception):
    """Another run has put a file there meanwhile."""


class ScoreFile:
    """Where an evaluation's scores go.

    Args:
        path: ``.parquet`` or ``.csv``.
        dataset: What is scored, open.
        rows: Its label rows that are scored.
        metrics: M metrics.
        begun: What is known of where their scores come from, by name.
        target: Label that is followed.
        limit: At most so many sources of each fold are trained on.
        force: Replace what is there now: metrics that are not as they were, or a file that holds
            anything else, and an unfinished one of another dataset.

    Raises:
        MetricError: If the suffix is another, or a finished file is there that nothing may be added
            to.
        CfqaError: If no file can be written there.
    """

    def __init__(
        self,
        path: Path,
        dataset: FeatureSource,
        rows: NDArray[np.intp],
        metrics: Sequence[Metric],
        begun: Mapping[str, Provenance],
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
        self._known: dict[str, Any] = {
            "target": target,
            "failures": {},
            **dataset_facts(dataset),
        }
        self._begun = {}
        followed = target if limit is None else f"{target}, {limit} sources of each fold"
        for metric in metrics:
            more = _together(metric, self._labels)
            more += _other_sources(metric, dataset.labels, followed)
            record = replace(begun[metric.name], fingerprint=fingerprint(metric, *more))
            self._begun[metric.name] = record
        self._saved = self._pause = 0.0
        self._found = self._file_identity()
        self._there, why = self._look()
        self._changed = self._others(self._there)
        if not force:
            self._refuse(why, *self._changed.values())

    def _file_identity(self) -> tuple[int, ...] | None:
        """Return what tells the finished file that is there from any other, or None without one."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size

    def _refuse(self, *reasons: str) -> None:
        """Raise the first reason not to write to the file, if there is one."""
        for why in filter(None, reasons):
            remedy = "write to another file, or overwrite it with --force (force=True)"
            raise MetricError(f"{self.path}: {why}; {remedy}")

    def _look(self) -> tuple[Evaluation | None, str]:
        """Return what the finished file holds, or why nothing can be added to it."""
        if self._file_identity() is None:
            return None, ""
        try:
            if self.path.suffix == ".csv":
                raise MetricError("it has no metadata")
            there = read_scores(self.path, self._dataset.labels.num_rows)
        except MetricError:
            return None, "exists and does not record what was scored"
        if there.dataset != self._known["dataset"]:
            found = compared(there, self._dataset.labels, self._known["dataset_features"])
            if not found.same or found.differ.any():
                return None, "holds the scores of another dataset"
        own = {record.arrays for record in self._begun.values()}
        if {record.arrays for record in there.provenance.values()} - own - {None}:
            return None, "holds scores of other arrays"
        there = relabelled(there, self._dataset.labels)
        try:
            none = self._made(np.empty((len(self._labels), 0)), ())
            check_labels(joined(there, none).labels, self._known["target"])
        except MetricError:
            return None, "holds the scores of other features"
        return there, ""

    def _made(self, values: NDArray[np.float64], metrics: Sequence[Metric]) -> Evaluation:
        return conclude(self._labels, metrics, values, **self._known)

    def _others(self, there: Evaluation | None) -> dict[str, str]:
        """Return by name in what metrics that are there differ from those of this run."""
        found = {}
        scored = there.provenance if there else {}
        for name, own in self._begun.items():
            if (known := scored.get(name)) is None or own.fingerprint is None:
                continue
            if not (known.fingerprint and known.fingerprint.digest and own.fingerprint.digest):
                why = own.fingerprint.reason or "the file does not record its code"
                found[name] = f"holds scores of a {name!r} that may be different ({why})"
            elif own.fingerprint.digest != known.fingerprint.digest:
                how = own.fingerprint.difference(known.fingerprint)
                found[name] = f"holds scores of a {name!r} with {how}"
            elif (known.device, known.precision) != (own.device, own.precision):
                found[name] = f"holds scores of {name!r} made with another device or precision"
        return found

    def resume(self) -> Scored:
        """Return what the finished file and an interrupted run have of these metrics.

        Raises:
            MetricError: If the interrupted run is of another dataset.
        """
        scored = Scored.nothing(self._labels.num_rows, self._begun)
        for part in (self._there, self._interrupted()):
            if part is None:
                continue
            places = {key: place for place, key in enumerate(row_keys(part.labels))}
            order = np.array([places.get(key, -1) for key in row_keys(self._labels)])
            here, others = order >= 0, self._others(part)
            for name, column in part.columns().items():
                if name not in self._begun or name in others:
                    continue
                values = scored.values[:, list(self._begun).index(name)]
                values[here] = np.where(np.isnan(values), column[order], values)[here]
                record = part.provenance[name]
                scored.provenance[name] = replace(record, fingerprint=self._begun[name].fingerprint)
                scored.earlier[name] = part.labels.filter(~np.isnan(column))
                if record.alone:
                    scored.alone.add(name)
                    scored.notes[name] = part.notes.get(name, "")
        return scored

    def _interrupted(self) -> Evaluation | None:
        if not self.unfinished.is_file():
            return None
        remedy = "delete it, or write to another file"
        try:
            found = read_scores(self.unfinished, self._dataset.labels.num_rows)
        except MetricError:
            raise MetricError(
                f"{self.unfinished}: not the scores of an interrupted run; {remedy}"
            ) from None
        if found.dataset == self._known["dataset"]:
            arrays = {record.arrays for record in self._begun.values()}
            same = {record.arrays for record in found.provenance.values()} <= arrays
            return found if same else None
        if not self._force:
            raise MetricError(f"{self.unfinished}: an interrupted run on another dataset; {remedy}")
        return None

    def save(self, scored: Scored, *, now: bool = False) -> None:
        """Save what there is, if it is time to, or now; a full disk does not end the run."""
        began = time.monotonic()
        self._saved = self._saved or began
        if not now and began - self._saved < max(SECONDS, self._pause):
            return
        # Here a score that is not there yet is null, too.
        alone = {
            name: replace(r, alone=name in scored.alone) for name, r in scored.provenance.items()
        }
        made = self._made(scored.values, self._metrics)
        with suppress(OSError):
            write_scores(replace(made, notes=scored.notes, provenance=alone), self.unfinished)
        self._saved = time.monotonic()
        self._pause = 20 * (self._saved - began)

    def finish(self, found: Evaluation) -> Evaluation:
        """Write the output, and remove the unfinished file.

        Args:
            found: What to write, beside what a Parquet file holds already.

        Returns:
            What the file then holds of the same features.

        Raises:
            MetricError: If it cannot be written, or what another run put there is something else.
        """
        while True:
            whole = found if self._there is None else self._added_to(self._there, found)
            try:
                write_scores(whole, self.path, self._check_found)
                break
            except _OtherFileError:
                self._found = self._file_identity()
                self._there, why = self._look()
                self._changed = {}
                self._refuse(why, *self._others(self._there).values())
            except OSError as error:
                why = error.strerror or str(error)
                raise MetricError(f"{self.path}: the scores could not be written: {why}") from None
        self.unfinished.unlink(missing_ok=True)
        places = {key: place for place, key in enumerate(row_keys(whole.labels))}
        rows = [places[key] for key in row_keys(found.labels)]
        scored = [
            name for name, column in whole.columns().items() if np.isfinite(column[rows]).any()
        ]
        return whole.part(rows, scored)

    def _check_found(self) -> None:
        if self._file_identity() != self._found:
            raise _OtherFileError

    def _added_to(self, there: Evaluation, found: Evaluation) -> Evaluation:
        """Return what a file is to hold: what this run was not about stays."""
        metrics = (*there.metrics, *there.without)
        kept = [
            metric.name
            for metric in metrics
            if metric.name not in self._changed and metric.base_name not in self._changed
        ]
        there = there.part(range(there.labels.num_rows), kept)
        about: dict[str, Any] = {}
        for field in ("failures", "notes", "provenance"):
            earlier = {
                name: value
                for name, value in getattr(there, field).items()
                if name not in self._begun or (field == "provenance" and name in kept)
            }
            about[field] = earlier | dict(getattr(found, field))
        whole = relabelled(joined(there, found), self._dataset.labels)
        return replace(whole, errors=found.errors, fitted=found.fitted, **about)


def _together(metric: Metric, scored: pa.Table) -> list[str]:
    """Return which features decide a metric's scores together, where it sees several at once."""
    return [] if metric.scope == "pair" else [metric.scope, table_digest(scored)]


def _other_sources(metric: Metric, whole: pa.Table, followed: str) -> list[str]:
    """Return what of other sources decides a metric's scores: those it is trained on or takes."""
    if not metric.fit and all(name in metric.options for name in metric.needs):
        return []
    keys = ("task", "source_id", "fold", "codec", "level")
    on_disk = table_digest(whole.select([name for name in keys if name in whole.schema.names]))
    without = [] if metric.left_out is None else [metric.left_out]
    return [on_disk, followed, *without] if metric.fit else [on_disk]
