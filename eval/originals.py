"""Statistics of a dataset's originals, for metrics that need some (``needs``).

Each source belongs to a fold. For the sources of a fold, statistics are taken over the originals
of all other folds, so that no metric sees in them the feature that it scores.
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
    """Statistics by their names in `cfqa_data.eval.metrics.STATISTICS`.

    They are computed in one pass over the originals, where any is needed.

    Args:
        dataset: An open dataset; all its sources count, whatever is scored.
        names: Of the statistics that will be asked for.
        device: Where sums are computed and results lie.
        progress: Told about every original.
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
        """Return the named statistics for the sources of a fold.

        Raises:
            MetricError: If the task lacks one.
        """
        found = {}
        for name in names:
            if name == "value_range":
                found[name] = _value_range(self._dataset, task).to(self._device)
            elif (task, fold) in self._moments:
                found[name] = self._moments[task, fold][name]
            else:
                why = "all sources are in one"
                if "fold" not in self._dataset.labels.column_names:
                    why = "the labels have no column 'fold': no folds to hold out"
                raise MetricError(f"{task}: {name} is taken from other folds, but {why}")
        return found


def _held_out(dataset: FeatureSource) -> dict[str, dict[int, list[str]]]:
    """Return the sources of each task that has several folds, by fold."""
    labels = dataset.labels
    folds: dict[str, dict[int, list[str]]] = {}
    if "fold" in labels.column_names:
        columns = (labels[name].to_pylist() for name in ("task", "fold", "source_id"))
        for task, fold, source_id in dict.fromkeys(zip(*columns, strict=True)):
            folds.setdefault(task, {}).setdefault(fold, []).append(source_id)
    return {task: of_task for task, of_task in folds.items() if len(of_task) > 1}


def _value_range(dataset: FeatureSource, task: str) -> Tensor:
    """Return the width of the widest quantiser of a task, per layer.

    Raises:
        MetricError: If the dataset does not say.
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
    """Return the number of tokens, their sum (C, D), that of squares (C, D) or products (C, D, D).

    In float64 they need no common shift: at a mean of 500 and a deviation of 0.5, which is what
    ViT-g's outlier channels have, the variance keeps nine digits.
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
    """Return the standard deviation of the channels, and their covariance if its sums are there."""
    count, first, second = (reduce(torch.add, parts) for parts in zip(*sums, strict=True))
    mean, second = first / count, second / count
    if second.ndim == 2:
        return {"deviation": (second - mean.square()).clamp(min=0.0).sqrt()}
    covariance = second - mean[:, :, None] * mean[:, None, :]
    variance = covariance.diagonal(dim1=-2, dim2=-1).clamp(min=0.0)
    return {"covariance": covariance, "deviation": variance.sqrt()}
