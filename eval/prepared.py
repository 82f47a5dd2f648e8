"""Metrics with what they need of other folds: those that are trained, or take statistics."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cfqa_data.console.progress import Progress
from cfqa_data.errors import MetricError, UndefinedError
from cfqa_data.eval.account import Account
from cfqa_data.eval.folds import Folds
from cfqa_data.eval.metrics import Metric
from cfqa_data.eval.provenance import TrainedOn

if TYPE_CHECKING:
    from cfqa_data.eval.features.datasets import FeatureSource

__all__ = ["Prepared"]


class Prepared:
    """The metrics of an evaluation as they score the sources of a task and fold.

    Args:
        metrics: M metrics.
        dataset: An open dataset.
        rows: Its label rows that are scored.
        account: Of their scores.
        target: Label that is followed.
        device: Torch device.
        limit: At most so many sources of each fold are trained on.

    Attributes:
        tasks: Task of each of the rows.
        folds: Fold of each; 0 where nothing depends on folds.
        sources: Source of each.
        fitted: What was trained, by the metric's name, task and fold.
    """

    def __init__(
        self,
        metrics: Sequence[Metric],
        dataset: FeatureSource,
        rows: NDArray[np.intp],
        account: Account,
        *,
        target: str,
        device: str,
        limit: int | None,
    ) -> None:
        self._metrics, self._dataset, self._account = metrics, dataset, account
        self._target, self._device = target, device
        self._split = Folds(dataset, limit, any(metric.needs or metric.fit for metric in metrics))
        self.tasks, self.folds = self._split.tasks[rows], self._split.folds[rows]
        self.sources = self._split.column("source_id")[rows]
        self.fitted: dict[str, dict[tuple[str, int], Metric]] = {}
        self._ready: dict[tuple[str, int, int], Metric | None] = {}

    def prepare(self, progress: Progress) -> None:
        """Take statistics and train, in stages of their own, so that each tells its time left.

        What features of a task turn out to have too few tokens for is not trained.
        """
        from cfqa_data.eval.features.training import KnownScores
        from cfqa_data.eval.originals import OriginalStatistics

        needed = [n for metric in self._metrics for n in metric.needs if n not in metric.options]
        self._known = OriginalStatistics(self._dataset, needed, self._device, progress)
        self._shared, self._progress = KnownScores(self._dataset, self._device), progress
        self._ready.clear()
        trained = [(column, metric) for column, metric in enumerate(self._metrics) if metric.fit]
        keys = []
        for task in dict.fromkeys(self.tasks.tolist()) if trained else ():
            source = self.sources[self.tasks == task][0]
            tokens = self._dataset.original(source).shape[2]
            for fold in np.unique(self.folds[self.tasks == task]).tolist():
                here = self._here(task, fold)
                keys += [
                    (column, task, fold)
                    for column, metric in trained
                    if tokens >= metric.least_tokens
                    and self._account.scored.missing(here, column).any()
                ]
        self._score_inputs(keys)
        if keys:
            progress.start("train", len(keys), "trainings")
            for key in keys:
                self.of_fold(*key)
                progress.advance()
            progress.finish()

    def of_fold(self, column: int, task: str, fold: int) -> Metric | None:
        """Return a metric with what it needs of the other folds; None where it lacks that."""
        key = task, fold, column
        if key not in self._ready:
            self._ready[key], metric = None, self._metrics[column]
            here = self._here(task, fold)
            prepared = metric.fit or metric.needs
            told = self._account.accounted(metric, training=True) if prepared else nullcontext()
            try:
                with told:
                    self._ready[key] = self._given(metric, task, fold)
            except UndefinedError as error:
                self._account.undefined(here, column, metric.name, str(error))
            except MetricError as error:
                where = f" ({task}, all folds but {fold})" if metric.fit else ""
                named = "" if repr(metric.name) in str(error) else f"metric {metric.name!r}: "
                self._account.fails(metric.name, f"{named}{error}{where}", error.__cause__)
                self._account.gives_up(here, column)
        return self._ready[key]

    def trained_on(self, metric: Metric) -> TrainedOn:
        """Return what the trainings of a metric have seen, those of an earlier run too."""
        labels, seen = self._dataset.labels, np.zeros(len(self._split.tasks), bool)
        here = set(zip(self.tasks, self.folds, strict=True))
        if earlier := self._account.scored.earlier.get(metric.name):
            here |= set(zip(*earlier.select(["task", "fold"]).to_pydict().values(), strict=True))
        for task, fold in sorted(here):
            if metric.tasks and task not in metric.tasks:
                continue
            with suppress(UndefinedError):
                seen[self._split.others(task, fold, metric.left_out)] = True
        rows = labels.filter(seen)
        return TrainedOn.of(rows, np.unique(self._split.folds[seen]).tolist(), self._target)

    def _here(self, task: str, fold: int) -> NDArray[np.bool_]:
        return np.asarray((self.tasks == task) & (self.folds == fold))

    def _score_inputs(self, keys: Sequence[tuple[int, str, int]]) -> None:
        """Make the scores that trainings ask for, in one pass over the rows of all of them."""
        inputs: dict[str, Metric] = {}
        rows = np.zeros(len(self._split.tasks), dtype=bool)
        for column, task, fold in keys:
            metric = self._metrics[column]
            if metric.inputs:
                inputs |= {one.name: one for one in metric.inputs}
                with suppress(UndefinedError):
                    rows[self._split.others(task, fold, metric.left_out)] = True
        if inputs:
            first = next(self._metrics[key[0]] for key in keys if self._metrics[key[0]].inputs)
            accounted = self._account.accounted(first, training=True)
            with suppress(MetricError), accounted:  # told where it is trained
                self._shared.of([*inputs.values()], np.flatnonzero(rows), self._progress)

    def _given(self, metric: Metric, task: str, fold: int) -> Metric:
        from cfqa_data.eval.features.training import TrainingSet

        if needed := [name for name in metric.needs if name not in metric.options]:
            metric = metric.with_options(**self._known.of(task, fold, needed))
        if metric.fit is None:
            return metric
        others = self._split.others(task, fold, metric.left_out)
        if "fold" not in self._dataset.labels.column_names:
            raise MetricError("the labels have no column 'fold': no folds to hold out")
        if not len(others):
            raise MetricError("no other fold to train on")
        shared, progress = self._shared, self._progress
        training = TrainingSet(self._dataset, others, self._target, shared, progress)
        found = metric.fitted(training, progress=progress)
        return self.fitted.setdefault(metric.name, {}).setdefault((task, fold), found)
