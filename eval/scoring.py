"""Scoring what has no score yet, a batch at a time; what a metric cannot score costs only itself.

A metric that fails on a batch is tried on each of its features alone: what it scores is kept, and
the first failure is told. One that has scored nothing of some sources of a task is not tried on the
task's others.

A score must not depend on the rest of its batch. For metrics that are not this package's own, which
its tests see to, a feature is scored alone now and then. Where that gives another score, the metric
scores one feature at a time from there on, its earlier scores are made anew, and that is told.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cfqa_data.console.progress import Progress
from cfqa_data.errors import CfqaError, MetricError
from cfqa_data.eval.metrics import METRICS, PAPER_METRICS, TRAINED_METRICS, Metric
from cfqa_data.eval.metrics.base import error_line

if TYPE_CHECKING:
    from cfqa_data.eval.features import Features
    from cfqa_data.eval.reading import Batch, FeatureSource

__all__ = ["Reading", "Scored", "Scoring"]

TRIES = 3
"""Sources of a task after which a metric that has scored none of it is not tried any more."""

CLOSE = 1e-3
"""Of scores' size and spread: how far rounding may take a feature's score from that of a batch."""

LEAST = 1e-6
"""Difference of scores that is rounding whatever their size, as in 1 - cosine."""

TESTED = [metric.function for metric in (*METRICS, *TRAINED_METRICS, *PAPER_METRICS)]


@dataclass(frozen=True)
class Reading:
    """What is scored, and how it is read.

    Attributes:
        dataset: An open dataset.
        rows: Label rows to score.
        target: Label that is followed.
        device: Torch device.
        batch: Compressed features per batch; by default what `read_batches` takes.
    """

    dataset: FeatureSource
    rows: NDArray[np.intp]
    target: str
    device: str
    batch: int | None


@dataclass(frozen=True)
class Scored:
    """What an evaluation has so far, and goes on from after an interruption.

    Attributes:
        values: (rows, M) scores of M metrics, NaN where there is none yet.
        notes: What else is to be known of a metric's scores, by name.
        alone: Names of the metrics that score one feature at a time.
    """

    values: NDArray[np.float64]
    notes: dict[str, str] = field(default_factory=dict)
    alone: set[str] = field(default_factory=set)

    @classmethod
    def nothing(cls, rows: int, metrics: int) -> Scored:
        """Return what there is at the start."""
        return cls(np.full((rows, metrics), np.nan))


class Scoring:
    """The scores of an evaluation while they are made.

    Args:
        metrics: M metrics.
        reading: What is scored.
        scored: What there is already; filled in place.

    Attributes:
        failures: The first thing that went wrong with a metric, by name.
    """

    def __init__(self, metrics: Sequence[Metric], reading: Reading, scored: Scored) -> None:
        self.failures: dict[str, str] = {}
        self._metrics, self._reading, self._scored = metrics, reading, scored
        self._values = scored.values
        self._failed = np.zeros(scored.values.shape, dtype=bool)
        self._batches: Counter[tuple[str, str]] = Counter()
        self._tried: defaultdict[tuple[str, str], set[str]] = defaultdict(set)

    def run(self, file: Any, progress: Progress) -> None:
        """Score everything.

        Args:
            file: Where scores are saved now and then, if anywhere.
            progress: Told about every batch.

        Raises:
            MetricError: A feature holds NaN or Inf, or has not its original's shape.
        """
        if not self._missing().any():
            return
        from cfqa_data.eval.originals import original_statistics

        dataset, device = self._reading.dataset, self._reading.device
        needed = [n for metric in self._metrics for n in metric.needs if n not in metric.options]
        self._known = original_statistics(dataset, needed, device, progress)
        self._tasks = np.array(dataset.labels["task"].to_pylist())
        by_fold = bool(needed) or any(metric.fit for metric in self._metrics)
        self._folds = _folds(dataset) if by_fold else np.zeros(len(self._tasks), dtype=np.intp)
        self._ready: dict[tuple[str, int], list[Metric | None]] = {}
        # Twice, if a metric begins anew.
        while (missing := np.asarray(self._missing().any(axis=1))).any():
            progress.start("evaluate", len(missing), "features")
            progress.advance(int((~missing).sum()))
            tasks = self._tasks[self._reading.rows]
            for task in dict.fromkeys(tasks[missing].tolist()):
                self._task(np.flatnonzero(missing & (tasks == task)), task, file, progress)
            progress.finish()

    def _missing(self, *where: Any) -> NDArray[np.bool_]:
        """Return which scores, of all or at some places, are still to be made."""
        return np.asarray(np.isnan(self._values[where]) & ~self._failed[where])

    def _task(self, places: NDArray[np.intp], task: str, file: Any, progress: Progress) -> None:
        """Score some rows of a task, until there is none that a metric may still score."""
        from cfqa_data.eval.reading import read_batches

        reading = self._reading
        place_of = {int(reading.rows[place]): place for place in places}
        left = len(places)
        for part in read_batches(reading.dataset, list(place_of), reading.device, reading.batch):
            at = np.array([place_of[row] for row in part.rows])
            for column, metric in enumerate(self._of_fold(task, int(self._folds[part.rows[0]]))):
                if metric is not None and self._missing(at, column).any():
                    self._batch(metric, column, part, at)
                    if self._hopeless(metric, column, part, at, places):
                        self._failed[places, column] = True
            if file:
                file.save(self._scored)
            progress.advance(len(at))
            left -= len(at)
            if not self._missing(places).any():
                break
        if left:
            progress.advance(left)

    def _of_fold(self, task: str, fold: int) -> list[Metric | None]:
        """Return the metrics with what they need of the other folds; None for one that lacks it."""
        if (task, fold) not in self._ready:
            self._ready[task, fold] = [self._given(metric, task, fold) for metric in self._metrics]
            here = (self._tasks == task) & (self._folds == fold)
            lacking = [metric is None for metric in self._ready[task, fold]]
            self._failed[np.ix_(here[self._reading.rows], lacking)] = True
        return self._ready[task, fold]

    def _given(self, metric: Metric, task: str, fold: int) -> Metric | None:
        from cfqa_data.eval.reading import Part

        others = np.flatnonzero((self._tasks == task) & (self._folds != fold))
        needed = [name for name in metric.needs if name not in metric.options]
        try:
            if needed:
                metric = metric.with_options(**self._known.of(task, fold, needed))
            if metric.fit and "fold" not in self._reading.dataset.labels.column_names:
                raise MetricError("the labels have no column 'fold': there is nothing to hold out")
            if metric.fit and not len(others):
                raise MetricError("no other fold to train on")
            if metric.fit:
                metric = metric.fitted(Part(self._reading.dataset, others, self._reading.target))
        except MetricError as error:
            where = f" ({task}, all folds but {fold})" if metric.fit else ""
            named = "" if repr(metric.name) in str(error) else f"metric {metric.name!r}: "
            self.failures.setdefault(metric.name, f"{named}{error}{where}")
            return None
        return metric

    def _hopeless(
        self,
        metric: Metric,
        column: int,
        part: Batch,
        at: NDArray[np.intp],
        of_task: NDArray[np.intp],
    ) -> bool:
        """Return whether a metric failed on several sources of a task and has scored none of it."""
        if not self._failed[at, column].any():
            return False
        tried = self._tried[metric.name, str(self._tasks[part.rows[0]])]
        tried.add(part.source_id)
        return len(tried) >= TRIES and bool(np.isnan(self._values[of_task, column]).all())

    def _batch(self, metric: Metric, column: int, part: Batch, at: NDArray[np.intp]) -> None:
        """Score a batch by one metric: together, or else one by one."""
        name, together = metric.name, None
        notes, alone = self._scored.notes, self._scored.alone
        if len(at) > 1 and name not in alone:
            try:
                scores = _scores(metric, part.x, part.y)
            except MetricError as error:
                together = error
            else:
                self._values[at, column] = scores
                if note := self._depends(metric, part, scores):
                    alone.add(name)
                    notes[name] = note
                    self._values[:, column] = np.nan
                else:
                    return
        for item, place in enumerate(at):
            try:
                self._values[place, column] = _scores(metric, part.x, _one(part, item))[0]
            except MetricError as error:
                self._failed[place, column] = True
                self.failures.setdefault(name, f"{error} ({part.names[item]})")
        if together and not self._failed[at, column].any():
            alone.add(name)
            versions = f"{len(at)} versions of {part.source_id} at once"
            notes[name] = f"{together} ({versions}); it scores one feature at a time"

    def _depends(self, metric: Metric, part: Batch, scores: NDArray[Any]) -> str:
        """Return how a score depends on its batch, of a metric's 1st, 2nd, 4th, 8th ... of a task.

        Returns:
            A line, or nothing.
        """
        task = str(self._tasks[part.rows[0]])
        self._batches[metric.name, task] += 1
        count = self._batches[metric.name, task]
        tested = any(metric.function is function for function in TESTED)
        if tested or count & (count - 1):
            return ""
        item = len(scores) // 2
        among = float(scores[item])
        try:
            alone, again = (float(_scores(metric, part.x, _one(part, item))[0]) for _ in range(2))
        except MetricError:  # which is told when it is scored
            told = f"{among:.6g} among {len(scores)} and none alone"
        else:
            # Of each end, since what lies between them may be more than the largest float.
            spread = CLOSE * float(scores.max()) - CLOSE * float(scores.min())
            most = max(CLOSE * abs(among), CLOSE * abs(alone), spread) + LEAST
            if abs(among - alone) <= most:
                return ""
            told = f"{among:.6g} among {len(scores)} and {alone:.6g} alone"
            if abs(alone - again) > most:
                told += f", then {again:.6g}: it is no function of the two features"
        why = f"metric {metric.name!r}: its scores depend on the batch"
        return f"{why}: {told} ({part.names[item]}); it scores one feature at a time"


def _folds(dataset: FeatureSource) -> NDArray[np.intp]:
    """Return the fold of each label row; 0 where the labels do not say."""
    if "fold" not in dataset.labels.column_names:
        return np.zeros(dataset.labels.num_rows, dtype=np.intp)
    return np.asarray(dataset.labels["fold"].to_numpy().astype(np.intp))


def _one(part: Batch, item: int) -> Features:
    from cfqa_data.eval.features import Features

    whole = part.y
    return whole if len(whole) == 1 else Features(whole.values[item : item + 1])


def _scores(metric: Metric, x: Features, y: Features) -> NDArray[Any]:
    try:
        return np.asarray(metric.score(x, y).detach().cpu())
    except CfqaError as error:
        raise MetricError(str(error)) from error
    except (Exception, SystemExit) as error:  # whatever a user's function raises
        raise MetricError(f"metric {metric.name!r} failed: {error_line(error)}") from error
