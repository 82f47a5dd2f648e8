"""The state of an evaluation: scores computed so far, their cost, and failures."""

from __future__ import annotations

import os
import pickle
import socket
import time
import traceback
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from traceback import clear_frames
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cfqa_data.errors import MetricError
from cfqa_data.eval.metrics import Metric
from cfqa_data.eval.metrics.base import error_line
from cfqa_data.eval.provenance import Provenance, now, peak_memory

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Account", "Scored"]

MAX_WEIGHTS = 5
"""Maximum number of inputs of a trained metric that its note names."""


@dataclass(frozen=True)
class Scored:
    """The scores of an evaluation so far, from which an interrupted run resumes.

    Attributes:
        values: (rows, M) scores of M metrics; NaN where there is none yet.
        notes: Remarks on the scores of a metric, by name.
        alone: Names of the metrics that score one feature at a time.
        provenance: Origin of each metric's scores, by name.
        earlier: Labels of the rows that an earlier run scored with a metric, by name.
        failed: (rows, M) whether a score will not be tried again.
        undefined: (rows, M) whether it failed because the metric is undefined there.
    """

    values: NDArray[np.float64]
    notes: dict[str, str] = field(default_factory=dict)
    alone: set[str] = field(default_factory=set)
    provenance: dict[str, Provenance] = field(default_factory=dict)
    earlier: dict[str, pa.Table] = field(default_factory=dict)
    failed: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=bool))
    undefined: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=bool))

    def __post_init__(self) -> None:
        for name in ("failed", "undefined"):
            if getattr(self, name).shape != self.values.shape:
                object.__setattr__(self, name, np.zeros(self.values.shape, dtype=bool))

    @classmethod
    def empty(cls, rows: int, provenance: Mapping[str, Provenance]) -> Scored:
        """Return the state before anything is scored."""
        return cls(np.full((rows, len(provenance)), np.nan), provenance=dict(provenance))

    def missing(self, *where: Any) -> NDArray[np.bool_]:
        """Return which scores are still to be computed, of all or at an index."""
        return np.asarray(np.isnan(self.values[where]) & ~self.failed[where])

    def part(self, indices: NDArray[np.intp]) -> Scored:
        """Return a copy of some rows, with costs of zero."""
        cost: dict[str, Any] = {"seconds": None, "training_seconds": None, "features": None}
        provenance = {name: replace(one, **cost) for name, one in self.provenance.items()}
        rows = (values[indices] for values in (self.failed, self.undefined))
        return Scored(self.values[indices], {}, set(self.alone), provenance, {}, *rows)


