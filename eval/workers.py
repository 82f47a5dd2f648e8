"""Score in other processes: an item of work is a source with all its missing scores."""

from __future__ import annotations

import pickle
import sys
from collections import deque
from collections.abc import Iterable, Sequence
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

__all__ = ["READ_ONLY", "Pickled", "SourceItem", "SourceStage"]

READ_ONLY = -1
"""In place of a metric's column: the item reads the source's features and scores nothing."""


class SourceItem:
    """A source that lacks scores. Its existing scores are selected when it is pickled.

    Attributes:
        work: The scores to compute.
        order: Position among all items.
        rows: Numbers of its label rows.
        scored: The scores of the evaluation; in a worker, those of this source.
        only: Column of the only metric to score with, or `READ_ONLY`; None scores with all.
    """

    def __init__(
        self,
        work: Work,
        order: int,
        rows: NDArray[np.intp],
        scored: Scored,
        only: int | None = None,
    ) -> None:
        self.work, self.order, self.rows, self.scored, self.only = work, order, rows, scored, only
        self._selected = False

    def split(self, columns: Iterable[int]) -> list[SourceItem]:
        """Return one item that only reads the source, and one per metric."""
        whole = self.work, self.order, self.rows, self.scored
        return [SourceItem(*whole, only) for only in (READ_ONLY, *columns)]

    def __str__(self) -> str:
        return f"source {self.work.source_id} of {self.work.task}"

    def __getstate__(self) -> dict[str, Any]:
        if self._selected:  # Dask may pickle it again on its way
            return self.__dict__
        return self.__dict__ | {"scored": self.scored.part(self.work.indices), "_selected": True}


@dataclass(frozen=True)
class Pickled:
    """An object for a worker, pickled separately so that an error can name the object.

    Attributes:
        name: What the object is, for messages.
        data: The pickled object.
    """

    name: str
    data: bytes

    @classmethod
    def of(cls, name: str, value: object) -> Pickled:
        """Pickle an object.

        Raises:
            MetricError: If it cannot be pickled.
        """
        try:
            return cls(name, pickle.dumps(value))
        except Exception as error:  # pickling may call a user's code
            raise MetricError(
                f"{name} cannot be sent to workers: {error_line(error)}; define what it is made "
                "of at the top of a module or file, or use one process"
            ) from None

    def load(self) -> Any:
        """Return the object.

        Raises:
            MissingDependencyError: If a module that it needs cannot be imported.
        """
        try:
            return pickle.loads(self.data)
        except Exception as error:  # importing may run a user's code
            why = f"{self.name} cannot be loaded by a worker: {error_line(error)}"
            raise MissingDependencyError(f"{why}; put its module where workers find it") from None


@lru_cache(maxsize=1)
def _load_dataset(dataset: Pickled) -> Any:
    """Return the dataset, the same object for all folds."""
    return dataset.load()


@dataclass(eq=False)
class SourceStage(Stage):
    """Scores the sources of a task and fold.

    Attributes:
        dataset: The dataset.
        metrics: M metrics.
        fitted: The metrics as fitted on the other folds; None where that is impossible.
        device: Torch device. A worker on this machine sees one GPU.
        precision: Precision of float32 matrix products.
        size: Compressed features per batch; None for the default.
        path: ``sys.path`` of the caller, so that a worker finds its modules.
    """

    name: ClassVar[str] = "evaluate"
    unit: ClassVar[str] = "features"
    dataset: Pickled
    metrics: Sequence[Metric]
    fitted: Sequence[Metric | None]
    device: str
    precision: str
    size: int | None
    path: Sequence[str] = field(default_factory=lambda: list(sys.path))

    def __getstate__(self) -> dict[str, Any]:
        names = [f"metric {metric.name!r}" for metric in self.metrics]
        pickled = {
            field: [Pickled.of(*one) for one in zip(names, getattr(self, field), strict=True)]
            for field in ("metrics", "fitted")
        }
        return self.__dict__ | pickled

    def __setstate__(self, state: dict[str, Any]) -> None:
        sys.path += [folder for folder in state["path"] if folder not in sys.path]
        self.__dict__.update(state)
        self._loaded: dict[int, tuple[Metric, Metric | None]] = {}

    def _load(self, column: int) -> tuple[Metric, Metric | None]:
        """Return a metric and the fitted one, unpickled when an item first needs them.

        A metric that kills its worker already here is then isolated like one that kills later.
        """
        if column not in self._loaded:
            metric, fitted = (getattr(self, name)[column] for name in ("metrics", "fitted"))
            self._loaded[column] = metric.load(), fitted.load()
        return self._loaded[column]

    def items(self) -> Sequence[Any]:
        """Return no items: the run computes them from the missing scores."""
        return ()

    def run(self, item: SourceItem) -> Account:
        """Score a source and return its account.

        Raises:
            MetricError: If a feature contains NaN or Inf, or differs in shape from its original.
        """
        from cfqa_data.eval.features.reading import read_batches

        dataset, rows = _load_dataset(self.dataset), item.rows.tolist()
        account = Account(item.scored, self.device)
        index_of_row = {row: index for index, row in enumerate(rows)}
        with torch_state(grad=False, precision=self.precision):
            if item.only == READ_ONLY:
                deque(read_batches(dataset, rows, self.device, item.work.size), maxlen=0)
                return account
            needed = np.array(item.scored.missing().any(axis=0))
            if item.only is not None:
                needed &= np.arange(len(needed)) == item.only
            loaded = [self._load(n) if needed[n] else (None, None) for n in range(len(needed))]
            metrics, fitted = zip(*loaded, strict=True)
            scorer = Scorer(metrics, account, lambda column, _: fitted[column], self.size)
            failed = item.scored.failed.copy()
            if item.only is not None:  # hide the other metrics from the scorer
                item.scored.failed[:, np.arange(len(self.metrics)) != item.only] = True
            while item.scored.missing().any():
                for whole in read_batches(dataset, rows, self.device, item.work.size):
                    scorer.score(whole, index_of_row, item.work.position)
            if item.only is not None:
                failed[:, item.only] = item.scored.failed[:, item.only]
                item.scored.failed[:] = failed
        return account
