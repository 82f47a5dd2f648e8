"""Score the versions of a source by all metrics, batch by batch, isolating metrics that fail.

A metric that fails on a batch is tried on each feature alone. The scores that succeed are kept, and
the first error is reported.

A score must not depend on the rest of its batch. The tests ensure this for built-in metrics. For
others, some features are also scored alone. If the two scores differ, the metric scores one feature
at a time from then on, its earlier scores are recomputed, and a note reports it.
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

RELATIVE_TOLERANCE = 1e-3
"""Tolerated difference between batched and single scores, relative to their size and range."""

ABSOLUTE_TOLERANCE = 1e-6
"""Tolerated absolute difference, for scores such as 1 - cosine."""

BUILT_IN = [metric.function for metric in (*METRICS, *TRAINED_METRICS, *PAPER_METRICS)]

Fitted: TypeAlias = Callable[[int, str], Metric | None]
"""Returns the metric of a column, fitted to score a source; None if it cannot be fitted."""


class Pending(NamedTuple):
    """Scores of a batch by one metric that are still on the device."""

    metric: Metric
    column: int
    part: Batch
    indices: NDArray[np.intp]
    scores: Tensor


class Scorer:
    """Scores sources by M metrics.

    Args:
        metrics: The metrics; None for one that has all its scores and is not loaded.
        account: Receives scores, costs and failures.
        fitted: Returns the metrics as fitted for a source.
        size: Features per batch; None for the default of `read_batches`.
    """

    def __init__(
        self, metrics: Sequence[Metric | None], account: Account, fitted: Fitted, size: int | None
    ) -> None:
        self._metrics, self._account, self._fitted, self._size = metrics, account, fitted, size
        self._values, self._failed = account.scored.values, account.scored.failed
        self._notes, self._alone = account.scored.notes, account.scored.alone
        self._missing = account.scored.missing
        self._batches: Counter[str] = Counter()
        self._source, self._batches_before = "", 0

    def score(self, whole: Batch, index_of_row: Mapping[int, int], position: int) -> int:
        """Compute the missing scores of some versions of a source.

        Args:
            whole: The versions.
            index_of_row: Index into the scores of each label row of the source.
            position: Number of sources of the task before this one.

        Returns:
            The number of versions that lacked a score.
        """
        from cfqa_data.eval.features.reading import usual_size

        if whole.source_id != self._source:
            self._source, self._batches = whole.source_id, Counter()
            batches = -(-len(index_of_row) // (self._size or usual_size(whole.x)))
            self._batches_before = position * batches
        done = self._missing([index_of_row[row] for row in whole.rows]).any(axis=1).sum()
        pending: list[Pending] = []
        with threads_for(whole.x.values.numel()):
            for column, metric in enumerate(self._metrics):
                if metric is None:
                    continue
                for part in whole.parts(metric.scope, self._size):
                    indices = np.array([index_of_row[row] for row in part.rows])
                    self._score_part(column, metric, part, indices, pending)
            self._fetch(pending)
        return int(done)

    def _score_part(
        self,
        column: int,
        metric: Metric,
        part: Batch,
        indices: NDArray[np.intp],
        pending: list[Pending],
    ) -> None:
        """Score a batch by one metric, if it is defined and a score is missing.

        The scores of built-in metrics stay on the device, in ``pending``.
        """
        if not self._missing(indices, column).any():
            return
        if part.x.shape[3] < metric.least_tokens:
            reason = f"for fewer than {metric.least_tokens} tokens"
            self._account.add_undefined(indices, column, metric.name, reason)
            return
        scores = None
        if fitted := self._fitted(column, part.source_id):
            with self._account.timed(metric, features=len(indices)):
                scores = self._unchecked(fitted, part)
        if fitted and scores is not None:
            pending.append(Pending(fitted, column, part, indices, scores))
        elif fitted:
            self._score_checked(fitted, column, part, indices)

    def _unchecked(self, metric: Metric, part: Batch) -> Tensor | None:
        """Return a built-in metric's scores on the device; None if its scores must be checked."""
        if metric.name in self._alone or not _built_in(metric):
            return None
        try:
            return metric.unchecked(part.x, part.y)
        except Exception:  # scoring with checks raises it again, with a message
            return None

    def _fetch(self, pending: Sequence[Pending]) -> None:
        """Transfer scores from the device, all at once, since each transfer synchronises."""
        if not pending:
            return
        import torch

        whole = torch.cat([one.scores for one in pending]).cpu().numpy()
        ends = np.cumsum([len(one.indices) for one in pending])
        for one, scores in zip(pending, np.split(whole, ends[:-1]), strict=True):
            if np.isfinite(scores).all():
                self._values[one.indices, one.column] = scores
            else:
                self._score_checked(one.metric, one.column, one.part, one.indices)

    def _score_checked(
        self, metric: Metric, column: int, part: Batch, indices: NDArray[np.intp]
    ) -> None:
        """Score a batch by one metric with all checks, or each feature alone if that fails."""
        with self._account.timed(metric):
            if metric.scope == "pair":
                self._score_pairs(metric, column, part, indices)
                return
            try:
                self._values[indices, column] = _scores(metric, part.x, part.y)
            except MetricError as error:
                self._failed[indices, column] = True
                message = f"{error} ({len(indices)} versions of {part.source_id} at once)"
                self._account.add_error(metric.name, message, error.__cause__)

    def _score_pairs(
        self, metric: Metric, column: int, part: Batch, indices: NDArray[np.intp]
    ) -> None:
        name, batch_error = metric.name, None
        notes, alone = self._notes, self._alone
        if len(indices) > 1 and name not in alone:
            try:
                scores = _scores(metric, part.x, part.y)
            except MetricError as error:
                batch_error = error
            else:
                self._values[indices, column] = scores
                if note := self._batch_dependence(metric, part, scores):
                    alone.add(name)
                    notes[name] = note
                    self._values[:, column] = np.nan
                else:
                    return
        for item, index in enumerate(indices):
            try:
                self._values[index, column] = _scores(metric, part.x, _one(part, item))[0]
            except MetricError as error:
                self._failed[index, column] = True
                self._account.add_error(name, f"{error} ({part.names[item]})", error.__cause__)
        if batch_error and not self._failed[indices, column].any():
            alone.add(name)
            versions = f"{len(indices)} versions of {part.source_id} at once"
            notes[name] = f"{batch_error} ({versions}); features are scored one at a time"
            self._values[np.setdiff1d(np.arange(len(self._values)), indices), column] = np.nan

    def _batch_dependence(self, metric: Metric, part: Batch, scores: NDArray[Any]) -> str:
        """Compare a score with that of the feature alone, for batches 1, 2, 4, 8 ... of a task.

        Returns:
            A note on the difference; empty if the scores agree or the batch is not tested.
        """
        self._batches[metric.name] += 1
        count = self._batches_before + self._batches[metric.name]
        if _built_in(metric) or count & (count - 1):
            return ""
        item = len(scores) // 2
        among = float(scores[item])
        try:
            alone, again = (float(_scores(metric, part.x, _one(part, item))[0]) for _ in range(2))
        except MetricError:  # scoring the feature alone reports it
            difference = f"{among:.6g} among {len(scores)} and none alone"
        else:
            # Scaled before they are subtracted, since the difference may overflow.
            low, high, *sizes = (
                RELATIVE_TOLERANCE * value
                for value in (float(scores.min()), float(scores.max()), abs(among), abs(alone))
            )
            tolerance = max(*sizes, high - low) + ABSOLUTE_TOLERANCE
            if abs(among - alone) <= tolerance:
                return ""
            difference = f"{among:.6g} among {len(scores)} and {alone:.6g} alone"
            if abs(alone - again) > tolerance:
                difference += f", then {again:.6g}: the metric is not deterministic"
        why = f"metric {metric.name!r}: its scores depend on the batch"
        return f"{why}: {difference} ({part.names[item]}); features are scored one at a time"


def _built_in(metric: Metric) -> bool:
    return any(metric.function is function for function in BUILT_IN)


def _one(part: Batch, item: int) -> Features:
    from cfqa_data.eval.features.batch import Features

    whole = part.y
    return whole if len(whole) == 1 else Features(whole.values[item : item + 1])


def _scores(metric: Metric, x: Features, y: Features) -> NDArray[Any]:
    try:
        return np.asarray(metric.score(x, y).detach().cpu())
    except CfqaError as error:
        raise MetricError(str(error)) from error
    except (Exception, SystemExit) as error:  # a user's function may raise anything
        raise MetricError(f"metric {metric.name!r} failed: {error_line(error)}") from error