class Account:
    """Records the cost of an evaluation's scores, and why scores are missing.

    An account can be pickled, and the account of a worker merged into that of the whole evaluation.

    Args:
        scored: The scores; modified in place.
        device: Torch device.

    Attributes:
        scored: The scores.
        errors: The first error of each metric, by name, with the metric's exception as the cause.
        reasons: Where a metric is undefined, in words, by name.
    """

    def __init__(self, scored: Scored, device: str) -> None:
        self.scored, self._device = scored, device
        self.errors: dict[str, MetricError] = {}
        self.reasons: dict[str, str] = {}
        self._peaks: dict[str, int] = {}
        self._order: dict[tuple[str, str], int] = {}

    def __getstate__(self) -> dict[str, Any]:
        portable = [(name, str(e), _portable(e.__cause__)) for name, e in self.errors.items()]
        return self.__dict__ | {"errors": portable}

    def __setstate__(self, state: dict[str, Any]) -> None:
        errors = state.pop("errors")
        self.__dict__.update(state, errors={})
        for name, message, cause in errors:
            self.add_error(name, message, cause)

    @contextmanager
    def timed(self, metric: Metric, *, features: int = 0, training: bool = False) -> Iterator[None]:
        """Add the duration of the context to the time of a metric.

        Args:
            metric: The metric.
            features: Number of features that are scored for the first time in the context.
            training: Whether the time is spent on training or statistics, not on scoring.
        """
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            if (peak := peak_memory(self._device)) is not None:
                self._peaks[f"{socket.gethostname()} {os.getpid()}"] = peak
            self._add_cost(metric.name, seconds, seconds if training else 0.0, features)

    def _add_cost(self, name: str, seconds: float, training: float, features: int) -> None:
        record = self.scored.provenance[name]
        trained, scored = record.training_seconds, record.features
        if record.seconds is None:  # otherwise, files of older versions have seconds only
            trained, scored = 0.0, 0
        self.scored.provenance[name] = replace(
            record,
            seconds=(record.seconds or 0.0) + seconds,
            training_seconds=None if trained is None else trained + training,
            features=None if scored is None else scored + features,
            memory_bytes=sum(self._peaks.values()) if self._peaks else None,
            date=now(),
        )

    def add_error(self, name: str, message: str, cause: BaseException | None = None) -> None:
        """Record an error of a metric, caused by an exception of its code; the first is kept."""
        if name not in self.errors:
            self.errors[name] = MetricError(message)
            self.errors[name].__cause__ = cause
            if cause is not None:  # release the batches that its frames refer to
                clear_frames(cause.__traceback__)

    def add_undefined(self, indices: Any, column: int, name: str, reason: str) -> None:
        """Record that a metric is undefined for some rows, and where in words."""
        self.reasons.setdefault(name, reason)
        self.scored.failed[indices, column] = self.scored.undefined[indices, column] = True

    def merge(
        self, indices: NDArray[np.intp], part: Account, names: Sequence[str], order: int
    ) -> None:
        """Merge the account of a worker that has scored some rows.

        Batched scores are discarded if the metric has been found to depend on the batch meanwhile.

        Args:
            indices: Indices of the rows.
            part: The worker's account.
            names: Names of the metrics.
            order: Position of the part among all. Messages of the first part are kept.
        """
        own, other = self.scored, part.scored
        for mine, theirs in (
            (own.values, other.values),
            (own.failed, other.failed),
            (own.undefined, other.undefined),
        ):
            mine[indices] = theirs
        for column, name in enumerate(names):
            if name in other.alone - own.alone:
                own.values[np.setdiff1d(np.arange(len(own.values)), indices), column] = np.nan
            elif name in own.alone - other.alone:
                own.values[indices, column] = np.nan
        own.alone.update(other.alone)
        self._peaks |= part._peaks
        for name, record in other.provenance.items():
            if record.seconds is not None:
                training, features = record.training_seconds, record.features
                self._add_cost(name, record.seconds, training or 0.0, features or 0)
        messages: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
            ("error", self.errors, part.errors),
            ("note", own.notes, other.notes),
            ("reason", self.reasons, part.reasons),
        ]
        for kind, kept, new in messages:
            for name, message in new.items():
                if name not in kept or order < self._order.get((kind, name), -1):
                    kept[name], self._order[kind, name] = message, order

    def failures(self, metrics: Sequence[Metric]) -> dict[str, str]:
        """Return the first error of each metric and the number of features without a score."""
        failures: dict[str, str] = {}
        without = np.isnan(self.scored.values) & ~self.scored.undefined
        for metric, missing in zip(metrics, without.sum(axis=0), strict=True):
            # A metric that cannot be trained at all is reported once, not for each codec.
            if missing and (metric.left_out is None or metric.base_name not in failures):
                count = f"; {missing} of {len(without)} features have no score"
                first = str(self.errors[metric.name])
                failures[metric.name] = first + (count if missing < len(without) else "")
        return failures

    def notes(
        self, metrics: Sequence[Metric], fitted: Mapping[str, Mapping[tuple[str, int], Metric]]
    ) -> dict[str, str]:
        """Return the notes on each metric: batch dependence, undefined scores, and weights.

        Args:
            metrics: The M metrics.
            fitted: The trained metrics, by name, and by task and fold.
        """
        notes = dict(self.scored.notes)
        for metric, undefined in zip(metrics, self.scored.undefined.sum(axis=0), strict=True):
            if undefined and metric.left_out is None:
                note = (
                    f"metric {metric.name!r} is undefined {self.reasons[metric.name]}: "
                    f"no score of {undefined} of {len(self.scored.values)} features"
                )
                if note not in (known := notes.get(metric.name, "")):
                    notes[metric.name] = "; ".join(filter(None, [known, note]))
        by_task: defaultdict[tuple[str, str], list[Mapping[str, float]]] = defaultdict(list)
        for metric in metrics:
            for (task, _), model in fitted.get(metric.name, {}).items():
                if model.weights and metric.left_out is None:
                    by_task[metric.name, task].append(model.weights)
        for (name, task), weights in by_task.items():
            inputs = dict.fromkeys(one for of_fold in weights for one in of_fold)
            means = {one: sum(w.get(one, 0.0) for w in weights) / len(weights) for one in inputs}
            most = sorted(means.items(), key=lambda pair: -pair[1])[:MAX_WEIGHTS]
            shares = ", ".join(f"{one} {share:.2f}" for one, share in most if share >= 0.005)
            note = f"weights of metric {name!r} for {task}: {shares}"
            if note not in (known := notes.get(name, "")):
                notes[name] = "\n".join(filter(None, [known, note]))
        return notes


def _portable(cause: BaseException | None) -> BaseException | None:
    """Return an exception of a metric in a form that can be pickled, its traceback as a note."""
    if cause is None:
        return None
    try:
        portable = pickle.loads(pickle.dumps(cause))
    except Exception:  # an exception of a user may hold objects that cannot be pickled
        portable = RuntimeError(error_line(cause))
    portable.add_note("in a worker:\n" + "".join(traceback.format_tb(cause.__traceback__)))
    return portable
