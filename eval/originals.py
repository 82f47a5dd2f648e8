"""What a metric may know of a dataset: statistics of originals that are not the one it scores.

Each source belongs to a fold. For the sources of a fold, statistics are taken over the originals
of all other folds, so no metric sees in them the feature that it judges.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from cfqa_data.console.progress import Progress
from cfqa_data.errors import MetricError
from cfqa_data.eval.metrics.base import STATISTICS
from cfqa_data.eval.reading import FeatureSource

__all__ = ["OriginalStatistics", "original_statistics", "sources_by_fold"]

Key = tuple[str, int]  # task, fold


@dataclass(frozen=True)
class OriginalStatistics:
    """Statistics per task and fold, by their names in `cfqa_data.eval.metrics.STATISTICS`.

    Attributes:
        values: Those that there are.
        lacking: Why a task has not a statistic, by task and name.
    """

    values: Mapping[Key, Mapping[str, Tensor]] = field(default_factory=dict)
    lacking: Mapping[tuple[str, str], str] = field(default_factory=dict)

    def of(self, task: str, fold: int, names: Iterable[str]) -> dict[str, Tensor]:
        """Return the named statistics for the sources of a fold.

        Raises:
            MetricError: The task lacks one.
        """
        for name in names:
            if (task, name) in self.lacking:
                raise MetricError(self.lacking[task, name])
        return {name: self.values[task, fold][name] for name in names}


def sources_by_fold(dataset: FeatureSource) -> dict[str, dict[int, list[str]]]:
    """Return the sources of each task by fold, in the order of the labels.

    All are in fold 0 where the labels have no column ``fold``.
    """
    labels = dataset.labels
    columns = [labels[name].to_pylist() for name in ("task", "source_id")]
    known = "fold" in labels.column_names
    columns.insert(1, labels["fold"].to_pylist() if known else [0] * labels.num_rows)
    folds: dict[str, dict[int, list[str]]] = {}
    for task, fold, source_id in dict.fromkeys(zip(*columns, strict=True)):
        folds.setdefault(task, {}).setdefault(fold, []).append(source_id)
    return folds


def original_statistics(
    dataset: FeatureSource, names: Iterable[str], device: str, progress: Progress
) -> OriginalStatistics:
    """Compute what metrics ask for, in one pass over the originals where any is needed.

    Args:
        dataset: An open dataset; all its sources count, whatever is scored.
        names: Of `cfqa_data.eval.metrics.STATISTICS`.
        device: Where sums are made and results lie.
        progress: Told about every original.
    """
    wanted = [name for name in STATISTICS if name in set(names)]
    if not wanted:
        return OriginalStatistics()
    folds = sources_by_fold(dataset)
    values: dict[Key, dict[str, Tensor]] = {
        (task, fold): {} for task, of_task in folds.items() for fold in of_task
    }
    lacking: dict[tuple[str, str], str] = {}
    if "value_range" in wanted:
        for task, of_task in folds.items():
            try:
                found = _value_range(dataset, task).to(device)
            except MetricError as error:
                lacking[task, "value_range"] = str(error)
            else:
                for fold in of_task:
                    values[task, fold]["value_range"] = found
    moments = [name for name in wanted if name != "value_range"]
    held_out = {task: of_task for task, of_task in folds.items() if len(of_task) > 1}
    why = "but all sources are in one"
    if "fold" not in dataset.labels.column_names:
        why = "but the labels have no column 'fold': there is nothing to hold out"
    for task in folds.keys() - held_out.keys():
        for name in moments:
            lacking[task, name] = f"{task}: {name} is taken from other folds, {why}"
    if moments and held_out:
        count = sum(len(ids) for of_task in held_out.values() for ids in of_task.values())
        progress.start("statistics", count, "originals")
        for task, of_task in held_out.items():
            sums = {}
            for fold, ids in of_task.items():
                sums[fold] = _Moments.of(dataset, ids, device, "covariance" in moments, progress)
            for fold in of_task:
                others = [part for other, part in sums.items() if other != fold]
                values[task, fold] |= _Moments.together(others).statistics()
        progress.finish()
    return OriginalStatistics(values, lacking)


def _value_range(dataset: FeatureSource, task: str) -> Tensor:
    """Return the width of the widest quantiser of a task, per layer.

    Raises:
        MetricError: The dataset does not say.
    """
    manifest = getattr(dataset, "manifest", None)
    if manifest is None or task not in manifest.tasks:
        raise MetricError("value_range is the quantisers', which only a dataset's manifest knows")
    quantizers = [c.quantizer for c in manifest.tasks[task].codecs.values() if c.quantizer]
    if not quantizers:
        raise MetricError(f"value_range is the quantisers', and no codec of {task} has one")
    tables = [np.asarray(quantizer.values(), np.float64) for quantizer in quantizers]
    return torch.from_numpy(np.max([table[:, -1] - table[:, 0] for table in tables], axis=0))


@dataclass(frozen=True)
class _Moments:
    """Sums over tokens: their number, their sum (C, D), their products (C, D) or (C, D, D).

    In float64 they need no common shift: at a mean of 500 and a deviation of 0.5, which is what
    ViT-g's outlier channels have, the variance keeps nine digits.
    """

    count: int
    first: Tensor
    second: Tensor

    @classmethod
    def of(
        cls, dataset: FeatureSource, ids: list[str], device: str, full: bool, progress: Progress
    ) -> _Moments:
        parts = []
        for source_id in ids:
            feature = torch.from_numpy(np.asarray(dataset.original(source_id))).to(device).double()
            tokens = feature.transpose(0, 1).flatten(1, 2)  # (C, N*T, D)
            second = tokens.mT @ tokens if full else tokens.square().sum(1)
            parts.append(cls(tokens.shape[1], tokens.sum(1), second))
            if len(parts) == 2:
                parts = [cls.together(parts)]
            progress.advance()
        return parts[0]

    @classmethod
    def together(cls, parts: list[_Moments]) -> _Moments:
        """Return the sums of several."""
        first, second = parts[0].first.clone(), parts[0].second.clone()
        for part in parts[1:]:
            first += part.first
            second += part.second
        return cls(sum(part.count for part in parts), first, second)

    def statistics(self) -> dict[str, Tensor]:
        mean, second = self.first / self.count, self.second / self.count
        if second.ndim == 2:
            return {"deviation": (second - mean.square()).clamp(min=0.0).sqrt()}
        covariance = second - mean[:, :, None] * mean[:, None, :]
        variance = covariance.diagonal(dim1=-2, dim2=-1).clamp(min=0.0)
        return {"covariance": covariance, "deviation": variance.sqrt()}
