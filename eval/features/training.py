"""What a metric is trained on: part of a dataset, with the scores of other metrics there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from cfqa_data.eval.features.reading import FeatureSource, read_batches

if TYPE_CHECKING:
    from cfqa_data.eval.metrics import Metric

__all__ = ["KnownScores", "TrainingPart", "training_scores"]


class KnownScores:
    """Scores of metrics on the rows of a dataset, computed once for all that is trained on them.

    Args:
        dataset: An open dataset.
        device: Torch device.
    """

    def __init__(self, dataset: FeatureSource, device: str) -> None:
        self._dataset, self._device = dataset, device
        self._columns: dict[str, NDArray[np.float64]] = {}

    def of(self, metrics: Sequence[Metric], rows: NDArray[np.intp]) -> NDArray[np.float64]:
        """Return the scores of M metrics, which have no options, on some rows, (rows, M).

        They are infinite where a metric is not defined.
        """
        nothing = np.full(self._dataset.labels.num_rows, np.nan)
        columns = [self._columns.setdefault(metric.name, nothing.copy()) for metric in metrics]
        missing = rows[np.isnan([column[rows] for column in columns]).any(axis=0)]
        with torch.no_grad():
            for part in read_batches(self._dataset, missing.tolist(), self._device):
                for metric, column in zip(metrics, columns, strict=True):
                    defined = part.x.shape[3] >= metric.least_tokens
                    column[part.rows] = metric.score(part.x, part.y).cpu() if defined else np.inf
        return np.stack([column[rows] for column in columns], axis=1)


class TrainingPart:
    """Some rows of a dataset, as a dataset: what a metric is trained on.

    Args:
        dataset: An open dataset.
        rows: Places in its labels.
        target: Label column that the scores are to follow.
        known: Of that dataset.
    """

    def __init__(
        self,
        dataset: FeatureSource,
        rows: NDArray[np.intp],
        target: str,
        known: KnownScores,
    ) -> None:
        self.labels = dataset.labels.take(rows)
        self.target = target
        self.original = dataset.original
        self.compressed = dataset.compressed
        self._rows, self._known = rows, known
        for name in ("codes", "manifest"):
            if hasattr(dataset, name):
                setattr(self, name, getattr(dataset, name))

    def scores(self, metrics: Sequence[Metric], rows: NDArray[np.intp]) -> NDArray[np.float64]:
        """Return the scores of M metrics, which have no options, on some rows, (rows, M)."""
        return self._known.of(metrics, self._rows[rows])


def training_scores(
    training: FeatureSource, metrics: Sequence[Metric], rows: NDArray[np.intp], device: str
) -> NDArray[np.float64]:
    """Return the scores of M metrics, which have no options, on rows of a training part, (rows, M).

    Those of a `TrainingPart` are computed once for all parts of the dataset.
    """
    if isinstance(training, TrainingPart):
        return training.scores(metrics, rows)
    return KnownScores(training, device).of(metrics, rows)
