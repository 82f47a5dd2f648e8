"""Features and statistics for the tests of all metrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cfqa_data.eval.metrics import Metric
from cfqa_data.eval.metrics.forest import Forest
from cfqa_data.eval.metrics.stack import INPUTS
from cfqa_data.testing.metrics import feature_pair as pair
from cfqa_data.testing.metrics import made_statistics

__all__ = ["DEVICES", "TRAINED", "devices", "outliers", "pair", "ready"]

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
devices = pytest.mark.parametrize("device", DEVICES)


def stumps() -> Forest:
    """Return a forest of stumps: one split per tree, at many thresholds of every input."""
    names = tuple(one.name for one in INPUTS)
    splits = [(index, value) for index in range(len(names)) for value in np.linspace(-9, 9, 40)]
    trees = {
        "input": [[index, 0, 0] for index, _ in splits],
        "threshold": [[value, 0, 0] for _, value in splits],
        "left": [[1, 1, 2]] * len(splits),
        "right": [[2, 1, 2]] * len(splits),
        "value": [[0.0, 0.0, 0.01]] * len(splits),
    }
    gains = [1 / len(names)] * len(names)
    return Forest.from_dict({"inputs": names, "gains": gains, "start": 0.1, "trees": trees})


TRAINED = {"gap_mean": {"exponents": (0.2, 0.3, 0.5)}, "stack": {"forest": stumps()}}
"""Trained metric -> plausible trained parameters."""


def outliers(
    shape: tuple[int, ...], seed: int = 0, noise: float = 0.3, batch: int = 3
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a pair like those of large ViTs: one channel near -500, the others about 0.5.

    The noise is proportional to the standard deviation of each channel.
    """
    rng = np.random.default_rng(seed)
    full = (batch, *shape)
    offsets, scales = 0.2 * rng.normal(size=full[-1:]), rng.uniform(0.2, 0.8, size=full[-1:])
    offsets[full[-1] // 2], scales[full[-1] // 2] = -500.0, 20.0
    x = offsets + scales * rng.normal(size=full)
    y = x + noise * scales * rng.normal(size=full)
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y.astype(np.float32))


def ready(metric: Metric, shape: tuple[int, ...]) -> Metric:
    """Return the metric with its required statistics, for features of shape (N, C, T, D)."""
    return metric.with_options(**made_statistics(metric, shape))
