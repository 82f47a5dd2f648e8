"""Features and statistics for tests of all metrics."""

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
    """Return a forest of trees with one split each, over all inputs and many thresholds."""
    names = tuple(one.name for one in INPUTS)
    splits = [(place, size) for place in range(len(names)) for size in np.linspace(-9, 9, 40)]
    trees = {
        "input": [[place, 0, 0] for place, _ in splits],
        "threshold": [[size, 0, 0] for _, size in splits],
        "left": [[1, 1, 2]] * len(splits),
        "right": [[2, 1, 2]] * len(splits),
        "value": [[0.0, 0.0, 0.01]] * len(splits),
    }
    gains = [1 / len(names)] * len(names)
    return Forest.from_dict({"inputs": names, "gains": gains, "start": 0.1, "trees": trees})


TRAINED = {"gap_mean": {"exponents": (0.2, 0.3, 0.5)}, "stack": {"forest": stumps()}}
"""Options that training could have determined, for each trained metric."""


def outliers(
    shape: tuple[int, ...], seed: int = 0, noise: float = 0.3, batch: int = 3
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a pair with the outliers of large ViTs: one channel near -500, the others about 0.5.

    The noise is proportional to each channel's standard deviation.
    """
    rng = np.random.default_rng(seed)
    full = (batch, *shape)
    offsets, scales = 0.2 * rng.normal(size=full[-1:]), rng.uniform(0.2, 0.8, size=full[-1:])
    offsets[full[-1] // 2], scales[full[-1] // 2] = -500.0, 20.0
    x = offsets + scales * rng.normal(size=full)
    y = x + noise * scales * rng.normal(size=full)
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y.astype(np.float32))


def ready(metric: Metric, shape: tuple[int, ...]) -> Metric:
    """Return the metric with the statistics that it needs, for features (N, C, T, D)."""
    return metric.with_options(**made_statistics(metric, shape))
