"""Losses from metrics, oriented to be minimised and reduced over the batch like torch's losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from cfqa_data.errors import MetricError
from cfqa_data.eval.features.lazy_torch import Tensor
from cfqa_data.eval.metrics.base import Metric

__all__ = ["REDUCTIONS", "MetricLoss"]

REDUCTIONS = ("mean", "sum", "none")


@dataclass(frozen=True)
class MetricLoss:
    """A loss ``(x, y)`` of originals and reconstructions with gradients for both.

    If lower scores s are better, the loss is s. Otherwise it is ``identity - s``, such as
    1 - cosine, which is 0 for a perfect reconstruction, or -s for a metric without an identity.

    Attributes:
        metric: A differentiable metric.
        reduction: Reduction over the batch: ``mean``, ``sum``, or ``none``.
    """

    metric: Metric
    reduction: Literal["mean", "sum", "none"] = "mean"

    def __post_init__(self) -> None:
        named = f"metric {self.metric.name!r}"
        if not self.metric.differentiable:
            raise MetricError(f"{named} cannot be a loss: it is not declared differentiable")
        if self.metric.lower_better is None:
            raise MetricError(f"{named} cannot be a loss: lower_better is not declared")
        if self.reduction not in REDUCTIONS:
            which = ", ".join(REDUCTIONS)
            raise MetricError(f"{named}: reduction is one of {which}, not {self.reduction!r}")

    def __call__(self, x: Any, y: Any) -> Tensor:
        """Return the loss of a batch.

        Args:
            x: Originals, (B, N, C, T, D) or (1, N, C, T, D).
            y: Reconstructions, (B, N, C, T, D).

        Returns:
            float64 on the metric's device, a scalar or, without reduction, (B,).

        Raises:
            MetricError: If the metric raises it, or the features have too few tokens for it.
        """
        scores = self.metric(x, y)
        if bool(scores.isnan().any()):
            least = self.metric.least_tokens
            raise MetricError(
                f"metric {self.metric.name!r} is undefined for fewer than {least} tokens"
            )
        if not self.metric.lower_better:
            scores = (self.metric.identity or 0.0) - scores
        return scores if self.reduction == "none" else getattr(scores, self.reduction)()
