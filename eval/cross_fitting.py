"""Cross-fitting: train metrics, and compute their statistics, on folds that they do not score."""

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

__all__ = ["CrossFitter"]


class CrossFitter:
    """The metrics of an evaluation, each fitted for the task and fold that it scores.

    Args:
        metrics: M metrics.
        dataset: An open dataset.
        rows: Numbers of the label rows to score.
        account: Receives the scores, costs and failures.
        target: Label column to train on.
        device: Torch device.
        limit: Maximum number of training sources of each fold; None for all.

    Attributes:
        tasks: Task of each row to score.
        folds: Fold of each row to score; 0 if no metric depends on folds.
        sources: Source id of each row to score.
        fitted: The trained metrics, by name, and by task and the fold that they score.
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
        self.metrics, self.dataset, self.rows, self.account = metrics, dataset, rows, account
        self.target, self.device = target, device
        self._split = Folds(dataset, limit, any(metric.needs or metric.fit for metric in metrics))
        self.tasks, self.folds = self._split.tasks[rows], self._split.folds[rows]
        self.sources = self._split.column("source_id")[rows]
        self.fitted: dict[str, dict[tuple[str, int], Metric]] = {}
        self._metrics: dict[tuple[str, int, int], Metric | None] = {}

    def prepare(self, progress: Progress) -> None:
        """Compute statistics and train metrics, each as a stage of its own in the progress.

        Metrics are not trained for tasks whose features have too few tokens.
        """
        from cfqa_data.eval.features.training import KnownScores
        from cfqa_data.eval.originals import OriginalStatistics

        needed = [n for metric in self.metrics for n in metric.needs if n not in metric.options]
        self._statistics = OriginalStatistics(self.dataset, needed, self.device, progress)
        self._known_scores, self._progress = KnownScores(self.dataset, self.device), progress
        self._metrics.clear()
        trained = [(column, metric) for column, metric in enumerate(self.metrics) if metric.fit]
        keys = []
        for task in dict.fromkeys(self.tasks.tolist()) if trained else ():
            source = self.sources[self.tasks == task][0]
            tokens = self.dataset.original(source).shape[2]
            for fold in np.unique(self.folds[self.tasks == task]).tolist():
                rows = self._rows_of(task, fold)
                keys += [
                    (column, task, fold)
                    for column, metric in trained
                    if tokens >= metric.least_tokens
                    and self.account.scored.missing(rows, column).any()
                ]
        self._score_inputs(keys)
        if keys:
            progress.start("train", len(keys), "trainings")
            for key in keys:
                self.metric(*key)
                progress.advance()
            progress.finish()

    def metric(self, column: int, task: str, fold: int) -> Metric | None:
        """Return a metric fitted on the other folds; None if that is impossible."""
        key = task, fold, column
        if key not in self._metrics:
            self._metrics[key], metric = None, self.metrics[column]
            rows = self._rows_of(task, fold)
            needs_folds = metric.fit or metric.needs
            timed = self.account.timed(metric, training=True) if needs_folds else nullcontext()
            try:
                with timed:
                    self._metrics[key] = self._fit(metric, task, fold)
            except UndefinedError as error:
                self.account.add_undefined(rows, column, metric.name, str(error))
            except MetricError as error:
                where = f" ({task}, all folds but {fold})" if metric.fit else ""
                named = "" if repr(metric.name) in str(error) else f"metric {metric.name!r}: "
                self.account.add_error(metric.name, f"{named}{error}{where}", error.__cause__)
                self.account.scored.failed[rows, column] = True
        return self._metrics[key]

    def trained_on(self, metric: Metric) -> TrainedOn:
        """Return the training data of a metric, including that of an earlier run."""
        labels, seen = self.dataset.labels, np.zeros(len(self._split.tasks), bool)
        scored = set(zip(self.tasks, self.folds, strict=True))
        if earlier := self.account.scored.earlier.get(metric.name):
            scored |= set(zip(*earlier.select(["task", "fold"]).to_pydict().values(), strict=True))
        for task, fold in sorted(scored):
            if metric.tasks and task not in metric.tasks:
                continue
            with suppress(UndefinedError):
                seen[self._split.training_rows(task, fold, metric.left_out)] = True
        rows = labels.filter(seen)
        return TrainedOn.of(rows, np.unique(self._split.folds[seen]).tolist(), self.target)

    def _rows_of(self, task: str, fold: int) -> NDArray[np.bool_]:
        return np.asarray((self.tasks == task) & (self.folds == fold))

    def _score_inputs(self, keys: Sequence[tuple[int, str, int]]) -> None:
        """Compute the scores of other metrics that trainings need, in one pass over the dataset."""
        inputs: dict[str, Metric] = {}
        rows = np.zeros(len(self._split.tasks), dtype=bool)
        for column, task, fold in keys:
            metric = self.metrics[column]
            if metric.inputs:
                inputs |= {one.name: one for one in metric.inputs}
                with suppress(UndefinedError):
                    rows[self._split.training_rows(task, fold, metric.left_out)] = True
        if inputs:
            first = next(self.metrics[key[0]] for key in keys if self.metrics[key[0]].inputs)
            timed = self.account.timed(first, training=True)
            with suppress(MetricError), timed:  # the training raises the error again
                self._known_scores.of([*inputs.values()], np.flatnonzero(rows), self._progress)

    def _fit(self, metric: Metric, task: str, fold: int) -> Metric:
        from cfqa_data.eval.features.training import TrainingSet

        if needed := [name for name in metric.needs if name not in metric.options]:
            metric = metric.with_options(**self._statistics.of(task, fold, needed))
        if metric.fit is None:
            return metric
        rows = self._split.training_rows(task, fold, metric.left_out)
        if "fold" not in self.dataset.labels.column_names:
            raise MetricError("the labels have no column 'fold': no folds to hold out")
        if not len(rows):
            raise MetricError("no other fold to train on")
        known, progress = self._known_scores, self._progress
        training = TrainingSet(self.dataset, rows, self.target, known, progress)
        fitted = metric.fitted(training, progress=progress)
        return self.fitted.setdefault(metric.name, {}).setdefault((task, fold), fitted)
