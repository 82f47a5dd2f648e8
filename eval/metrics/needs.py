"""Statistics of a dataset that metrics may take as parameters, and their validation."""

from __future__ import annotations

from typing import Any

from cfqa_data.errors import MetricError
from cfqa_data.eval.features.lazy_torch import Tensor, torch
from cfqa_data.torch_state import torch_state

__all__ = ["STATISTICS", "as_statistic", "check_statistic"]

STATISTICS = {
    "value_range": "width of the quantiser's range per layer, above zero, (C,)",
    "deviation": "standard deviation of each channel over the originals of other folds, (C, D)",
    "covariance": "covariance of the channels over the originals of other folds, (C, D, D)",
}
"""Statistics by the name of the keyword argument of a metric that receives them; all float64."""

AXES = {"value_range": "C", "deviation": "CD", "covariance": "CDD"}  # C layers, D channels


@torch_state(grad=False)
def as_statistic(metric: str, name: str, value: Any) -> Tensor:
    """Return a statistic as a float64 tensor; a float64 tensor is returned as the same object.

    Raises:
        MetricError: If it is not an array of finite numbers, or a range is not above zero.
    """
    try:
        tensor = torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        kind = type(value).__name__
        raise MetricError(
            f"metric {metric!r}: {name} is not an array of numbers but {kind}"
        ) from None
    if not bool(tensor.isfinite().all()):
        raise MetricError(f"metric {metric!r}: {name} holds NaN or Inf")
    if name == "value_range" and not bool((tensor > 0).all()):
        raise MetricError(f"metric {metric!r}: {name} must be above zero, not {tensor.tolist()}")
    return tensor


def check_statistic(metric: str, name: str, value: Any, shape: tuple[int, ...]) -> None:
    """Check that a statistic is present and has the shape for features of (B, N, C, T, D).

    Raises:
        MetricError: If ``value`` is None, or from features with other layers or channels.
    """
    if value is None:
        raise MetricError(
            f"metric {metric!r} needs the dataset's {name} ({STATISTICS[name]}): evaluate() "
            f"provides it; otherwise use create_metric({metric!r}, {name}=...)"
        )
    lengths = {"C": shape[2], "D": shape[4]}
    expected = tuple(lengths[axis] for axis in AXES[name])
    if tuple(value.shape) != expected:
        raise MetricError(
            f"metric {metric!r}: {name} has shape {tuple(value.shape)}, but for these features it "
            f"is ({', '.join(AXES[name])}) = {expected}"
        )
