"""The registry of named metrics: those defined in the family modules, and those of entry points."""

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
from cfqa_data.eval.metrics.custom import from_object, imported
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
    """Return a metric by name, path or object, or one as a loss to be minimised.

    Args:
        metric: One of ``list_metrics(paper=True)``; or ``"module:attribute"`` or
            ``"folder/file.py:attribute"``. Options may follow, as in ``"mutual_knn:k=3"``. Or an
            object, as `as_metric` takes it.
        device: Torch device to run on; inputs are moved there.
        name: What to call it in results; by default its name, with the numbers and texts among its
            options that are not the defaults: ``mutual_knn:k=3``.
        as_loss: Return a loss, of which ``reduction`` is an option too: ``mean``, ``sum`` or
            ``none``. See `cfqa_data.eval.metrics.loss.MetricLoss`.
        options: Values for the metric's own options and for the statistics that it needs; of a
            class, what an object of it is made with.

    Returns:
        A callable ``(x, y) -> (B,)`` float64 on tensors of shape (B, N, C, T, D), with ``name``,
        ``family``, ``lower_better``, ``score_range``, ``invariances`` and ``citation``.

    Raises:
        MetricError: Unknown name (near ones are listed) or option, unusable device, or no loss.
    """
    if metric is None:  # as `name`, which it was called before
        metric, name = name, None
    if as_loss:
        reduction = options.pop("reduction", "mean")
        return MetricLoss(create_metric(metric, device, name=name, **options), reduction)
    base, target = "", metric
    if isinstance(metric, str):
        base, told = parse_spec(metric)
        base, target, options = *_named(base), told | options
    found = from_object(target, device, **options)
    if options and base in NAMED and not (found.needs or found.fit):
        found(*np.zeros((2, 1, 1, 1, 8, 2)))  # which raises what is wrong with their values
    plain = not options or isinstance(target, type)
    defaults = {} if plain else from_object(target, device).options
    shown = {option: v for option, v in options.items() if option not in found.needs}
    return replace(found, name=name or variant_name(base or found.name, shown, defaults))


def _named(name: str) -> tuple[str, Any]:
    """Return the registered name, or none of a path, and what it stands for."""
    if name in NAMED:
        return name, NAMED[name]
    if ":" in name:
        return "", imported(name)
    if name.endswith(".py"):
        raise MetricError(f"metric {name!r}: name one of its functions, {name}:FUNCTION")
    if point := _installed().get(name):
        return name, imported(point.value.split(" [")[0])
    known = list_metrics(paper=name.startswith("paper"))
    raise MetricError(unknown_name("metric", name, known))


def as_metric(spec: MetricLike, device: str = "cpu") -> Metric:
    """Return the metric that ``spec`` stands for, on ``device``.

    Args:
        spec: A text that `create_metric` takes, also a name that an installed package registers as
            an entry point in the group ``cfqa.metrics``; a `Metric`; or a callable
            ``(x, y) -> (B,)`` on (B, N, C, T, D) tensors (a function, or a `torch.nn.Module`, which
            is put on the device and into evaluation mode), or anything with a method ``fit`` that
            takes a `TrainingSet` and the device, and returns such a callable. Its attributes
            ``name``, ``lower_better``, ``score_range``, ``identity``, ``invariances``,
            ``citation``, ``least_tokens``, ``tasks``, ``needs``, ``scope``, ``no_reference`` and
            ``inputs`` are taken over where it has them. Of a class, an instance is made.
        device: Torch device.

    Raises:
        MetricError: Unknown name, import that fails, not callable, or impossible facts.
    """
    return create_metric(spec, device)


def as_metrics(specs: MetricLike | Iterable[MetricLike], device: str = "cpu") -> tuple[Metric, ...]:
    """Resolve one metric or several, also of one text; at least one, and no name twice."""
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
