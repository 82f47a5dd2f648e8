"""User-defined metrics: import them by path and wrap them as `Metric` objects."""

from __future__ import annotations

import importlib
import os
import sys
import sysconfig
from collections.abc import Callable, Iterable
from functools import wraps
from importlib.machinery import PathFinder
from typing import Any

from cfqa_data.errors import MetricError
from cfqa_data.eval.features.batch import Features
from cfqa_data.eval.features.lazy_torch import Tensor, torch
from cfqa_data.eval.metrics.base import Metric, check_device, error_line
from cfqa_data.torch_state import torch_state

__all__ = ["from_object", "imported"]

STATED = (
    *("lower_better", "score_range", "identity", "citation"),
    *("least_tokens", "differentiable"),
)
"""Attributes that are taken over from a custom metric where it has them."""


def from_object(found: Any, device: str) -> Metric:
    """Return a metric, or what a user made as one, as a metric on a device.

    Args:
        found: A `Metric`, a callable, an object with ``fit``, or a class of such.
        device: Torch device.

    Raises:
        MetricError: It is none of these, or states impossible facts.
    """
    if isinstance(found, Metric):
        return found.to(device)
    if isinstance(found, type):
        try:
            with torch_state(grad=True):
                found = found()
        except Exception as error:  # whatever a user's class raises
            message = f"metric {found.__name__!r} cannot be made: {error_line(error)}"
            raise MetricError(message) from error
    if not callable(found) and not hasattr(found, "fit"):
        raise MetricError(f"a metric is a name or a callable, not {found!r}")
    loaded = sys.modules.get("torch")  # whoever made a `torch.nn.Module` has imported it
    if loaded is not None and isinstance(found, loaded.nn.Module):
        with torch_state():
            found = found.to(check_device(device)).eval()
    return _wrapped(found).to(device)


def imported(path: str) -> Any:
    """Return what a path ``"module:attribute"`` names.

    Raises:
        MetricError: The import fails, Python would import another module, or there is no metric.
    """
    module_name, _, attribute = path.partition(":")
    if not module_name or module_name.startswith(".") or not attribute:
        raise MetricError(
            f"metric {path!r}: not MODULE:FUNCTION with the module's whole name, as in package.file"
        )
    _check_hidden(path, module_name.split(".")[0])
    try:
        found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a user's module may raise anything, a script exit
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
    """Check that a module is the one that a user means, the first of its name on Python's path.

    Raises:
        MetricError: Python has, or has loaded, another one of that name.
    """
    spec = PathFinder.find_spec(name)
    if spec is None or spec.origin is None or name == __name__.split(".")[0]:
        return
    meant = os.path.realpath(spec.origin)
    if name in sys.stdlib_module_names:
        library = os.path.realpath(sysconfig.get_path("stdlib"))
        hidden, whose = not meant.startswith(library + os.sep), "the standard library's"
    else:
        loaded = getattr(sys.modules.get(name), "__file__", None) or spec.origin
        hidden, whose = os.path.realpath(loaded) != meant, f"that of {loaded}"
    if hidden:
        message = f"{name!r} is {whose} here, which hides {spec.origin}: rename that file"
        raise MetricError(f"metric {path!r}: {message}")


def _wrapped(call: Any) -> Metric:
    name = getattr(call, "name", None) or getattr(call, "__name__", None) or type(call).__name__
    invariances = getattr(call, "invariances", ())
    if not (
        isinstance(invariances, Iterable)
        and not isinstance(invariances, str)
        and all(isinstance(invariance, str) for invariance in invariances)
    ):
        raise MetricError(f"metric {name!r}: invariances is a list of names, not {invariances!r}")
    train = getattr(call, "fit", None)
    return Metric(
        name=name,
        family="custom",
        formula=(call.__doc__ or "").strip().split("\n")[0],
        function=_scoring(name, call),
        invariances=frozenset(invariances),
        fit=train and (lambda training, device: from_object(train(training, device), device)),
        **{fact: getattr(call, fact) for fact in STATED if hasattr(call, fact)},
    )


def _scoring(name: str, call: Callable[..., Any]) -> Callable[..., Tensor]:
    """Return a function of `Features` that calls one of tensors, and checks what it returns."""

    @wraps(call, assigned=(), updated=())
    def function(x: Features, y: Features) -> Tensor:
        # Copies: what a metric does to them in place must not reach the next one.
        with torch_state():  # a default device that the call sets is not that of its answer
            answer = call(x.values.expand_as(y.values).clone(), y.values.clone())
        try:
            scores = torch.as_tensor(answer)
            if scores.is_complex():
                raise TypeError("complex")
            if not isinstance(answer, torch.Tensor):  # Python's numbers are float64
                scores = torch.as_tensor(answer, dtype=torch.float64)
            return scores.double()
        except (TypeError, ValueError, RuntimeError):
            kind = type(answer).__name__
            raise MetricError(f"metric {name!r} returned {kind}, not one number per item") from None

    return function
