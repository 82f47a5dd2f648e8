"""Run an evaluation: compute the missing scores in this process or in others.

A metric that fails on all features of the first few sources of a task is skipped for the rest of
the task. Sources are scored independently, so any process can score any source.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cfqa_data.console.progress import Progress
from cfqa_data.eval.cross_fitting import CrossFitter
from cfqa_data.eval.metrics import Metric
from cfqa_data.eval.provenance import Provenance
from cfqa_data.eval.scoring import Scorer
from cfqa_data.eval.workers import READ_ONLY, Pickled, SourceItem, SourceStage

if TYPE_CHECKING:
    from cfqa_data.eval.score_file import ScoreFile
    from cfqa_data.processes.executor import Executor

__all__ = ["Run"]

MAX_FAILED_SOURCES = 3
"""Number of sources after which a metric without any score for a task is skipped."""

WHOLE_SOURCE = 2**62
"""Batch size that holds all versions of any source."""


class Work(NamedTuple):
    """The scores to compute for a source.

    Attributes:
        task: Task of the source.
        fold: Fold of the source.
        source_id: Id of the source.
        indices: Indices of its rows among the rows to score, in the order in which they are read.
        position: Number of sources of the task before this one.
        size: Compressed features per batch that is read; None for the default.
    """

    task: str
    fold: int
    source_id: str
    indices: NDArray[np.intp]
    position: int
    size: int | None


class Run:
    """Computes the missing scores of an evaluation.

    Args:
        fitter: The metrics and what they score. Its account receives the scores.
        precision: Precision of float32 matrix products.
        batch: Compressed features per batch; None for the default of `read_batches`.
    """

    def __init__(self, fitter: CrossFitter, precision: str, batch: int | None) -> None:
        self._fitter, self._precision, self._batch = fitter, precision, batch
        self._metrics, self._dataset, self._rows = fitter.metrics, fitter.dataset, fitter.rows
        self._account, self._scored = fitter.account, fitter.account.scored
        self._device = fitter.device

    def provenance(self) -> dict[str, Provenance]:
        """Return the origin of each metric's scores, including its training data."""
        return {
            metric.name: replace(
                self._scored.provenance[metric.name],
                trained_on=self._fitter.trained_on(metric) if metric.fit else None,
                alone=metric.name in self._scored.alone,
            )
            for metric in self._metrics
        }

    def run(self, file: ScoreFile | None, progress: Progress, executor: Executor | None) -> None:
        """Compute all missing scores.

        Args:
            file: File to which the scores are saved periodically, if any.
            progress: Advances after every batch, or after every source that a worker has scored.
            executor: Scores the sources in other processes; None scores them in this one.

        Raises:
            MetricError: If a feature contains NaN or Inf, or differs in shape from its original.
        """
        if not self._scored.missing().any():
            return
        if executor is not None:  # fail before training if something cannot be pickled
            for metric in self._metrics:
                Pickled.of(f"metric {metric.name!r}", metric)
            self._pickled_dataset = Pickled.of("the dataset", self._dataset)
        self._exclude_tasks()
        self._fitter.prepare(progress)
        # A metric whose scores turn out to depend on the batch is scored again in a second round.
        while (missing := np.asarray(self._scored.missing().any(axis=1))).any():
            left = int(missing.sum())
            progress.start("evaluate", len(missing), "features")
            progress.advance(len(missing) - left)
            work = self._work(missing)
            for done in self._score(work) if executor is None else self._send(work, executor):
                if file:
                    file.save(self._scored)
                progress.advance(done)
                left -= done
            if left:
                progress.advance(left)
            progress.finish()

    def _exclude_tasks(self) -> None:
        """Mark metrics as undefined for tasks that they do not apply to."""
        for column, metric in enumerate(self._metrics):
            outside = ~np.isin(self._fitter.tasks, metric.tasks)
            outside &= np.isnan(self._scored.values[:, column])
            if metric.tasks and outside.any():
                reason = f"for tasks other than {', '.join(metric.tasks)}"
                self._account.add_undefined(outside, column, metric.name, reason)

    def _work(self, missing: NDArray[np.bool_]) -> dict[str, list[Work]]:
        """Return the work by task."""
        work: dict[str, list[Work]] = {}
        tasks, sources, folds = self._fitter.tasks, self._fitter.sources, self._fitter.folds
        wide = [n for n, m in enumerate(self._metrics) if m.scope != "pair"]
        for task in dict.fromkeys(tasks[missing].tolist()):
            indices, size = np.flatnonzero(missing & (tasks == task)), self._batch
            if wide and self._scored.missing(indices)[:, wide].any():
                # These metrics see all versions of a source, including those that have a score, in
                # a fixed random order, which reveals neither codec nor level.
                size, of_task = WHOLE_SOURCE, np.flatnonzero(tasks == task)
                indices = of_task[np.isin(sources[of_task], sources[indices])]
                shuffled = np.random.default_rng(0).random(len(indices))
                indices = indices[np.lexsort((shuffled, sources[indices]))]
            by_source: dict[str, list[int]] = {}
            for index in indices.tolist():
                by_source.setdefault(sources[index], []).append(index)
            work[task] = [
                Work(task, int(folds[own[0]]), source, np.array(own), position, size)
                for position, (source, own) in enumerate(by_source.items())
            ]
        return work

    def _score(self, work: Mapping[str, Sequence[Work]]) -> Iterator[int]:
        """Score in this process; yield the number of features scored by each step."""
        from cfqa_data.eval.features.reading import read_batches

        def fitted(column: int, source: str) -> Metric | None:
            one, _ = by_source[source]
            return self._fitter.metric(column, one.task, one.fold)

        scorer = Scorer(self._metrics, self._account, fitted, self._batch)
        for sources in work.values():
            rows = [self._rows[one.indices].tolist() for one in sources]
            by_source = {
                one.source_id: (one, dict(zip(own, one.indices.tolist(), strict=True)))
                for one, own in zip(sources, rows, strict=True)
            }
            indices, size = np.concatenate([one.indices for one in sources]), sources[0].size
            for whole in read_batches(self._dataset, list(chain(*rows)), self._device, size):
                one, index_of_row = by_source[whole.source_id]
                yield scorer.score(whole, index_of_row, one.position)
                self._give_up(sources)
                if not self._scored.missing(indices).any():
                    break

    def _send(self, work: Mapping[str, Sequence[Work]], executor: Executor) -> Iterator[int]:
        """Score in other processes, the largest features first, to keep all of them busy."""
        metrics, dataset = self._metrics, self._pickled_dataset

        def size(sources: Sequence[Work]) -> int:
            return int(self._dataset.original(sources[0].source_id).size)

        @cache
        def stage(task: str, fold: int) -> SourceStage:
            fitted = [self._fitter.metric(n, task, fold) for n in range(len(metrics))]
            how = self._device, self._precision, self._batch
            return SourceStage(dataset, metrics, fitted, *how)

        items = [
            SourceItem(one, order, self._rows[one.indices], self._scored)
            for order, one in enumerate(chain(*work.values()))
        ]
        sizes = {task: size(sources) for task, sources in work.items()}
        items.sort(key=lambda item: sizes[item.work.task], reverse=True)
        names = [metric.name for metric in metrics]

        def stage_of(item: SourceItem) -> SourceStage:
            return stage(item.work.task, item.work.fold)

        def split(item: SourceItem) -> list[SourceItem]:
            return self._split(item, work[item.work.task])

        for item, part in executor.run(stage_of, items, split):
            before = int(self._scored.missing(item.work.indices).any(axis=1).sum())
            self._account.merge(item.work.indices, part, names, item.order)
            self._give_up(work[item.work.task])
            yield max(0, before - int(self._scored.missing(item.work.indices).any(axis=1).sum()))

    def _split(self, item: SourceItem, sources: Sequence[Work]) -> list[SourceItem]:
        """Split an item that kills its workers, or give up what the last split has found.

        A source is first only read and then scored by one metric at a time. A metric that kills its
        worker is given up for the whole task, since each further attempt would cost a worker.

        Args:
            item: The item that killed every worker that tried it.
            sources: All sources of its task.

        Returns:
            The items that replace it; none if it cannot be split further.
        """
        indices = item.work.indices
        columns = np.flatnonzero(self._scored.missing(indices).any(axis=0)).tolist()
        if item.only is None:
            return item.split(columns)
        why = f"{item}: the processes that read its features were killed (out of memory?)"
        if item.only != READ_ONLY:
            columns, indices = [item.only], np.concatenate([one.indices for one in sources])
            name = self._metrics[item.only].name
            why = f"the processes that scored {item} with it were killed (out of memory?)"
            why = f"metric {name!r} is given up: {why}"
        for column in columns:
            self._account.add_error(self._metrics[column].name, why)
            self._scored.failed[indices[self._scored.missing(indices)[:, column]], column] = True
        return []

    def _give_up(self, sources: Sequence[Work]) -> None:
        """Skip metrics that failed on all features of the first sources of a task."""
        candidates = np.array([metric.name in self._account.errors for metric in self._metrics])
        failed_sources = np.zeros(len(candidates), dtype=int)
        for one in sources:
            if not candidates.any():
                return
            missing, failed = self._scored.missing(one.indices), self._scored.failed[one.indices]
            scored = ~missing & ~failed
            candidates &= ~(missing | scored).any(axis=0)
            defined = failed & ~self._scored.undefined[one.indices]
            failed_sources += candidates & defined.any(axis=0)
            for column in np.flatnonzero(candidates & (failed_sources == MAX_FAILED_SOURCES)):
                indices = np.concatenate([one.indices for one in sources])
                self._scored.values[indices, column] = np.nan
                self._scored.failed[indices, column] = True
                candidates[column] = False
