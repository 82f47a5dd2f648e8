"""Training sets of metrics, which give access to some rows of a dataset only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex, cast

import numpy as np
import torch
from numpy.typing import NDArray

from cfqa_data.access.dataset import Dataset
from cfqa_data.console.progress import Progress, Silent
from cfqa_data.console.summary import Summary
from cfqa_data.errors import MetricError
from cfqa_data.eval.features.reading import FeatureSource, read_batches
from cfqa_data.torch_state import threads_for

if TYPE_CHECKING:
    from cfqa_data.eval.metrics import Metric

__all__ = ["KnownScores", "TrainingSet", "training_set"]


class KnownScores:
    """Cached scores of metrics on the rows of a dataset, shared by all trainings.

    Args:
        dataset: An open dataset.
        device: Torch device.
    """

    def __init__(self, dataset: FeatureSource, device: str) -> None:
        self._dataset, self._device = dataset, device
        self._columns: dict[tuple[str, int], tuple[Metric, NDArray[np.float64]]] = {}

    def of(
        self, metrics: Sequence[Metric], rows: NDArray[np.intp], progress: Progress
    ) -> NDArray[np.float64]:
        """Return the scores of M metrics on some rows, (rows, M); infinite where undefined."""
        columns = []
        for metric in metrics:
            nothing = metric, np.full(self._dataset.labels.num_rows, np.nan)
            columns.append(self._columns.setdefault((metric.name, id(metric.function)), nothing)[1])
        missing = rows[np.isnan([column[rows] for column in columns]).any(axis=0)]
        if len(missing):
            progress.start("inputs", len(missing), "features")
            with torch.no_grad():
                for part in read_batches(self._dataset, missing.tolist(), self._device):
                    with threads_for(part.x.values.numel()):
                        for metric, column in zip(metrics, columns, strict=True):
                            defined = part.x.shape[3] >= metric.least_tokens
                            if not np.isnan(column[part.rows]).any():
                                continue
                            column[part.rows] = (
                                metric.score(part.x, part.y).cpu() if defined else np.inf
                            )
                    progress.advance(len(part.rows))
            progress.finish()
        return np.stack([column[rows] for column in columns], axis=1)


class TrainingSet(Dataset):
    """The rows of a dataset that a metric is trained on; other features cannot be read.

    It is a `cfqa_data.Dataset`, with `len`, rows, `labels`, `source_ids` and slices, and loaders
    accept it. Members that need a manifest are missing where the dataset has none.

    Attributes:
        target: Label column that the scores are fitted to.
        progress: Progress bar of the training, to be called as ``start("train", epochs,
            "epochs")``, ``advance()``, ``finish()``.
    """

    def __init__(
        self,
        dataset: FeatureSource,
        rows: NDArray[np.intp] | None = None,
        target: str = "distortion",
        known: KnownScores | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Initialise the training set from rows of a dataset.

        Args:
            dataset: The dataset.
            rows: Indices of rows of its labels; all if None.
            target: Label column that the scores are fitted to.
            known: Cached scores of the dataset, shared with other parts of it.
            progress: Progress bar of the training.

        Raises:
            MetricError: If the labels have no such column.
        """
        if target not in dataset.labels.column_names:
            raise MetricError(f"the labels have no column {target!r} to follow")
        rows = np.arange(dataset.labels.num_rows) if rows is None else rows
        labels = dataset.labels.take(rows)
        super().__init__(cast("Any", _RowsOnly(dataset, labels)), labels)
        self.target, self.progress = target, progress or Silent()
        self._dataset, self._rows, self._known = dataset, rows, known

    def __getitem__(self, index: SupportsIndex | slice) -> Any:
        if isinstance(index, slice):
            return self._part(np.arange(*index.indices(len(self))))
        return super().__getitem__(index)

    def _summary(self, rows: bool) -> Summary:
        counts = {"features": len(self), "sources": len(self.source_ids)}
        folds = ", ".join(map(str, self.folds))
        return Summary("TrainingSet", {**counts, "folds": folds, "target": self.target})

    @property
    def folds(self) -> list[int]:
        """The folds of the sources in ascending order; empty where the dataset has no folds."""
        has_folds = "fold" in self.labels.column_names
        return sorted({int(fold) for fold in self.labels["fold"].to_pylist()}) if has_folds else []

    def split(self, fold: int | None = None) -> tuple[TrainingSet, TrainingSet]:
        """Split into the rows of all folds but one, for training, and of that one, for validation.

        Sources of a group that is in both are left out of the training part.

        Args:
            fold: Fold for validation; by default the last one.

        Returns:
            The training part and the validation part.

        Raises:
            MetricError: If there is no such fold, or it is the only one.
        """
        fold = self.folds[-1] if fold is None and self.folds else fold
        if fold not in self.folds or len(self.folds) < 2:
            folds = ", ".join(map(str, self.folds)) or "none"
            raise MetricError(f"no fold {fold} to validate on; folds are: {folds}")
        validation = self.labels["fold"].to_numpy() == fold
        train = ~validation
        if "group" in self.labels.column_names:
            groups = np.array([group or "" for group in self.labels["group"].to_pylist()])
            train &= ~np.isin(groups, np.setdiff1d(groups[validation], [""]))
        return self._part(np.flatnonzero(train)), self._part(np.flatnonzero(validation))

    def scores(
        self,
        metrics: Sequence[Metric],
        rows: NDArray[np.intp] | None = None,
        device: str = "cpu",
    ) -> NDArray[np.float64]:
        """Return the scores of M metrics, which need no training, on some rows, (rows, M).

        Scores are computed once for all trainings of an evaluation.

        Args:
            metrics: Metrics from `cfqa_data.create_metric`.
            rows: Indices of rows of the labels; all if None.
            device: Torch device for scores that are not cached.

        Raises:
            MetricError: If a metric cannot score a feature.
        """
        if self._known is None:
            self._known = KnownScores(self._dataset, device)
        rows = np.arange(len(self)) if rows is None else rows
        return self._known.of(metrics, self._rows[rows], self.progress)

    def _part(self, rows: NDArray[np.intp]) -> TrainingSet:
        known = self._known
        return TrainingSet(self._dataset, self._rows[rows], self.target, known, self.progress)


