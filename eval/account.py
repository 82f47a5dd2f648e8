"""The account of an evaluation: what its scores cost, what failed and why, what trainings saw."""

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

MOST_WEIGHTS = 5
"""Inputs of a trained metric that its note names."""


@dataclass(frozen=True)
class Scored:
    """What an evaluation has so far, and goes on from after an interruption.

    Attributes:
        values: (rows, M) scores of M metrics, NaN where there is none yet.
        notes: What else is to be known of a metric's scores, by name.
        alone: Names of the metrics that score one feature at a time.
        provenance: Where each metric's scores come from, by name.
        earlier: Labels of the rows that a metric has scored before, by name.
        failed: (rows, M) what is not tried any more.
        undefined: (rows, M) what of that has no score by the metric's definition.
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
    def nothing(cls, rows: int, provenance: Mapping[str, Provenance]) -> Scored:
        """Return what there is at the start, of metrics of which the provenance is known."""
        return cls(np.full((rows, len(provenance)), np.nan), provenance=dict(provenance))

    def missing(self, *where: Any) -> NDArray[np.bool_]:
        """Return which scores, of all or at some places, are still to be made."""
        return np.asarray(np.isnan(self.values[where]) & ~self.failed[where])

    def part(self, places: NDArray[np.intp]) -> Scored:
        """Return a copy of what there is at some places; of it nothing is spent yet."""
        spent: dict[str, Any] = {"seconds": None, "training_seconds": None, "features": None}
        begun = {name: replace(one, **spent) for name, one in self.provenance.items()}
        rows = (values[places] for values in (self.failed, self.undefined))
        return Scored(self.values[places], {}, set(self.alone), begun, {}, *rows)


class Account:
    """What an evaluation's scores cost, and what is to be said of those that are missing.

    It can be pickled, and one of some rows be added to that of all.

    Args:
        scored: What there is; filled in place.
        device: Torch device.

    Attributes:
        scored: That.
        errors: The first failure of each metric, with what it raised as the cause.
        reasons: Where a metric is not defined, by name.
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
            self.fails(name, message, cause)

    # What it costs.

    @contextmanager
    def accounted(
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
            spent = time.perf_counter() - began
            if (peak := peak_memory(self._device)) is not None:
                self._peaks[f"{socket.gethostname()} {os.getpid()}"] = peak
            self._spend(metric.name, spent, spent if training else 0.0, features)

    def _spend(self, name: str, seconds: float, training: float, features: int) -> None:
        record = self.scored.provenance[name]
        trained, scored = record.training_seconds, record.features
        if record.seconds is None:  # else an older file told the time alone
            trained, scored = 0.0, 0
        self.scored.provenance[name] = replace(
            record,
            seconds=(record.seconds or 0.0) + seconds,
            training_seconds=None if trained is None else trained + training,
            features=None if scored is None else scored + features,
            memory_bytes=sum(self._peaks.values()) if self._peaks else None,
            date=now(),
        )

    # What fails.

    def fails(self, name: str, message: str, cause: BaseException | None = None) -> None:
        """Keep the first failure of a metric, with what a user's code raised."""
        if name not in self.errors:
            self.errors[name] = MetricError(message)
            self.errors[name].__cause__ = cause
            if cause is not None:  # the batches that its frames hold are let go
                clear_frames(cause.__traceback__)

    def gives_up(self, where: Any, column: int) -> None:
        """Do not try a metric any more at some places."""
        self.scored.failed[where, column] = True

    def undefined(self, where: Any, column: int, name: str, reason: str) -> None:
        """Note that a metric has by its definition no score at some places, and why."""
        self.reasons.setdefault(name, reason)
        self.scored.failed[where, column] = self.scored.undefined[where, column] = True

    def add(
        self, places: NDArray[np.intp], part: Account, names: Sequence[str], order: int
    ) -> None:
        """Add what another process has made of the rows at some places.

        Where it scored a metric in batches whose scores were found to depend on the batch
        meanwhile, these scores are left out.

        Args:
            places: The rows of which the part is.
            part: What there is of them now.
            names: Of the metrics.
            order: Of this part among all: what the first of them says is kept.
        """
        own, other = self.scored, part.scored
        for mine, theirs in (
            (own.values, other.values),
            (own.failed, other.failed),
            (own.undefined, other.undefined),
        ):
            mine[places] = theirs
        for column, name in enumerate(names):
            if name in other.alone - own.alone:
                own.values[np.setdiff1d(np.arange(len(own.values)), places), column] = np.nan
            elif name in own.alone - other.alone:
                own.values[places, column] = np.nan
        own.alone.update(other.alone)
        self._peaks |= part._peaks
        for name, record in other.provenance.items():
            if record.seconds is not None:
                training, features = record.training_seconds, record.features
                self._spend(name, record.seconds, training or 0.0, features or 0)
        said: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
            ("error", self.errors, part.errors),
            ("note", own.notes, other.notes),
            ("reason", self.reasons, part.reasons),
        ]
        for kind, kept, told in said:
            for name, what in told.items():
                if name not in kept or order < self._order.get((kind, name), -1):
                    kept[name], self._order[kind, name] = what, order

    # What is to be said.

    def failures(self, metrics: Sequence[Metric]) -> dict[str, str]:
        """Return the first failure of each metric, and how many features have no score for it."""
        failures: dict[str, str] = {}
        lacking = np.isnan(self.scored.values) & ~self.scored.undefined
        for metric, missing in zip(metrics, lacking.sum(axis=0), strict=True):
            # What cannot be trained at all is said once, not for each codec.
            if missing and (metric.left_out is None or metric.base_name not in failures):
                of = f"; {missing} of {len(lacking)} features have no score"
                first = str(self.errors[metric.name])
                failures[metric.name] = first + (of if missing < len(lacking) else "")
        return failures

    def notes(
        self, metrics: Sequence[Metric], fitted: Mapping[str, Mapping[tuple[str, int], Metric]]
    ) -> dict[str, str]:
        """Return what else is to be known of each metric: of its batches, and where it is none.

        Args:
            metrics: The M metrics.
            fitted: Those that were trained, by name, task and fold.
        """
        notes = dict(self.scored.notes)
        for metric, undefined in zip(metrics, self.scored.undefined.sum(axis=0), strict=True):
            if undefined and metric.left_out is None:
                note = (
                    f"metric {metric.name!r} is undefined {self.reasons[metric.name]}: "
                    f"no score of {undefined} of {len(self.scored.values)} features"
                )
                if note not in (said := notes.get(metric.name, "")):
                    notes[metric.name] = "; ".join(filter(None, [said, note]))
        weighed: defaultdict[tuple[str, str], list[Mapping[str, float]]] = defaultdict(list)
        for metric in metrics:
            for (task, _), model in fitted.get(metric.name, {}).items():
                if model.weights and metric.left_out is None:
                    weighed[metric.name, task].append(model.weights)
        for (name, task), found in weighed.items():
            inputs = dict.fromkeys(one for weights in found for one in weights)
            means = {one: sum(w.get(one, 0.0) for w in found) / len(found) for one in inputs}
            most = sorted(means.items(), key=lambda pair: -pair[1])[:MOST_WEIGHTS]
            shares = ", ".join(f"{one} {share:.2f}" for one, share in most if share >= 0.005)
            note = f"weights of metric {name!r} for {task}: {shares}"
            if note not in (said := notes.get(name, "")):
                notes[name] = "\n".join(filter(None, [said, note]))
        return notes


def _portable(cause: BaseException | None) -> BaseException | None:
    """Return what a user's code raised as it can be pickled, with its traceback as a note."""
    if cause is None:
        return None
    try:
        found = pickle.loads(pickle.dumps(cause))
    except Exception:  # whatever an exception of a user's holds
        found = RuntimeError(error_line(cause))
    found.add_note("in a worker:\n" + "".join(traceback.format_tb(cause.__traceback__)))
    return found
