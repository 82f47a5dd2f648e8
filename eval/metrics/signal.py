"""Signal metrics: the error ``e = y - x`` as a number, blind to what the feature means."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from cfqa_data.eval.metrics.base import Metric

if TYPE_CHECKING:
    from torch import Tensor

    from cfqa_data.eval.features import Features

__all__ = ["SIGNAL", "mse"]


def mse(x: Tensor | Features, y: Tensor | Features) -> Tensor:
    """Mean squared error over the whole feature.

    Explicit differences: the expansion ``|x|^2 - 2<x, y> + |y|^2`` cancels (48% error was measured
    in float32 at a relative noise of 1e-3).

    Args:
        x: (B or 1, N, C, T, D).
        y: (B, N, C, T, D).

    Returns:
        (B,) float64, in squared feature units.
    """
    from cfqa_data.eval.features import as_features, slice_mean

    x, y = as_features(x, y)
    return slice_mean((y.values - x.values).square().mean(-1))


MSE = Metric(
    name="mse",
    family="signal",
    formula="mean((y - x)^2)",
    function=mse,
    lower_better=True,
    score_range=(0.0, math.inf),
    identity=0.0,
    invariances=frozenset(),
    cost="TD",
    citation="Gao et al., Compressed Feature Quality Assessment, ACM MM 2025 (baseline)",
)

SIGNAL = (MSE,)
