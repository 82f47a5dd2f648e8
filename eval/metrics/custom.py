"""Turn whatever a user calls a metric into a `Metric`: a name, ``module:attribute``, a callable."""

from __future__ import annotations

import importlib
import math
import os
import sys
import sysconfig
from collections.abc import Callable, Iterable
from functools import wraps
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING, Any, TypeAlias

from cfqa_data.errors import MetricError
from cfqa_data.eval.metrics.base import Metric, check_device, error_line
from cfqa_data.eval.metrics.registry import create_metric
from cfqa_data.torch_state import torch_state

if TYPE_CHECKING:
    from torch import Tensor

    from cfqa_data.eval.features import Features

__all__ = ["MetricLike", "as_metric", "as_metrics"]

MetricLike: TypeAlias = str | Metric | Callable[..., Any]


def as_metric(spec: MetricLike, device: str = "cpu") -> Metric:
    """Return the metric that ``spec`` stands for, on ``device``.

    Args:
        spec: A registered name, or one that an installed package registers as an entry point in
            the group ``cfqa.metrics``; ``"module:attribute"``, imported; a `Metric`; or a callable
            ``(x, y) -> (B,)`` on (B, N, C, T, D) tensors (a function, or a `torch.nn.Module`, which
            is put on the device and into evaluation mode), or anything with a method ``fit`` that
            takes the training part of a dataset and the device, and returns such a callable. Its
            attributes ``name``, ``lower_better``, ``score_range``, ``identity``, ``invariances``
            and ``citation`` are taken over where it has them. Of a class, one is made.
        device: Torch device.

    Raises:
        MetricError: Unknown name, import that fails, not callable, or impossible facts.
    """
    if isinstance(spec, str):
        if ":" not in spec:
            return create_metric(spec, device)
        return as_metric(_imported(spec), device)
    if isinstance(spec, Metric):
        return spec.to(device)
    found: Any = _made(spec) if isinstance(spec, type) else spec
    if not callable(found) and not hasattr(found, "fit"):
        raise MetricError(f"a metric is a name or a callable, not {found!r}")
    return _wrapped(_placed(found, device)).to(device)


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


def _imported(path: str) -> Callable[..., Any]:
    module_name, _, attribute = path.partition(":")
    if not module_name or module_name.startswith(".") or not attribute:
        raise MetricError(
            f"metric {path!r}: not MODULE:FUNCTION with the module's whole name, as in package.file"
        )
    _check_hidden(path, module_name.split(".")[0])
    try:
        found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever a user's module raises, or a bare script
        raise MetricError(
            f"metric {path!r}: cannot import {module_name!r}: {error_line(error)}"
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise MetricError(f"metric {path!r}: {module_name!r} has no {attribute!r}")
        found = getattr(found, part)
    if not callable(found) and not hasattr(found, "fit"):
        raise MetricError(f"metric {path!r} is not callable")
    return found


def _check_hidden(path: str, name: str) -> None:
    """See that a module is the one that a user means, the first of its name on Python's path.

    Raises:
        MetricError: Python has, or has loaded, another one of that name.
    """
    spec = PathFinder.find_spec(name)
    if spec is None or spec.origin is None or name == __name__.split(".")[0]:
        return
    meant, taken = os.path.realpath(spec.origin), ""
    library = os.path.realpath(sysconfig.get_path("stdlib"))
    if name in sys.stdlib_module_names:
        if not meant.startswith(library + os.sep):
            taken = "the standard library's"
    elif name in sys.modules:
        loaded = getattr(sys.modules[name], "__file__", None)
        if loaded and os.path.realpath(loaded) != meant:
            taken = f"that of {loaded}"
    if taken:
        told = f"{name!r} is {taken} here, which hides {spec.origin}: rename that file"
        raise MetricError(f"metric {path!r}: {told}")


def _made(kind: type) -> Any:
    try:
        with torch_state(grad=True):
            return kind()
    except Exception as error:  # whatever a user's class raises
        told = f"metric {kind.__name__!r} cannot be made: {error_line(error)}"
        raise MetricError(told) from error


def _placed(call: Callable[..., Any], device: str) -> Callable[..., Any]:
    """Return a `torch.nn.Module` on the device and in evaluation mode, anything else as it is."""
    torch = sys.modules.get("torch")  # whoever made a module has imported it
    if torch is None or not isinstance(call, torch.nn.Module):
        return call
    with torch_state():
        return call.to(check_device(device)).eval()


def _wrapped(call: Callable[..., Any]) -> Metric:
    name = getattr(call, "name", None) or getattr(call, "__name__", None) or type(call).__name__
    invariances = getattr(call, "invariances", ())
    if not (
        isinstance(invariances, Iterable)
        and not isinstance(invariances, str)
        and all(isinstance(invariance, str) for invariance in invariances)
    ):
        raise MetricError(f"metric {name!r}: invariances is a list of names, not {invariances!r}")

    @wraps(call, assigned=(), updated=())
    def function(x: Features, y: Features) -> Tensor:
        import torch

        # Copies: what a metric does to them in place must not reach the next one.
        with torch_state():  # nor must what it does to torch
            answer = call(x.values.expand_as(y.values).clone(), y.values.clone())
        try:
            scores = torch.as_tensor(answer)
            if scores.is_complex():
                raise TypeError("complex")
            if not isinstance(answer, torch.Tensor):  # as it is: Python's numbers are float64
                scores = torch.as_tensor(answer, dtype=torch.float64)
            return scores.double()
        except (TypeError, ValueError, RuntimeError):
            kind = type(answer).__name__
            raise MetricError(f"metric {name!r} returned {kind}, not one number per item") from None

    return Metric(
        name=name,
        family="custom",
        formula=(call.__doc__ or "").strip().split("\n")[0],
        function=function,
        lower_better=getattr(call, "lower_better", None),
        score_range=getattr(call, "score_range", (-math.inf, math.inf)),
        identity=getattr(call, "identity", None),
        invariances=frozenset(invariances),
        citation=getattr(call, "citation", ""),
        fit=getattr(call, "fit", None),
    )
