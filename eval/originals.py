"""Statistics of a dataset's originals, for metrics that need them (``needs``).

The statistics for the sources of a fold are computed over the originals of all other folds, so that
they do not contain the features that the metric scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from cfqa_data.console.progress import Progress
from cfqa_data.errors import MetricError, UndefinedError
from cfqa_data.eval.features.reading import FeatureSource

__all__ = ["OriginalStatistics"]


class OriginalStatistics:
    """The statistics in `cfqa_data.eval.metrics.STATISTICS`, computed in one pass over originals.

    Args:
        dataset: An open dataset. All its sources count, even if only some are scored.
        names: Names of the statistics that are needed.
        device: Torch device for the computation and the results.
        progress: Advances after every original.
    """

    def __init__(
        self, dataset: FeatureSource, names: Iterable[str], device: str, progress: Progress
    ) -> None:
        self._dataset, self._device = dataset, device
        self._moments: dict[tuple[str, int], dict[str, Tensor]] = {}
        needed = set(names) - {"value_range"}
        if not needed or not (folds := _held_out(dataset)):
            return
        count = sum(len(ids) for of_task in folds.values() for ids in of_task.values())
        progress.start("statistics", count, "originals")
        for task, of_task in folds.items():
            full = "covariance" in needed
            sums = {f: _sums(dataset, ids, device, full, progress) for f, ids in of_task.items()}
            for fold in of_task:
                others = [sums[other] for other in sums if other != fold]
                self._moments[task, fold] = _moments(others)
        progress.finish()

    def of(self, task: str, fold: int, names: Iterable[str]) -> dict[str, Tensor]:
        """Return statistics for the sources of a fold, by name.

        Raises:
            MetricError: If the task does not have one of them.
        """
        result = {}
        for name in names:
            if name == "value_range":
                result[name] = _value_range(self._dataset, task).to(self._device)
            elif (task, fold) in self._moments:
                result[name] = self._moments[task, fold][name]
            else:
                why = "all sources are in one"
                if "fold" not in self._dataset.labels.column_names:
                    why = "the labels have no column 'fold': no folds to hold out"
                raise MetricError(f"{task}: {name} is taken from other folds, but {why}")
        return result


def _held_out(dataset: FeatureSource) -> dict[str, dict[int, list[str]]]:
    """Return the source ids by task and fold, for tasks that have several folds."""
    labels = dataset.labels
    folds: dict[str, dict[int, list[str]]] = {}
    if "fold" in labels.column_names:
        columns = (labels[name].to_pylist() for name in ("task", "fold", "source_id"))
        for task, fold, source_id in dict.fromkeys(zip(*columns, strict=True)):
            folds.setdefault(task, {}).setdefault(fold, []).append(source_id)
    return {task: of_task for task, of_task in folds.items() if len(of_task) > 1}


def _value_range(dataset: FeatureSource, task: str) -> Tensor:
    """Return the range of the widest quantiser of a task, per layer.

    Raises:
        MetricError: If the dataset has no manifest for the task.
        UndefinedError: If no codec of the task has a quantiser.
    """
    manifest = getattr(dataset, "manifest", None)
    if manifest is None or task not in manifest.tasks:
        raise MetricError(
            "value_range is that of the quantisers, which only a dataset's manifest has"
        )
    quantizers = [c.quantizer for c in manifest.tasks[task].codecs.values() if c.quantizer]
    if not quantizers:
        raise UndefinedError(f"where no codec has a quantiser, as of {task}")
    tables = [np.asarray(quantizer.values(), np.float64) for quantizer in quantizers]
    return torch.from_numpy(np.max([table[:, -1] - table[:, 0] for table in tables], axis=0))


def _sums(
    dataset: FeatureSource, ids: Sequence[str], device: str, full: bool, progress: Progress
) -> list[Tensor]:
    """Return the number of tokens, their sum (C, D), and their sum of squares or products.

    Squares are (C, D), products (C, D, D). In float64 the sums need no shift: with a mean of 500
    and a deviation of 0.5, as in the outlier channels of ViT-g, the variance keeps nine digits.
    """
    totals: list[Tensor] = []
    for source_id in ids:
        feature = torch.from_numpy(np.asarray(dataset.original(source_id))).to(device).double()
        tokens = feature.transpose(0, 1).flatten(1, 2)  # (C, N*T, D)
        second = tokens.mT @ tokens if full else tokens.square().sum(1)
        parts = [tokens.new_full((), tokens.shape[1]), tokens.sum(1), second]
        totals = [a.add_(b) for a, b in zip(totals, parts, strict=True)] if totals else parts
        progress.advance()
    return totals


def _moments(sums: Sequence[list[Tensor]]) -> dict[str, Tensor]:
    """Return the channels' standard deviation, and their covariance if products were summed."""
    count, first, second = (reduce(torch.add, parts) for parts in zip(*sums, strict=True))
    mean, second = first / count, second / count
    if second.ndim == 2:
        return {"deviation": (second - mean.square()).clamp(min=0.0).sqrt()}
    covariance = second - mean[:, :, None] * mean[:, None, :]
    variance = covariance.diagonal(dim1=-2, dim2=-1).clamp(min=0.0)
    return {"covariance": covariance, "deviation": variance.sqrt()}