class _RowsOnly:
    """A view of the reader of a dataset that refuses features outside some rows of labels."""

    def __init__(self, dataset: Any, labels: Any) -> None:
        self._reader = dataset._folder if isinstance(dataset, Dataset) else dataset
        keys = (labels[name].to_pylist() for name in ("source_id", "codec", "level"))
        self._keys = set(zip(*keys, strict=True))
        self._sources = {key[0] for key in self._keys}

    @property
    def manifest(self) -> Any:
        return self._reader.manifest

    @property
    def files(self) -> Any:
        return self._reader.files

    @property
    def untrusted(self) -> bool:
        return bool(self._reader.untrusted)

    @property
    def plugins(self) -> Any:
        return self._reader.plugins

    def task_of(self, source_id: str) -> Any:
        return self._of_source(source_id).task_of(source_id)

    def shape(self, source_id: str) -> Any:
        return self._of_source(source_id).shape(source_id)

    def original(self, source_id: str, **part: Any) -> Any:
        return self._of_source(source_id).original(source_id, **part)

    def truth(self, source_id: str) -> Any:
        return self._of_source(source_id).truth(source_id)

    def compressed(self, *key: Any, **part: Any) -> Any:
        return self._of_row(key).compressed(*key, **part)

    def codes(self, *key: Any, **part: Any) -> Any:
        return self._of_row(key).codes(*key, **part)

    def bitstream(self, *key: Any) -> Any:
        return self._of_row(key).bitstream(*key)

    def find_weights(self, uri: str) -> Any:
        return self._reader.find_weights(uri)

    def gallery(self, task: str) -> Any:
        return self._reader.gallery(task)

    def _of_source(self, source_id: str) -> Any:
        if source_id not in self._sources:
            raise MetricError(f"source {source_id!r} is not in this training set")
        return self._reader

    def _of_row(self, key: tuple[Any, ...]) -> Any:
        if key not in self._keys:
            named = "{!r}, {}, level {}".format(*key)
            raise MetricError(f"{named} is not in this training set")
        return self._reader


def training_set(training: Any, target: str | None, progress: Progress) -> Any:
    """Return the training set of a dataset; objects without labels, as in tests, unchanged."""
    if not hasattr(training, "labels"):
        return training
    if isinstance(training, TrainingSet):
        if target in (None, training.target):
            return training
        source, rows, known = training._dataset, training._rows, training._known
        return TrainingSet(source, rows, target, known, training.progress)
    return TrainingSet(training, None, target or "distortion", progress=progress)
