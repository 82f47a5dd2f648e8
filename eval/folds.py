"""Which rows of a dataset a metric may be trained on, for the sources of a fold that it scores."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfqa_data.errors import UndefinedError
from cfqa_data.eval.features.datasets import FeatureSource, stored_rows

__all__ = ["Folds"]


class Folds:
    """The folds of a dataset's rows.

    Args:
        dataset: An open dataset.
        limit: At most so many sources of each fold are trained on.
        used: Whether anything depends on folds; otherwise all rows count as one.

    Attributes:
        tasks: Task of each row.
        folds: Fold of each row; 0 where the labels have none.
    """

    def __init__(self, dataset: FeatureSource, limit: int | None, used: bool) -> None:
        self._dataset, self._limit = dataset, limit
        self._columns: dict[str, NDArray[Any]] = {}
        self.tasks = self.column("task")
        self.folds = np.zeros(len(self.tasks), dtype=np.intp)
        if used and "fold" in dataset.labels.column_names:
            self.folds = dataset.labels["fold"].to_numpy().astype(np.intp)

    def column(self, name: str) -> NDArray[Any]:
        """Return a column of the labels; made once."""
        if name not in self._columns:
            values = self._dataset.labels[name].to_pylist()
            self._columns[name] = np.array(values, object if None in values else None)
        return self._columns[name]

    def others(self, task: str, fold: int, left_out: str | None) -> NDArray[np.intp]:
        """Return the rows of other folds and codecs that share no group of sources with this one.

        Raises:
            UndefinedError: If the task lacks the codec that is left out, or has no other.
        """
        here = self.tasks == task
        others = here & (self.folds != fold) & stored_rows(self._dataset)
        if "group" in self._dataset.labels.column_names:
            groups = self.column("group")
            held_out = {name for name in groups[here & (self.folds == fold)] if name is not None}
            others &= ~np.isin(groups, list(held_out))
        if left_out is not None:
            codecs = self.column("codec")
            if set(codecs[here]) <= {left_out} or left_out not in codecs[here]:
                raise UndefinedError(f"where {left_out} is the only codec, as for {task}")
            others &= codecs != left_out
        if self._limit is not None:
            ids = self.column("source_id")
            for other in np.unique(self.folds[others]):
                of_fold = others & (self.folds == other)
                first = list(dict.fromkeys(ids[of_fold].tolist()))[: self._limit]
                others &= ~of_fold | np.isin(ids, first)
        return np.flatnonzero(others)
