"""Compute labels: the task's score and loss and the baseline metrics of decoded features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from cfqa_data.builders.tasks.base import Task
from cfqa_data.errors import BuildError, prefixed
from cfqa_data.format.quantizers import Quantizer
from cfqa_data.format.rows import BASELINES

__all__ = ["Scored", "baseline_values", "batch_of_levels", "label_values", "score"]

Scored: TypeAlias = tuple[np.ndarray, np.ndarray]
"""Scores and losses, float64 (B,) each; losses are NaN where they are not known."""

BATCH_POINTS = 1 << 24
"""Feature points that are labelled at once; their metrics take some 30 bytes each."""


def batch_of_levels(points: int, levels: int) -> int:
    """Return how many levels of a feature of so many points are labelled at once."""
    return min(levels, max(1, BATCH_POINTS // points))


def score(task: Task, features: np.ndarray, truth: Any, what: str) -> Scored:
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
    with prefixed(what, BuildError):
        scores, losses = task.scores(features, truth)
    if not np.isfinite([scores, losses] if task.facts.loss else scores).all():
        raise BuildError(f"{what}: score {scores} or loss {losses} is not a finite number")
    return scores, losses


def baseline_values(original: np.ndarray, decoded: np.ndarray) -> dict[str, np.ndarray]:
    """Return each baseline's float64 (B,) values of decoded features against their one original.

    It is NaN where it is undefined: CKA of a single token.

    Args:
        original: float32 (N, C, T, D).
        decoded: float32 (B, N, C, T, D).
    """
    import torch

    from cfqa_data.eval.metrics import create_metric

    # float64, so that labels do not differ between machines by more than rounding of the inputs
    x, y = torch.from_numpy(original[None]).double(), torch.from_numpy(decoded).double()
    return {
        name: np.asarray(create_metric(name)(x, y), np.float64).reshape(len(decoded))
        for name in BASELINES
    }


def label_values(
    original: np.ndarray,
    stored: Sequence[np.ndarray],
    quantizer: Quantizer | None,
    scored: Callable[[int, np.ndarray], Scored],
) -> dict[str, np.ndarray]:
    """Return score, loss and baseline metrics of a source's decoded levels, float64 (L,) each.

    Args:
        original: float32 (N, C, T, D).
        stored: codes or values of each level.
        quantizer: of the codes.
        scored: scores from a level on decoded features (B, N, C, T, D).
    """
    parts = []
    step = batch_of_levels(original.size, len(stored))
    for first in range(0, len(stored), step):
        decoded = np.stack(stored[first : first + step])
        if quantizer is not None:
            decoded = quantizer.dequantize(decoded)
        scores, losses = scored(first, decoded)
        parts.append({"score": scores, "loss": losses, **baseline_values(original, decoded)})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
