"""Labels: what the task and the baseline metrics say of a decoded feature."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cfqa_data.builders.tasks.base import Task
from cfqa_data.errors import BuildError

__all__ = ["baseline_values", "score"]


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
    except BuildError as error:
        raise BuildError(f"{what}: {error}") from None
    if not np.isfinite([scores, losses] if task.facts.loss else scores).all():
        raise BuildError(f"{what}: score {scores} or loss {losses} is not a finite number")
    return scores, losses


def baseline_values(
    metrics: Mapping[str, Any], original: np.ndarray, decoded: np.ndarray
) -> dict[str, np.ndarray]:
    """Return each metric's float64 (B,) values of decoded features against their one original.

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
