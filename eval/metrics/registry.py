"""The metrics that have a name. To add one: define it in its family's module, list it there."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from cfqa_data.errors import MetricError, unknown_name
from cfqa_data.eval.metrics.angle import ANGLE
from cfqa_data.eval.metrics.base import FAMILIES, Metric
from cfqa_data.eval.metrics.distributional import DISTRIBUTIONAL
from cfqa_data.eval.metrics.geometry import GEOMETRY
from cfqa_data.eval.metrics.kernel import KERNEL
from cfqa_data.eval.metrics.neighbours import NEIGHBOURS
from cfqa_data.eval.metrics.paper import PAPER_CKA, PAPER_COSINE
from cfqa_data.eval.metrics.signal import SIGNAL
from cfqa_data.eval.metrics.trained import TRAINED
from cfqa_data.eval.metrics.whitened import WHITENED

__all__ = ["METRICS", "PAPER_METRICS", "TRAINED_METRICS", "create_metric", "list_metrics"]

METRICS: tuple[Metric, ...] = (
    *SIGNAL,
    *ANGLE,
    *WHITENED,
    *KERNEL,
    *GEOMETRY,
    *NEIGHBOURS,
    *DISTRIBUTIONAL,
)
"""Family by family."""

TRAINED_METRICS: tuple[Metric, ...] = TRAINED
"""Metrics that need labels of other sources first."""

PAPER_METRICS: tuple[Metric, ...] = (PAPER_COSINE, PAPER_CKA)
"""Metrics with the published code's faults: they answer to their names, but are no default."""


GROUP = "cfqa.metrics"
"""Entry points by which other installed packages register metrics."""


def list_metrics(family: str | None = None, *, paper: bool = False) -> list[str]:
    """Return the names of all registered metrics, in the order of the tables.

    Those that other installed packages register (family ``custom``) come last.

    Args:
        family: Only this one, of `cfqa_data.eval.metrics.FAMILIES`.
        paper: Also those that reproduce the published code's faults, at the end.

    Raises:
        MetricError: There is no such family.
    """
    if family is not None and family not in FAMILIES:
        raise MetricError(unknown_name("family", family, FAMILIES))
    listed = (*METRICS, *TRAINED_METRICS, *(PAPER_METRICS if paper else ()))
    names = [metric.name for metric in listed if family in (None, metric.family)]
    return names + (list(_installed()) if family in (None, "custom") else [])


def _installed() -> dict[str, EntryPoint]:
    """Return the metrics of other packages by name; ours keep their names."""
    own = {metric.name for metric in (*METRICS, *TRAINED_METRICS, *PAPER_METRICS)}
    return {point.name: point for point in entry_points(group=GROUP) if point.name not in own}


def create_metric(name: str, device: str = "cpu", **options: Any) -> Metric:
    """Return a registered metric.

    Args:
        name: One of ``list_metrics(paper=True)``.
        device: Torch device to run on; inputs are moved there.
        options: Values for the metric's own options and for the statistics that it needs.

    Returns:
        A callable ``(x, y) -> (B,)`` float64 on tensors of shape (B, N, C, T, D), with ``name``,
        ``family``, ``lower_better``, ``score_range``, ``invariances`` and ``citation``.

    Raises:
        MetricError: Unknown name (near ones are listed) or option, or unusable device.
    """
    for metric in (*METRICS, *TRAINED_METRICS, *PAPER_METRICS):
        if metric.name == name:
            return metric.with_options(**options).to(device)
    if name in _installed():
        from cfqa_data.eval.metrics.custom import as_metric

        found = as_metric(_installed()[name].value.split(" [")[0], device)
        return replace(found, name=name).with_options(**options)
    known = list_metrics(paper=str(name).startswith("paper"))
    raise MetricError(unknown_name("metric", name, known))
