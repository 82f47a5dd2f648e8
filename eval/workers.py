"""What other processes do of an evaluation: an item is a source, with all that it lacks."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cfqa_data.errors import MetricError, MissingDependencyError
from cfqa_data.eval.account import Account, Scored
from cfqa_data.eval.metrics import Metric
from cfqa_data.eval.metrics.base import error_line
from cfqa_data.eval.scoring import Scorer
from cfqa_data.processes.stage import Stage
from cfqa_data.torch_state import torch_state

if TYPE_CHECKING:
    from cfqa_data.eval.run import Work

__all__ = ["Sent", "SourceItem", "SourceStage"]


class SourceItem:
    """A source that lacks scores. What there is of them is looked up when it is sent.

    Attributes:
        work: What is to be scored.
        order: Its place among all items.
        rows: Label rows of its places.
        scored: What there is at these places, once it is sent.
    """

    def __init__(self, work: Work, order: int, rows: NDArray[np.intp], scored: Scored) -> None:
        self.work, self.order, self.rows, self.scored = work, order, rows[work.places], scored
        self._sent = False

    def __str__(self) -> str:
        return f"source {self.work.source_id} of {self.work.task}"

    def __getstate__(self) -> dict[str, Any]:
        if self._sent:  # Dask sends it on
            return self.__dict__
        return self.__dict__ | {"scored": self.scored.part(self.work.places), "_sent": True}


@dataclass(frozen=True)
class Sent:
    """An object on its way to a worker: by itself, so that what cannot be sent is named.

    Attributes:
        what: What it is, for messages.
        data: It, pickled.
    """

    what: str
    data: bytes

    @classmethod
    def of(cls, what: str, found: object) -> Sent:
        """Return an object as it is sent.

        Raises:
            MetricError: If it cannot be pickled.
        """
        try:
            return cls(what, pickle.dumps(found))
        except Exception as error:  # whatever an object of a user's holds
            raise MetricError(
                f"{what} cannot be sent to workers: {error_line(error)}; define what it is made "
                "of at the top of a module or file, or use one process"
            ) from None

    def received(self) -> Any:
        """Return the object.

        Raises:
            MissingDependencyError: If what it is made of cannot be imported here.
        """
        try:
            return pickle.loads(self.data)
        except Exception as error:  # whatever an import raises
            why = f"{self.what} cannot be loaded by a worker: {error_line(error)}"
            raise MissingDependencyError(f"{why}; put its module where workers find it") from None


@lru_cache(maxsize=1)
def _opened(dataset: Sent) -> Any:
    """Return a dataset: one for all folds."""
    return dataset.received()


@dataclass(eq=False)
class SourceStage(Stage):
    """Scores sources of a task and fold.

    Attributes:
        dataset: What is scored.
        metrics: M metrics.
        ready: The same with what they need of other folds; None where one lacks it.
        device: Torch device; a worker of this machine sees one GPU.
        precision: Of float32 matrix products.
        size: Compressed features per batch.
        path: Where the caller's modules are.
    """

    name: ClassVar[str] = "evaluate"
    unit: ClassVar[str] = "features"
    dataset: Sent
    metrics: Sequence[Metric]
    ready: Sequence[Metric | None]
    device: str
    precision: str
    size: int | None
    path: Sequence[str] = field(default_factory=lambda: list(sys.path))

    def __getstate__(self) -> dict[str, Any]:
        names = [f"metric {metric.name!r}" for metric in self.metrics]
        sent = {
            several: [Sent.of(*one) for one in zip(names, getattr(self, several), strict=True)]
            for several in ("metrics", "ready")
        }
        return self.__dict__ | sent

    def __setstate__(self, state: dict[str, Any]) -> None:
        sys.path += [folder for folder in state["path"] if folder not in sys.path]
        received = {n: [one.received() for one in state[n]] for n in ("metrics", "ready")}
        self.__dict__.update(state, **received)

    def items(self) -> Sequence[Any]:
        """Return none: what there is to do depends on what is done."""
        return ()

    def run(self, item: SourceItem) -> Account:
        """Return the account of a source, with its scores.

        Raises:
            MetricError: If a feature holds NaN or Inf, or has not its original's shape.
        """
        from cfqa_data.eval.features.reading import read_batches

        dataset, rows = _opened(self.dataset), item.rows.tolist()
        account, places = Account(item.scored, self.device), {r: n for n, r in enumerate(rows)}
        scorer = Scorer(self.metrics, account, lambda column, _: self.ready[column], self.size)
        with torch_state(grad=False, precision=self.precision):
            while item.scored.missing().any():
                for whole in read_batches(dataset, rows, self.device, item.work.size):
                    scorer.score(whole, places, item.work.before)
        return account
