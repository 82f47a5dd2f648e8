"""One run of an evaluation: what lacks scores, in which order, and by which processes.

A metric that fails on all features of the first few sources of a task is skipped for the rest of
that task. Sources are scored independently of each other, so it does not matter where.
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
from cfqa_data.eval.account import Account, Scored
from cfqa_data.eval.metrics import Metric
from cfqa_data.eval.prepared import Prepared
from cfqa_data.eval.provenance import Provenance
from cfqa_data.eval.scoring import Scorer
from cfqa_data.eval.workers import Sent, SourceItem, SourceStage

if TYPE_CHECKING:
    from cfqa_data.eval.features.datasets import FeatureSource
    from cfqa_data.eval.score_file import ScoreFile
    from cfqa_data.processes.executor import Executor

__all__ = ["Run"]

TRIES = 3
"""Sources of a task after which a metric that has scored none of it is not tried any more."""

WHOLE = 2**62
"""Features per batch of which no source has more."""


class Work(NamedTuple):
    """What is to be scored of a source.

    Attributes:
        task: Its task.
        fold: Its fold.
        source_id: Its id.
        places: Of its rows among those that are scored, in the order in which they are read.
        before: How many sources of the task come before it.
        size: Features per batch that are read, where it is not the usual number.
    """

    task: str
    fold: int
    source_id: str
    places: NDArray[np.intp]
    before: int
    size: int | None


class Run:
    """The scores of an evaluation while they are made.

    Args:
        metrics: M metrics.
        dataset: An open dataset.
        rows: Its label rows to score.
        scored: What there is already; filled in place.
        target: Label that is followed.
        device: Torch device.
        precision: Of float32 matrix products.
        batch: Compressed features per batch; by default what `read_batches` takes.
        limit: At most so many sources of each fold are trained on.

    Attributes:
        account: What the scores cost, and what is to be said of them.
        fitted: What was trained, by the metric's name, task and fold.
    """

    def __init__(
        self,
        metrics: Sequence[Metric],
        dataset: FeatureSource,
        rows: NDArray[np.intp],
        scored: Scored,
        *,
        target: str,
        device: str,
        precision: str,
        batch: int | None,
        limit: int | None,
    ) -> None:
        self._metrics, self._dataset, self._rows, self._scored = metrics, dataset, rows, scored
        self._device, self._precision, self._size = device, precision, batch
        self.account = Account(scored, device)
        self._prepared = Prepared(
            metrics, dataset, rows, self.account, target=target, device=device, limit=limit
        )
        self.fitted = self._prepared.fitted

    def provenance(self) -> dict[str, Provenance]:
        """Return where each metric's scores come from, with what its trainings have seen."""
        return {
            metric.name: replace(
                self._scored.provenance[metric.name],
                trained_on=self._prepared.trained_on(metric) if metric.fit else None,
                alone=metric.name in self._scored.alone,
            )
            for metric in self._metrics
        }

    def run(self, file: ScoreFile | None, progress: Progress, executor: Executor | None) -> None:
        """Score everything.

        Args:
            file: Where scores are saved now and then, if anywhere.
            progress: Told about every batch, or every source that another process has scored.
            executor: Scores the sources in other processes; None in this one.

        Raises:
            MetricError: If a feature holds NaN or Inf, or has not its original's shape.
        """
        if not self._scored.missing().any():
            return
        if executor is not None:  # what cannot be sent is told before anything is trained
            for metric in self._metrics:
                Sent.of(f"metric {metric.name!r}", metric)
            self._dataset_sent = Sent.of("the dataset", self._dataset)
        self._outside_tasks()
        self._prepared.prepare(progress)
        # Twice, if a metric begins anew.
        while (missing := np.asarray(self._scored.missing().any(axis=1))).any():
            left = int(missing.sum())
            progress.start("evaluate", len(missing), "features")
            progress.advance(len(missing) - left)
            work = self._work(missing)
            for done in self._score(work) if executor is None else self._sent(work, executor):
                if file:
                    file.save(self._scored)
                progress.advance(done)
                left -= done
            if left:
                progress.advance(left)
            progress.finish()

    def _outside_tasks(self) -> None:
        """Leave out the tasks that a metric is not for."""
        for column, metric in enumerate(self._metrics):
            outside = ~np.isin(self._prepared.tasks, metric.tasks)
            outside &= np.isnan(self._scored.values[:, column])
            if metric.tasks and outside.any():
                reason = f"for tasks other than {', '.join(metric.tasks)}"
                self.account.undefined(outside, column, metric.name, reason)

    def _work(self, missing: NDArray[np.bool_]) -> dict[str, list[Work]]:
        """Return what is to be scored, by task."""
        work: dict[str, list[Work]] = {}
        tasks, sources, folds = (getattr(self._prepared, n) for n in ("tasks", "sources", "folds"))
        wide = [n for n, m in enumerate(self._metrics) if m.scope != "pair"]
        for task in dict.fromkeys(tasks[missing].tolist()):
            places, size = np.flatnonzero(missing & (tasks == task)), self._size
            if wide and self._scored.missing(places)[:, wide].any():
                # With what is scored of the same sources, in an order that tells nothing of codecs
                # and levels, and that is the same each time.
                size, of_task = WHOLE, np.flatnonzero(tasks == task)
                places = of_task[np.isin(sources[of_task], sources[places])]
                mixed = np.random.default_rng(0).random(len(places))
                places = places[np.lexsort((mixed, sources[places]))]
            of_source: dict[str, list[int]] = {}
            for place in places.tolist():
                of_source.setdefault(sources[place], []).append(place)
            work[task] = [
                Work(task, int(folds[of[0]]), source, np.array(of), before, size)
                for before, (source, of) in enumerate(of_source.items())
            ]
        return work

    def _score(self, work: Mapping[str, Sequence[Work]]) -> Iterator[int]:
        """Score in this process; yield how many features have been."""
        from cfqa_data.eval.features.reading import read_batches

        def ready(column: int, source: str) -> Metric | None:
            one, _ = of[source]
            return self._prepared.of_fold(column, one.task, one.fold)

        scorer = Scorer(self._metrics, self.account, ready, self._size)
        for sources in work.values():
            rows = [self._rows[one.places].tolist() for one in sources]
            of = {
                one.source_id: (one, dict(zip(own, one.places.tolist(), strict=True)))
                for one, own in zip(sources, rows, strict=True)
            }
            places, size = np.concatenate([one.places for one in sources]), sources[0].size
            for whole in read_batches(self._dataset, list(chain(*rows)), self._device, size):
                one, own = of[whole.source_id]
                yield scorer.score(whole, own, one.before)
                self._give_up(sources)
                if not self._scored.missing(places).any():
                    break

    def _sent(self, work: Mapping[str, Sequence[Work]], executor: Executor) -> Iterator[int]:
        """Score in other processes, the largest features first, so that none is left over last."""
        metrics, how = self._metrics, (self._device, self._precision, self._size)
        dataset = self._dataset_sent

        def size(sources: Sequence[Work]) -> int:
            return int(self._dataset.original(sources[0].source_id).size)

        @cache
        def stage(task: str, fold: int) -> SourceStage:
            ready = [self._prepared.of_fold(n, task, fold) for n in range(len(metrics))]
            return SourceStage(dataset, metrics, ready, *how)

        whole = enumerate(chain(*work.values()))
        items = [SourceItem(one, order, self._rows, self._scored) for order, one in whole]
        sizes = {task: size(sources) for task, sources in work.items()}
        items.sort(key=lambda item: sizes[item.work.task], reverse=True)
        names = [metric.name for metric in metrics]
        for item, part in executor.run(lambda item: stage(item.work.task, item.work.fold), items):
            done = int(self._scored.missing(item.work.places).any(axis=1).sum())
            self.account.add(item.work.places, part, names, item.order)
            self._give_up(work[item.work.task])
            yield done

    def _give_up(self, sources: Sequence[Work]) -> None:
        """Give up what has failed on the first few sources of a task, in their order."""
        open_ = np.array([metric.name in self.account.errors for metric in self._metrics])
        tried = np.zeros(len(open_), dtype=int)
        for one in sources:
            if not open_.any():
                return
            missing, failed = self._scored.missing(one.places), self._scored.failed[one.places]
            scored = ~missing & ~failed
            open_ &= ~(missing | scored).any(axis=0)
            tried += open_ & (failed & ~self._scored.undefined[one.places]).any(axis=0)
            for column in np.flatnonzero(open_ & (tried == TRIES)):
                places = np.concatenate([one.places for one in sources])
                self._scored.values[places, column] = np.nan
                self._scored.failed[places, column] = True
                open_[column] = False
