"""Dataset statistics that metrics may take as parameters, and validating given ones."""

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
"""What a metric may ask of the dataset, by the name of its keyword argument; all float64."""

AXES = {"value_range": "C", "deviation": "CD", "covariance": "CDD"}


@torch_state(grad=False)
def as_statistic(metric: str, name: str, value: Any) -> Tensor:
    """Return a statistic as a float64 tensor; one that is that already stays the same object.

    Raises:
        MetricError: It is no array of finite numbers, or a range that is not above zero.
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
    """Check a statistic, None if it was not given, against features of a shape (B, N, C, T, D).

    Raises:
        MetricError: It was not given, or is of features with other layers or channels.
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
