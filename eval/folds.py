"""Split a dataset into folds, and select the training rows for each."""

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
        limit: Maximum number of training sources of each fold; None for all.
        used: Whether any metric depends on folds; otherwise all rows are in fold 0.

    Attributes:
        tasks: Task of each row.
        folds: Fold of each row; 0 if the labels have no folds.
    """

    def __init__(self, dataset: FeatureSource, limit: int | None, used: bool) -> None:
        self._dataset, self._limit = dataset, limit
        self._columns: dict[str, NDArray[Any]] = {}
        self.tasks = self.column("task")
        self.folds = np.zeros(len(self.tasks), dtype=np.intp)
        if used and "fold" in dataset.labels.column_names:
            self.folds = dataset.labels["fold"].to_numpy().astype(np.intp)

    def column(self, name: str) -> NDArray[Any]:
        """Return a column of the labels as an array, which is cached."""
        if name not in self._columns:
            values = self._dataset.labels[name].to_pylist()
            self._columns[name] = np.array(values, object if None in values else None)
        return self._columns[name]

    def training_rows(self, task: str, fold: int, left_out: str | None) -> NDArray[np.intp]:
        """Return the rows on which a metric that scores a fold is trained.

        Rows of the fold, of the codec that is left out, and of sources in a group with a source of
        the fold are excluded.

        Raises:
            UndefinedError: If the task does not have the codec that is left out, or has no other.
        """
        of_task = self.tasks == task
        rows = of_task & (self.folds != fold) & stored_rows(self._dataset)
        if "group" in self._dataset.labels.column_names:
            groups = self.column("group")
            in_fold = of_task & (self.folds == fold)
            held_out = {name for name in groups[in_fold] if name is not None}
            rows &= ~np.isin(groups, list(held_out))
        if left_out is not None:
            codecs = self.column("codec")
            if set(codecs[of_task]) <= {left_out} or left_out not in codecs[of_task]:
                raise UndefinedError(f"where {left_out} is the only codec, as for {task}")
            rows &= codecs != left_out
        if self._limit is not None:
            ids = self.column("source_id")
            for other in np.unique(self.folds[rows]):
                of_fold = rows & (self.folds == other)
                first = list(dict.fromkeys(ids[of_fold].tolist()))[: self._limit]
                rows &= ~of_fold | np.isin(ids, first)
        return np.flatnonzero(rows)
