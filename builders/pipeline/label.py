"""Compute labels: the task's score and loss and the baseline metrics of decoded features."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from cfqa_data.builders.pipeline.context import BASELINES, BuildContext
from cfqa_data.builders.pipeline.plan import Item
from cfqa_data.builders.tasks.base import Task
from cfqa_data.errors import BuildError, CfqaError
from cfqa_data.format.facts import TaskEntry
from cfqa_data.format.invariants import rate_of
from cfqa_data.format.quantizers import Quantizer

__all__ = ["Scorer", "baseline_values", "batch_of_levels", "label_rows", "label_values", "score"]

Scorer: TypeAlias = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]

BATCH_POINTS = 1 << 24
"""Feature points that are labelled at once; their metrics take some 30 bytes each."""


def batch_of_levels(points: int, levels: int) -> int:
    """Return how many levels of a feature of so many points are labelled at once."""
    return min(levels, max(1, BATCH_POINTS // points))


def score(task: Task, features: np.ndarray, truth: Any, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the task's scores and losses of features of one source.

    Args:
        task: what scores them.
        features: float32 (B, N, C, T, D).
        truth: the truth of the source.
        what: names the features in the error.

    Returns:
        Scores and losses, float64 (B,) each; losses are NaN where the task has none.

    Raises:
        BuildError: the task does not take them or the truth, or a score is not finite.
    """
    try:
        scores, losses = task.scores(features, truth)
    except CfqaError as error:
        raise BuildError(f"{what}: {error}") from None
    if not np.isfinite([scores, losses] if task.facts.loss else scores).all():
        raise BuildError(f"{what}: score {scores} or loss {losses} is not a finite number")
    return scores, losses


def baseline_values(
    metrics: Mapping[str, Any], original: np.ndarray, decoded: np.ndarray
) -> dict[str, np.ndarray]:
    """Return each metric's float64 (B,) values of decoded features against their one original.

    It is NaN where it is undefined: CKA of a single token.

    Args:
        metrics: name -> metric.
        original: float32 (N, C, T, D).
        decoded: float32 (B, N, C, T, D).
    """
    import torch

    # float64, so that labels do not differ between machines by more than rounding of the inputs
    x, y = torch.from_numpy(original[None]).double(), torch.from_numpy(decoded).double()
    return {
        name: np.asarray(metric(x, y), np.float64).reshape(len(decoded))
        for name, metric in metrics.items()
    }


def label_values(
    metrics: Mapping[str, Any],
    original: np.ndarray,
    stored: Sequence[np.ndarray],
    quantizer: Quantizer | None,
    scored: Scorer,
) -> dict[str, np.ndarray]:
    """Return score, loss and baseline metrics of a source's decoded levels, float64 (L,) each.

    Args:
        metrics: name -> metric.
        original: float32 (N, C, T, D).
        stored: codes or values of each level.
        quantizer: of the codes.
        scored: gives scores and losses of decoded features (B, N, C, T, D) from a level on.
    """
    parts = []
    step = batch_of_levels(original.size, len(stored))
    for first in range(0, len(stored), step):
        decoded = np.stack(stored[first : first + step])
        if quantizer is not None:
            decoded = quantizer.dequantize(decoded)
        scores, losses = scored(decoded, first)
        values = baseline_values(metrics, original, decoded)
        parts.append({"score": scores, "loss": losses, **values})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def label_rows(
    context: BuildContext,
    item: Item,
    entry: TaskEntry,
    position: int,
    fold: int,
    reference: tuple[float, float | None],
    tokens: int,
    bits: Sequence[int | None],
    values: Mapping[str, np.ndarray],
) -> list[dict[str, Any]]:
    """Return the label rows of one source by one codec, best level first.

    Args:
        context: of the build.
        item: of the codec and the source's shard.
        entry: what the manifest says of the task.
        position: of the source in the task.
        fold: of the source.
        reference: score and loss of the original.
        tokens: T of its feature.
        bits: of each level; None where they are unknown.
        values: score, loss and baseline metrics -> float64 (L,).
    """
    spec, task = context.codec_spec(item), entry.facts
    n, c, _, d = entry.shape

    def known(name: str, value: float) -> float | None:
        undefined = math.isnan(value) if name in BASELINES else name == "loss" and not task.loss
        return None if undefined else value

    return [
        {
            "task": item.task,
            "source_id": entry.sources[position],
            "fold": fold,
            "codec": item.codec,
            "level": level,
            "parameter_name": spec.parameter_name,
            "parameter": float(parameter),
            "bits": size,
            "bpfp": math.nan if size is None else rate_of(size, n * c * tokens * d),
            "reference_score": reference[0],
            "distortion": task.distortion(float(values["score"][level]), reference[0]),
            "reference_loss": reference[1],
            **{name: known(name, float(series[level])) for name, series in values.items()},
            "array": context.layout.relative(context.layout.compressed(item.task, item.codec)),
            "index": position,
            "tokens": tokens,
            "group": entry.group_of[position],
        }
        for level, (parameter, size) in enumerate(zip(spec.levels, bits, strict=True))
    ]
