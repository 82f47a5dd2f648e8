"""Compute the missing scores of an evaluation, batch by batch, isolating metrics that fail.

A metric that fails on a batch is tried on each of its features alone: the scores that succeed are
kept, and the first failure is reported. A metric that fails on all features of the first few
sources of a task is skipped for the rest of that task.

A score must not depend on the rest of its batch. The tests ensure this for built-in metrics; for
others, a feature is occasionally scored alone too. If the two scores differ, the metric scores one
feature at a time from then on, its earlier scores are recomputed, and a note reports it.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from traceback import clear_frames
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cfqa_data.console.progress import Progress
from cfqa_data.errors import CfqaError, MetricError, UndefinedError
from cfqa_data.eval.folds import Folds
from cfqa_data.eval.metrics import METRICS, PAPER_METRICS, TRAINED_METRICS, Metric
from cfqa_data.eval.metrics.base import error_line
from cfqa_data.eval.provenance import Provenance, TrainedOn, now, peak_memory
from cfqa_data.torch_state import threads_for

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from cfqa_data.eval.features.batch import Features
    from cfqa_data.eval.features.datasets import FeatureSource
    from cfqa_data.eval.features.reading import Batch

__all__ = ["Scored", "Scoring"]

TRIES = 3
"""Sources of a task after which a metric that has scored none of it is not tried any more."""

CLOSE = 1e-3
"""Of scores' size and spread: how far rounding may take a feature's score from that of a batch."""

LEAST = 1e-6
"""Difference of scores that is rounding whatever their size, as in 1 - cosine."""

WHOLE = 2**62
"""Features per batch of which no source has more."""

MOST_WEIGHTS = 5
"""Inputs of a trained metric that its note names."""

TESTED = [metric.function for metric in (*METRICS, *TRAINED_METRICS, *PAPER_METRICS)]


@dataclass(frozen=True)
class Scored:
    """What an evaluation has so far, and goes on from after an interruption.

    Attributes:
        values: (rows, M) scores of M metrics, NaN where there is none yet.
        notes: What else is to be known of a metric's scores, by name.
        alone: Names of the metrics that score one feature at a time.
        provenance: Where each metric's scores come from, by name.
        earlier: Labels of the rows that a metric has scored before, by name.
    """

    values: NDArray[np.float64]
    notes: dict[str, str] = field(default_factory=dict)
    alone: set[str] = field(default_factory=set)
    provenance: dict[str, Provenance] = field(default_factory=dict)
    earlier: dict[str, pa.Table] = field(default_factory=dict)

    @classmethod
    def nothing(cls, rows: int, provenance: Mapping[str, Provenance]) -> Scored:
        """Return what there is at the start, of metrics of which the provenance is known."""
        return cls(np.full((rows, len(provenance)), np.nan), provenance=dict(provenance))


class Pending(NamedTuple):
    """Scores of a batch by one metric, still on the device."""

    metric: Metric
    column: int
    part: Batch
    at: NDArray[np.intp]
    scores: Tensor


class Scoring:
    """The scores of an evaluation while they are made.

    Args:
        metrics: M metrics.
        dataset: An open dataset.
        rows: Its label rows to score.
        scored: What there is already; filled in place.
        target: Label that is followed.
        device: Torch device.
        batch: Compressed features per batch; by default what `read_batches` takes.
        limit: At most so many sources of each fold are trained on.
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
        batch: int | None,
        limit: int | None,
    ) -> None:
        self._metrics, self._dataset, self._rows, self._scored = metrics, dataset, rows, scored
        self._target, self._device, self._size = target, device, batch
        self._values = scored.values
        self.errors: dict[str, MetricError] = {}
        self.fitted: dict[str, dict[tuple[str, int], Metric]] = {}
        self._failed = np.zeros(scored.values.shape, dtype=bool)
        self._undefined = self._failed.copy()
        self._reasons: dict[str, str] = {}
        self._batches: Counter[tuple[str, str]] = Counter()
        self._tried: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        self._ready: dict[tuple[str, int, int], Metric | None] = {}
        decided = any(metric.needs or metric.fit for metric in metrics)  # by other folds
        self._split = Folds(dataset, limit, decided)
        self._tasks, self._folds = self._split.tasks, self._split.folds

    def failures(self) -> dict[str, str]:
        """Return the first failure of each metric, and how many features have no score for it."""
        failures = {}
        lacking = np.isnan(self._values) & ~self._undefined
        for metric, missing in zip(self._metrics, lacking.sum(axis=0), strict=True):
            # What cannot be trained at all is said once, not for each codec.
            if missing and (metric.left_out is None or metric.base_name not in failures):
                of = f"; {missing} of {len(lacking)} features have no score"
                first = str(self.errors[metric.name])
                failures[metric.name] = first + (of if missing < len(lacking) else "")
        return failures

    def notes(self) -> dict[str, str]:
        """Return what else is to be known of each metric: of its batches, and where it is none."""
        notes = dict(self._scored.notes)
        for metric, undefined in zip(self._metrics, self._undefined.sum(axis=0), strict=True):
            if undefined and metric.left_out is None:
                note = (
                    f"metric {metric.name!r} is undefined {self._reasons[metric.name]}: "
                    f"no score of {undefined} of {len(self._values)} features"
                )
                if note not in (said := notes.get(metric.name, "")):
                    notes[metric.name] = "; ".join(filter(None, [said, note]))
        weighed: defaultdict[tuple[str, str], list[Mapping[str, float]]] = defaultdict(list)
        for metric in self._metrics:
            for (task, _), model in self.fitted.get(metric.name, {}).items():
                if model.weights and metric.left_out is None:
                    weighed[metric.name, task].append(model.weights)
        for (name, task), found in weighed.items():
            inputs = dict.fromkeys(one for weights in found for one in weights)
            means = {one: sum(w.get(one, 0.0) for w in found) / len(found) for one in inputs}
            most = sorted(means.items(), key=lambda pair: -pair[1])[:MOST_WEIGHTS]
            shares = ", ".join(f"{one} {share:.2f}" for one, share in most if share >= 0.005)
            note = f"metric {name!r} weighs in {task}: {shares}"
            if note not in (said := notes.get(name, "")):
                notes[name] = "\n".join(filter(None, [said, note]))
        return notes

    def provenance(self) -> dict[str, Provenance]:
        """Return where each metric's scores come from, with what its trainings have seen."""
        return {
            metric.name: replace(
                self._scored.provenance[metric.name],
                trained_on=self._trained_on(metric) if metric.fit else None,
                alone=metric.name in self._scored.alone,
            )
            for metric in self._metrics
        }

    def _trained_on(self, metric: Metric) -> TrainedOn:
        labels, tasks, seen = self._dataset.labels, self._tasks, np.zeros(len(self._tasks), bool)
        here = set(zip(tasks[self._rows], self._folds[self._rows], strict=True))
        if earlier := self._scored.earlier.get(metric.name):
            here |= set(zip(*earlier.select(["task", "fold"]).to_pydict().values(), strict=True))
        for task, fold in sorted(here):
            if metric.tasks and task not in metric.tasks:
                continue
            with suppress(UndefinedError):
                seen[self._split.others(task, fold, metric.left_out)] = True
        rows = labels.filter(seen)
        return TrainedOn.of(rows, np.unique(self._folds[seen]).tolist(), self._target)

    @contextmanager
    def _accounted(
        self, metric: Metric, *, features: int = 0, training: bool = False
    ) -> Iterator[None]:
        """Add what is done within to the time that a metric took.

        Args:
            metric: The metric.
            features: How many are scored for the first time within.
            training: Whether this is preparation, and no scoring.
        """
        began = time.perf_counter()
        try:
            yield
        finally:
            known, spent = self._scored.provenance, time.perf_counter() - began
            record = known[metric.name]
            trained, scored = record.training_seconds, record.features
            if record.seconds is None:  # else an older file told the time alone
                trained, scored = 0.0, 0
            known[metric.name] = replace(
                record,
                seconds=(record.seconds or 0.0) + spent,
                training_seconds=None if trained is None else trained + training * spent,
                features=None if scored is None else scored + features,
                memory_bytes=peak_memory(self._device),
                date=now(),
            )

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
        from cfqa_data.eval.features.training import KnownScores
        from cfqa_data.eval.originals import OriginalStatistics

        needed = [n for metric in self._metrics for n in metric.needs if n not in metric.options]
        self._known = OriginalStatistics(self._dataset, needed, self._device, progress)
        self._shared, self._progress = KnownScores(self._dataset, self._device), progress
        self._ready.clear()
        self._outside_tasks()
        self._train()
        # Twice, if a metric begins anew.
        while (missing := np.asarray(self._missing().any(axis=1))).any():
            progress.start("evaluate", len(missing), "features")
            progress.advance(int((~missing).sum()))
            tasks = self._tasks[self._rows]
            for task in dict.fromkeys(tasks[missing].tolist()):
                self._task(np.flatnonzero(missing & (tasks == task)), task, file, progress)
            progress.finish()

    def _outside_tasks(self) -> None:
        """Leave out the tasks that a metric is not for."""
        tasks = self._tasks[self._rows]
        for column, metric in enumerate(self._metrics):
            outside = ~np.isin(tasks, metric.tasks) & np.isnan(self._values[:, column])
            if metric.tasks and outside.any():
                self._reasons[metric.name] = f"for tasks other than {', '.join(metric.tasks)}"
                self._failed[outside, column] = self._undefined[outside, column] = True

    def _train(self) -> None:
        """Train what is to be trained, in a stage of its own, so that each tells its time left.

        What features of a task turn out to have too few tokens for is not trained.
        """
        tasks, folds = self._tasks[self._rows], self._folds[self._rows]
        trained = [(column, metric) for column, metric in enumerate(self._metrics) if metric.fit]
        keys = []
        for task in dict.fromkeys(tasks.tolist()) if trained else ():
            source = self._split.column("source_id")[self._rows[tasks == task][0]]
            tokens = self._dataset.original(source).shape[2]
            for fold in np.unique(folds[tasks == task]).tolist():
                here = (tasks == task) & (folds == fold)
                keys += [
                    (column, task, fold)
                    for column, metric in trained
                    if tokens >= metric.least_tokens and self._missing(here, column).any()
                ]
        self._score_inputs(keys)
        if keys:
            self._progress.start("train", len(keys), "trainings")
            for key in keys:
                self._of_fold(*key)
                self._progress.advance()
            self._progress.finish()

    def _score_inputs(self, keys: Sequence[tuple[int, str, int]]) -> None:
        """Make the scores that trainings ask for, in one pass over the rows of all of them."""
        inputs: dict[str, Metric] = {}
        rows = np.zeros(len(self._tasks), dtype=bool)
        for column, task, fold in keys:
            metric = self._metrics[column]
            if metric.inputs:
                inputs |= {one.name: one for one in metric.inputs}
                with suppress(UndefinedError):
                    rows[self._split.others(task, fold, metric.left_out)] = True
        if inputs:
            first = next(self._metrics[key[0]] for key in keys if self._metrics[key[0]].inputs)
            accounted = self._accounted(first, training=True)
            with suppress(MetricError), accounted:  # told where it is trained
                self._shared.of([*inputs.values()], np.flatnonzero(rows), self._progress)

    def _missing(self, *where: Any) -> NDArray[np.bool_]:
        """Return which scores, of all or at some places, are still to be made."""
        return np.asarray(np.isnan(self._values[where]) & ~self._failed[where])

    def _task(self, places: NDArray[np.intp], task: str, file: Any, progress: Progress) -> None:
        """Score some rows of a task, until there is none that a metric may still score."""
        from cfqa_data.eval.features.reading import read_batches

        left, size = len(places), self._size
        wide = [n for n, m in enumerate(self._metrics) if m.scope != "pair"]
        if wide and self._missing(places)[:, wide].any():  # with what is scored of the same sources
            size, sources = WHOLE, self._split.column("source_id")[self._rows]
            of_task = np.flatnonzero(self._tasks[self._rows] == task)
            places = of_task[np.isin(sources[of_task], sources[places])]
            # In an order that tells nothing of codecs and levels, and that is the same each time.
            mixed = np.random.default_rng(0).random(len(places))
            places = places[np.lexsort((mixed, sources[places]))]
        place_of = {int(self._rows[place]): place for place in places}
        for whole in read_batches(self._dataset, list(place_of), self._device, size):
            done = self._missing([place_of[row] for row in whole.rows]).any(axis=1).sum()
            pending: list[Pending] = []
            with threads_for(whole.x.values.numel()):
                for column, metric in enumerate(self._metrics):
                    for part in whole.parts(metric.scope, self._size):
                        at = np.array([place_of[row] for row in part.rows])
                        self._part(column, metric, part, at, task, places, pending)
                self._fetch(pending, task, places)
            if file:
                file.save(self._scored)
            progress.advance(int(done))
            left -= int(done)
            if not self._missing(places).any():
                break
        if left:
            progress.advance(left)

    def _part(
        self,
        column: int,
        metric: Metric,
        part: Batch,
        at: NDArray[np.intp],
        task: str,
        places: NDArray[np.intp],
        pending: list[Pending],
    ) -> None:
        """Score a batch by one metric, if it is defined and has no score there yet.

        Built-in metrics leave their scores on the device, as ``pending``.
        """
        if not self._missing(at, column).any():
            return
        if part.x.shape[3] < metric.least_tokens:
            reason = f"for fewer than {metric.least_tokens} tokens"
            self._reasons.setdefault(metric.name, reason)
            self._failed[at, column] = self._undefined[at, column] = True
            return
        scores = None
        if ready := self._of_fold(column, task, int(self._folds[part.rows[0]])):
            with self._accounted(metric, features=len(at)):
                scores = self._unchecked(ready, part)
        if ready and scores is not None:
            pending.append(Pending(ready, column, part, at, scores))
        elif ready:
            self._by_itself(ready, column, part, at, task, places)

    def _of_fold(self, column: int, task: str, fold: int) -> Metric | None:
        """Return a metric with what it needs of the other folds; None where it lacks that."""
        key = task, fold, column
        if key not in self._ready:
            self._ready[key], metric = None, self._metrics[column]
            here = ((self._tasks == task) & (self._folds == fold))[self._rows]
            try:
                prepared = metric.fit or metric.needs
                with self._accounted(metric, training=True) if prepared else nullcontext():
                    self._ready[key] = self._given(metric, task, fold)
            except UndefinedError as error:
                self._reasons.setdefault(metric.name, str(error))
                self._undefined[here, column] = self._failed[here, column] = True
            except MetricError as error:
                where = f" ({task}, all folds but {fold})" if metric.fit else ""
                named = "" if repr(metric.name) in str(error) else f"metric {metric.name!r}: "
                self._fails(metric.name, f"{named}{error}{where}", error)
                self._failed[here, column] = True
        return self._ready[key]

    def _fails(self, name: str, message: str, error: MetricError) -> None:
        """Keep the first failure of a metric, with what it raised."""
        if name not in self.errors:
            self.errors[name] = MetricError(message)
            self.errors[name].__cause__ = cause = error.__cause__
            if cause is not None:  # the batches that its frames hold are let go
                clear_frames(cause.__traceback__)

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

    def _unchecked(self, metric: Metric, part: Batch) -> Tensor | None:
        """Return a built-in metric's scores on the device; None if it must be scored by itself."""
        if metric.name in self._scored.alone or not _tested(metric):
            return None
        try:
            return metric.unchecked(part.x, part.y)
        except Exception:  # what it is, scoring it by itself tells
            return None

    def _fetch(self, pending: Sequence[Pending], task: str, places: NDArray[np.intp]) -> None:
        """Take scores from the device, all at once: each transfer waits for what is under way."""
        if not pending:
            return
        import torch

        whole = torch.cat([one.scores for one in pending]).cpu().numpy()
        ends = np.cumsum([len(one.at) for one in pending])
        for one, scores in zip(pending, np.split(whole, ends[:-1]), strict=True):
            if np.isfinite(scores).all():
                self._values[one.at, one.column] = scores
            else:
                self._by_itself(one.metric, one.column, one.part, one.at, task, places)

    def _by_itself(
        self,
        metric: Metric,
        column: int,
        part: Batch,
        at: NDArray[np.intp],
        task: str,
        places: NDArray[np.intp],
    ) -> None:
        """Score a batch by one metric; what scores nothing of a task is given up there."""
        with self._accounted(metric):
            self._batch(metric, column, part, at)
        if self._failed[at, column].any():
            tried = self._tried[metric.name, task]
            tried.add(part.source_id)
            if len(tried) >= TRIES and np.isnan(self._values[places, column]).all():
                self._failed[places, column] = True

    def _batch(self, metric: Metric, column: int, part: Batch, at: NDArray[np.intp]) -> None:
        """Score a batch by one metric: together, or else one by one."""
        name, together = metric.name, None
        notes, alone = self._scored.notes, self._scored.alone
        if metric.scope != "pair":
            try:
                self._values[at, column] = _scores(metric, part.x, part.y)
            except MetricError as error:
                self._failed[at, column] = True
                self._fails(
                    name, f"{error} ({len(at)} versions of {part.source_id} at once)", error
                )
            return
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
                self._fails(name, f"{error} ({part.names[item]})", error)
        if together and not self._failed[at, column].any():
            alone.add(name)
            versions = f"{len(at)} versions of {part.source_id} at once"
            notes[name] = f"{together} ({versions}); features are scored one at a time"

    def _depends(self, metric: Metric, part: Batch, scores: NDArray[Any]) -> str:
        """Return how a score depends on its batch, of a metric's 1st, 2nd, 4th, 8th ... of a task.

        Returns:
            A line, or nothing.
        """
        task = str(self._tasks[part.rows[0]])
        self._batches[metric.name, task] += 1
        count = self._batches[metric.name, task]
        if _tested(metric) or count & (count - 1):
            return ""
        item = len(scores) // 2
        among = float(scores[item])
        try:
            alone, again = (float(_scores(metric, part.x, _one(part, item))[0]) for _ in range(2))
        except MetricError:  # reported when it is scored
            difference = f"{among:.6g} among {len(scores)} and none alone"
        else:
            # Of each end, since what lies between them may be more than the largest float.
            spread = CLOSE * float(scores.max()) - CLOSE * float(scores.min())
            most = max(CLOSE * abs(among), CLOSE * abs(alone), spread) + LEAST
            if abs(among - alone) <= most:
                return ""
            difference = f"{among:.6g} among {len(scores)} and {alone:.6g} alone"
            if abs(alone - again) > most:
                difference += f", then {again:.6g}: the metric is not deterministic"
        why = f"metric {metric.name!r}: its scores depend on the batch"
        return f"{why}: {difference} ({part.names[item]}); features are scored one at a time"


def _tested(metric: Metric) -> bool:
    return any(metric.function is function for function in TESTED)


def _one(part: Batch, item: int) -> Features:
    from cfqa_data.eval.features.batch import Features

    whole = part.y
    return whole if len(whole) == 1 else Features(whole.values[item : item + 1])


def _scores(metric: Metric, x: Features, y: Features) -> NDArray[Any]:
    try:
        return np.asarray(metric.score(x, y).detach().cpu())
    except CfqaError as error:
        raise MetricError(str(error)) from error
    except (Exception, SystemExit) as error:  # whatever a user's function raises
        raise MetricError(f"metric {metric.name!r} failed: {error_line(error)}") from error
