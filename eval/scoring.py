"""Score the versions of a source by all metrics, batch by batch, isolating metrics that fail.

A metric that fails on a batch is tried on each of its features alone: the scores that succeed are
kept, and the first failure is reported.

A score must not depend on the rest of its batch. The tests ensure this for built-in metrics; for
others, a feature is occasionally scored alone too. If the two scores differ, the metric scores one
feature at a time from then on, its earlier scores are recomputed, and a note reports it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cfqa_data.errors import CfqaError, MetricError
from cfqa_data.eval.account import Account
from cfqa_data.eval.metrics import METRICS, PAPER_METRICS, TRAINED_METRICS, Metric
from cfqa_data.eval.metrics.base import error_line
from cfqa_data.torch_state import threads_for

if TYPE_CHECKING:
    from torch import Tensor

    from cfqa_data.eval.features.batch import Features
    from cfqa_data.eval.features.reading import Batch

__all__ = ["Scorer"]

CLOSE = 1e-3
"""Of scores' size and spread: how far rounding may take a feature's score from that of a batch."""

LEAST = 1e-6
"""Difference of scores that is rounding whatever their size, as in 1 - cosine."""

TESTED = [metric.function for metric in (*METRICS, *TRAINED_METRICS, *PAPER_METRICS)]

Ready: TypeAlias = Callable[[int, str], Metric | None]
"""Returns the metric of a column as it can score a source; None where it lacks what it needs."""


class Pending(NamedTuple):
    """Scores of a batch by one metric, still on the device."""

    metric: Metric
    column: int
    part: Batch
    at: NDArray[np.intp]
    scores: Tensor


class Scorer:
    """Scores sources by M metrics.

    Args:
        metrics: The metrics.
        account: Of what there is; filled in place.
        ready: Returns metrics as they can score.
        size: Features per batch; by default as many as `read_batches` takes.
    """

    def __init__(
        self, metrics: Sequence[Metric], account: Account, ready: Ready, size: int | None
    ) -> None:
        self._metrics, self._account, self._ready, self._size = metrics, account, ready, size
        self._values, self._failed = account.scored.values, account.scored.failed
        self._notes, self._alone = account.scored.notes, account.scored.alone
        self._missing = account.scored.missing
        self._batches: Counter[str] = Counter()
        self._source, self._before = "", 0

    def score(self, whole: Batch, places: Mapping[int, int], before: int) -> int:
        """Score some versions of a source where they lack a score.

        Args:
            whole: The versions.
            places: Where the scores of each label row of the source are.
            before: How many sources of the task come before this one.

        Returns:
            How many versions lacked a score.
        """
        from cfqa_data.eval.features.reading import usual_size

        if whole.source_id != self._source:
            self._source, self._batches = whole.source_id, Counter()
            self._before = before * -(-len(places) // (self._size or usual_size(whole.x)))
        done = self._missing([places[row] for row in whole.rows]).any(axis=1).sum()
        pending: list[Pending] = []
        with threads_for(whole.x.values.numel()):
            for column, metric in enumerate(self._metrics):
                for part in whole.parts(metric.scope, self._size):
                    at = np.array([places[row] for row in part.rows])
                    self._part(column, metric, part, at, pending)
            self._fetch(pending)
        return int(done)

    def _part(
        self,
        column: int,
        metric: Metric,
        part: Batch,
        at: NDArray[np.intp],
        pending: list[Pending],
    ) -> None:
        """Score a batch by one metric, if it is defined and has no score there yet.

        Built-in metrics leave their scores on the device, as ``pending``.
        """
        if not self._missing(at, column).any():
            return
        if part.x.shape[3] < metric.least_tokens:
            reason = f"for fewer than {metric.least_tokens} tokens"
            self._account.undefined(at, column, metric.name, reason)
            return
        scores = None
        if ready := self._ready(column, part.source_id):
            with self._account.accounted(metric, features=len(at)):
                scores = self._unchecked(ready, part)
        if ready and scores is not None:
            pending.append(Pending(ready, column, part, at, scores))
        elif ready:
            self._by_itself(ready, column, part, at)

    def _unchecked(self, metric: Metric, part: Batch) -> Tensor | None:
        """Return a built-in metric's scores on the device; None if it must be scored by itself."""
        if metric.name in self._alone or not _tested(metric):
            return None
        try:
            return metric.unchecked(part.x, part.y)
        except Exception:  # what it is, scoring it by itself tells
            return None

    def _fetch(self, pending: Sequence[Pending]) -> None:
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
                self._by_itself(one.metric, one.column, one.part, one.at)

    def _by_itself(self, metric: Metric, column: int, part: Batch, at: NDArray[np.intp]) -> None:
        """Score a batch by one metric: together, or else one by one."""
        with self._account.accounted(metric):
            self._batch(metric, column, part, at)

    def _batch(self, metric: Metric, column: int, part: Batch, at: NDArray[np.intp]) -> None:
        name, together = metric.name, None
        notes, alone = self._notes, self._alone
        if metric.scope != "pair":
            try:
                self._values[at, column] = _scores(metric, part.x, part.y)
            except MetricError as error:
                self._failed[at, column] = True
                message = f"{error} ({len(at)} versions of {part.source_id} at once)"
                self._account.fails(name, message, error.__cause__)
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
                self._account.fails(name, f"{error} ({part.names[item]})", error.__cause__)
        if together and not self._failed[at, column].any():
            alone.add(name)
            versions = f"{len(at)} versions of {part.source_id} at once"
            notes[name] = f"{together} ({versions}); features are scored one at a time"
            self._values[np.setdiff1d(np.arange(len(self._values)), at), column] = np.nan

    def _depends(self, metric: Metric, part: Batch, scores: NDArray[Any]) -> str:
        """Return how a score depends on its batch, of a metric's 1st, 2nd, 4th, 8th ... of a task.

        Returns:
            A line, or nothing.
        """
        self._batches[metric.name] += 1
        count = self._before + self._batches[metric.name]
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
