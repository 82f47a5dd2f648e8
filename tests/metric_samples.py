"""Features and statistics on which all metrics are tested."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cfqa_data.eval.metrics import Metric

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
devices = pytest.mark.parametrize("device", DEVICES)


def pair(
    shape: tuple[int, ...], seed: int = 0, noise: float = 0.3, batch: int = 3
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return an original batch and a noisy one, float32, with an offset and unequal channels."""
    rng = np.random.default_rng(seed)
    full = (batch, *shape)
    x = rng.normal(size=full) * rng.uniform(0.1, 3, size=full[-1:]) + rng.normal(size=full[-1:])
    y = x + noise * rng.normal(size=full)
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y.astype(np.float32))


def outliers(
    shape: tuple[int, ...], seed: int = 0, noise: float = 0.3, batch: int = 3
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a pair as large ViTs make them: one channel near -500, the others about 0.5.

    The noise is in proportion to each channel's deviation.
    """
    rng = np.random.default_rng(seed)
    full = (batch, *shape)
    offsets, scales = 0.2 * rng.normal(size=full[-1:]), rng.uniform(0.2, 0.8, size=full[-1:])
    offsets[full[-1] // 2], scales[full[-1] // 2] = -500.0, 20.0
    x = offsets + scales * rng.normal(size=full)
    y = x + noise * scales * rng.normal(size=full)
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y.astype(np.float32))


def statistics(metric: Metric, shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Return made-up statistics of the dataset for a metric that needs some."""
    rng = np.random.default_rng(7)
    layers, channels = shape[1], shape[3]
    mixing = rng.normal(size=(layers, channels, 2 * channels))
    made = {
        "value_range": rng.uniform(5, 50, layers),
        "deviation": rng.uniform(0.1, 3, (layers, channels)),
        "covariance": mixing @ mixing.transpose(0, 2, 1) / channels,
    }
    return {name: torch.from_numpy(made[name]) for name in metric.needs}


def ready(metric: Metric, shape: tuple[int, ...]) -> Metric:
    """Return the metric with the statistics that it needs, for features (N, C, T, D)."""
    return metric.with_options(**statistics(metric, shape))
