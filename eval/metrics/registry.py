"""The metrics that have a name. To add one: define it in its family's module, list it here."""

from __future__ import annotations

from cfqa_data.errors import MetricError, unknown_name
from cfqa_data.eval.metrics.angle import COSINE
from cfqa_data.eval.metrics.base import Metric
from cfqa_data.eval.metrics.kernel import CKA
from cfqa_data.eval.metrics.paper import PAPER_CKA, PAPER_COSINE
from cfqa_data.eval.metrics.signal import MSE

__all__ = ["METRICS", "PAPER_METRICS", "create_metric", "list_metrics"]

METRICS: tuple[Metric, ...] = (MSE, COSINE, CKA)

PAPER_METRICS: tuple[Metric, ...] = (PAPER_COSINE, PAPER_CKA)
"""Metrics with the published code's faults: they answer to their names, but are no default."""


def list_metrics(*, paper: bool = False) -> list[str]:
    """Return the names of all registered metrics, in the order of the tables.

    Args:
        paper: Also those that reproduce the published code's faults, at the end.
    """
    return [metric.name for metric in (*METRICS, *(PAPER_METRICS if paper else ()))]


def create_metric(name: str, device: str = "cpu") -> Metric:
    """Return a registered metric.

    Args:
        name: One of ``list_metrics(paper=True)``.
        device: Torch device to run on; inputs are moved there.

    Returns:
        A callable ``(x, y) -> (B,)`` float64 on tensors of shape (B, N, C, T, D), with ``name``,
        ``lower_better``, ``score_range``, ``invariances`` and ``citation``.

    Raises:
        MetricError: Unknown name (near ones are listed), or unusable device.
    """
    for metric in (*METRICS, *PAPER_METRICS):
        if metric.name == name:
            return metric.to(device)
    known = list_metrics(paper=str(name).startswith("paper"))
    raise MetricError(unknown_name("metric", name, known))
