"""The registry of metrics, which are defined in the family modules or by entry points."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib import import_module
from importlib.metadata import EntryPoint
from typing import Any, Literal, TypeAlias, overload

import numpy as np

from cfqa_data.entry_points import entry_points
from cfqa_data.errors import MetricError, unknown_name
from cfqa_data.eval.metrics.base import FAMILIES, Metric
from cfqa_data.eval.metrics.custom import from_object, import_object
from cfqa_data.eval.metrics.loss import MetricLoss
from cfqa_data.eval.metrics.spec import parse_spec, split_specs, variant_name

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
    """Return the metrics that modules of this package define, in the order of definition."""
    return tuple(
        value
        for module in (import_module(f"{__package__}.{name}") for name in modules.split())
        for value in vars(module).values()
        if isinstance(value, Metric) and value.function.__module__ == module.__name__
    )


METRICS = _defined("signal angle whitened kernel geometry neighbours distributional")
"""Metrics by family, without trained metrics."""

TRAINED_METRICS = _defined("trained stack")
"""Metrics that are first fitted to labels of other sources."""

PAPER_METRICS = _defined("paper")
"""Metrics with the faults of the published code, which must be requested by name."""

NAMED = {metric.name: metric for metric in (*METRICS, *TRAINED_METRICS, *PAPER_METRICS)}

GROUP = "cfqa.metrics"
"""Group of entry points by which other installed packages register metrics."""


def list_metrics(family: str | None = None, *, paper: bool = False) -> list[str]:
    """Return the names of all registered metrics, in the order of the tables.

    Metrics that other installed packages register (family ``custom``) come last.

    Args:
        family: List only this family, one of `cfqa_data.eval.metrics.FAMILIES`.
        paper: Also list metrics that reproduce the faults of the published code, after the others.

    Raises:
        MetricError: If there is no such family.
    """
    if family is not None and family not in FAMILIES:
        raise MetricError(unknown_name("family", family, FAMILIES))
    listed = (*METRICS, *TRAINED_METRICS, *(PAPER_METRICS if paper else ()))
    names = [metric.name for metric in listed if family in (None, metric.family)]
    return names + (list(_installed()) if family in (None, "custom") else [])


def _installed() -> dict[str, EntryPoint]:
    """Return the metrics of other packages by name; they cannot replace those of this package."""
    return {point.name: point for point in entry_points(GROUP) if point.name not in NAMED}


@overload
def create_metric(
    metric: MetricLike | None = None,
    device: str = "cpu",
    *,
    name: str | None = None,
    as_loss: Literal[False] = False,
    **options: Any,
) -> Metric: ...


@overload
def create_metric(
    metric: MetricLike | None = None,
    device: str = "cpu",
    *,
    name: str | None = None,
    as_loss: Literal[True],
    **options: Any,
) -> MetricLoss: ...


def create_metric(
    metric: MetricLike | None = None,
    device: str = "cpu",
    *,
    name: str | None = None,
    as_loss: bool = False,
    **options: Any,
) -> Metric | MetricLoss:
    """Return the metric with a name or path, or that of an object; optionally as a loss.

    Args:
        metric: One of ``list_metrics(paper=True)``, ``"module:attribute"`` or
            ``"folder/file.py:attribute"``, followed by options, if any, as in ``"mutual_knn:k=3"``;
            or an object that `as_metric` accepts.
        device: Torch device to run on; inputs are moved there.
        name: Name of the metric in results; by default its own, followed by the numbers and strings
            among its options that differ from the defaults, as in ``mutual_knn:k=3``.
        as_loss: Return a loss, which has another option ``reduction``: ``mean``, ``sum`` or
            ``none``. See `cfqa_data.eval.metrics.loss.MetricLoss`.
        options: Values for the metric's own options and for the statistics that it needs; for a
            class, the arguments of its constructor.

    Returns:
        A callable ``(x, y) -> (B,)`` float64 on tensors of shape (B, N, C, T, D), with ``name``,
        ``family``, ``lower_better``, ``score_range``, ``invariances`` and ``citation``.

    Raises:
        MetricError: If the name, option or device is unknown, or the metric cannot be a loss.
    """
    if metric is None:  # `metric` was called `name` before
        metric, name = name, None
    if as_loss:
        reduction = options.pop("reduction", "mean")
        return MetricLoss(create_metric(metric, device, name=name, **options), reduction)
    base, target = "", metric
    if isinstance(metric, str):
        base, parsed = parse_spec(metric)
        base, target, options = *_lookup(base), parsed | options
    result = from_object(target, device, **options)
    if options and base in NAMED and not (result.needs or result.fit):
        result(*np.zeros((2, 1, 1, 1, 8, 2)))  # raises an error for invalid values of options
    plain = not options or isinstance(target, type)
    defaults = {} if plain else from_object(target, device).options
    shown = {option: v for option, v in options.items() if option not in result.needs}
    return replace(result, name=name or variant_name(base or result.name, shown, defaults))


def _lookup(name: str) -> tuple[str, Any]:
    """Return the registered name, which is empty for a path, and the object."""
    if name in NAMED:
        return name, NAMED[name]
    if ":" in name:
        return "", import_object(name)
    if name.endswith(".py"):
        raise MetricError(f"metric {name!r}: name one of its functions, {name}:FUNCTION")
    if point := _installed().get(name):
        return name, import_object(point.value.split(" [")[0])
    known = list_metrics(paper=name.startswith("paper"))
    raise MetricError(unknown_name("metric", name, known))


def as_metric(spec: MetricLike, device: str = "cpu") -> Metric:
    """Return the metric that ``spec`` specifies, on ``device``.

    Args:
        spec: A string that `create_metric` accepts, such as a name that an installed package
            registers as an entry point in the group ``cfqa.metrics``; a `Metric`; a callable
            ``(x, y) -> (B,)`` on (B, N, C, T, D) tensors (a function, or a `torch.nn.Module`, which
            is moved to the device and set to evaluation mode); an object with a method ``fit`` that
            takes a `TrainingSet` and the device, and returns such a callable; or a class of such
            objects, of which an instance is created. If the object has attributes ``name``,
            ``lower_better``, ``score_range``, ``identity``, ``invariances``, ``citation``,
            ``least_tokens``, ``differentiable``, ``tasks``, ``needs``, ``scope``, ``no_reference``
            or ``inputs``, the metric gets them.
        device: Torch device.

    Raises:
        MetricError: If ``spec`` is unknown, cannot be imported, or is not a valid metric.
    """
    return create_metric(spec, device)


def as_metrics(specs: MetricLike | Iterable[MetricLike], device: str = "cpu") -> tuple[Metric, ...]:
    """Resolve one or several metrics, also from one string of several; names must differ."""
    if isinstance(specs, str):
        specs = split_specs(specs)
    elif callable(specs) or not isinstance(specs, Iterable):
        specs = [specs]
    metrics = tuple(as_metric(spec, device) for spec in specs)
    if not metrics:
        raise MetricError("no metric was requested")
    names = [metric.name for metric in metrics]
    for name in names:
        if names.count(name) > 1:
            remedy = "create_metric(..., name=...) names one; a custom one can set its `name`"
            raise MetricError(f"two metrics are named {name!r}; {remedy}")
    return metrics
