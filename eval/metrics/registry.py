"""The registry of named metrics: those defined in the family modules, and those of entry points."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib import import_module
from importlib.metadata import EntryPoint
from typing import Any, Literal, TypeAlias, overload

from cfqa_data.entry_points import entry_points
from cfqa_data.errors import MetricError, unknown_name
from cfqa_data.eval.metrics.base import FAMILIES, Metric
from cfqa_data.eval.metrics.custom import from_object, imported
from cfqa_data.eval.metrics.loss import MetricLoss

__all__ = [
    "METRICS",
    "PAPER_METRICS",
    "TRAINED_METRICS",
    "MetricLike",
    "as_metric",
    "as_metrics",
    "create_metric",
    "list_metrics",
]

MetricLike: TypeAlias = str | Metric | Callable[..., Any]


def _defined(modules: str) -> tuple[Metric, ...]:
    """Return the metrics that modules of this package define, in that order."""
    return tuple(
        found
        for module in (import_module(f"{__package__}.{name}") for name in modules.split())
        for found in vars(module).values()
        if isinstance(found, Metric) and found.function.__module__ == module.__name__
    )


METRICS = _defined("signal angle whitened kernel geometry neighbours distributional")
"""Family by family."""

TRAINED_METRICS = _defined("trained stack")
"""Metrics that need labels of other sources first."""

PAPER_METRICS = _defined("paper")
"""Metrics with the published code's faults: they answer to their names, but are no default."""

NAMED = {metric.name: metric for metric in (*METRICS, *TRAINED_METRICS, *PAPER_METRICS)}

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
    return {point.name: point for point in entry_points(GROUP) if point.name not in NAMED}


@overload
def create_metric(
    name: str, device: str = "cpu", *, as_loss: Literal[False] = False, **options: Any
) -> Metric: ...


@overload
def create_metric(
    name: str, device: str = "cpu", *, as_loss: Literal[True], **options: Any
) -> MetricLoss: ...


def create_metric(
    name: str, device: str = "cpu", *, as_loss: bool = False, **options: Any
) -> Metric | MetricLoss:
    """Return a registered metric, or one as a loss to be minimised.

    Args:
        name: One of ``list_metrics(paper=True)``.
        device: Torch device to run on; inputs are moved there.
        as_loss: Return a loss, of which ``reduction`` is an option too: ``mean``, ``sum`` or
            ``none``. See `cfqa_data.eval.metrics.loss.MetricLoss`.
        options: Values for the metric's own options and for the statistics that it needs.

    Returns:
        A callable ``(x, y) -> (B,)`` float64 on tensors of shape (B, N, C, T, D), with ``name``,
        ``family``, ``lower_better``, ``score_range``, ``invariances`` and ``citation``.

    Raises:
        MetricError: Unknown name (near ones are listed) or option, unusable device, or no loss.
    """
    name = str(name)
    if as_loss:
        reduction = options.pop("reduction", "mean")
        return MetricLoss(create_metric(name, device, **options), reduction)
    if name in NAMED:
        return NAMED[name].with_options(**options).to(device)
    if point := _installed().get(name):
        found = from_object(imported(point.value.split(" [")[0]), device)
        return replace(found, name=name).with_options(**options)
    known = list_metrics(paper=name.startswith("paper"))
    raise MetricError(unknown_name("metric", name, known))


def as_metric(spec: MetricLike, device: str = "cpu") -> Metric:
    """Return the metric that ``spec`` stands for, on ``device``.

    Args:
        spec: A registered name, or one that an installed package registers as an entry point in
            the group ``cfqa.metrics``; ``"module:attribute"``, imported; a `Metric`; or a callable
            ``(x, y) -> (B,)`` on (B, N, C, T, D) tensors (a function, or a `torch.nn.Module`, which
            is put on the device and into evaluation mode), or anything with a method ``fit`` that
            takes the training part of a dataset and the device, and returns such a callable. Its
            attributes ``name``, ``lower_better``, ``score_range``, ``identity``, ``invariances``,
            ``citation`` and ``least_tokens`` are taken over where it has them. Of a
            class, an instance is made.
        device: Torch device.

    Raises:
        MetricError: Unknown name, import that fails, not callable, or impossible facts.
    """
    if isinstance(spec, str) and ":" not in spec:
        return create_metric(spec, device)
    return from_object(imported(spec) if isinstance(spec, str) else spec, device)


def as_metrics(specs: MetricLike | Iterable[MetricLike], device: str = "cpu") -> tuple[Metric, ...]:
    """Resolve one metric or several; at least one, and no name twice."""
    if isinstance(specs, str) or callable(specs) or not isinstance(specs, Iterable):
        specs = [specs]
    metrics = tuple(as_metric(spec, device) for spec in specs)
    if not metrics:
        raise MetricError("no metric was asked for")
    names = [metric.name for metric in metrics]
    for name in names:
        if names.count(name) > 1:
            raise MetricError(f"two metrics are named {name!r}; a custom one can set its `name`")
    return metrics
