"""User-defined metrics: import them by path and wrap them as `Metric` objects."""

from __future__ import annotations

import copy
import importlib
import inspect
import os
import sys
import sysconfig
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial, update_wrapper
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from cfqa_data.errors import MetricError, near_names
from cfqa_data.eval.features.batch import Features
from cfqa_data.eval.features.lazy_torch import Tensor, torch
from cfqa_data.eval.metrics.base import STATISTICS, Metric, check_device, error_line
from cfqa_data.paths import absolute_path
from cfqa_data.registry import bind_options
from cfqa_data.torch_inputs import unmasked
from cfqa_data.torch_state import torch_state

__all__ = ["from_object", "import_object", "instance_of", "trained_metric"]

STATED = (
    *("lower_better", "score_range", "identity", "citation", "least_tokens", "differentiable"),
    *("tasks", "needs", "scope", "no_reference", "inputs"),
)
"""Attributes that the `Metric` of a user's object gets from it, if it has them."""

VALUES = (bool, int, float, str, tuple, list)
"""Types of defaults; a parameter with a default of another type is not an option."""


def from_object(target: Any, device: str, /, **options: Any) -> Metric:
    """Return the metric of an object on a device.

    Args:
        target: A `Metric`, a callable, an object with ``fit``, or a class of such objects.
        device: Torch device.
        options: Constructor arguments of a class, or options of a `Metric` or a function.

    Raises:
        MetricError: If it is none of these, has invalid attributes, or has no such option.
    """
    if isinstance(target, Metric):
        return target.with_options(**options).to(device)
    made_with: dict[str, Any] = {}
    if isinstance(target, type):
        target, made_with, options = instance_of(target, options), options, {}
    if not callable(target) and not hasattr(target, "fit"):
        raise MetricError(f"a metric must be a name or a callable, not {target!r}")
    metric = _wrapped(_on_device(target, device)).to(device).with_options(**options)
    return replace(metric, made_with=made_with)


def instance_of(cls: type, options: dict[str, Any]) -> Any:
    """Return an instance of a user's class.

    Raises:
        MetricError: If its constructor does not accept the options, or raises an error.
    """
    if options:
        options = bind_options(cls, options, f"metric {cls.__name__!r}", MetricError)
    try:
        with torch_state(grad=True):
            return cls(**options)
    except Exception as error:  # whatever a user's class raises
        message = f"metric {cls.__name__!r} cannot be made: {error_line(error)}"
        raise MetricError(message) from error


def _on_device(target: Any, device: str) -> Any:
    """Return a network on a device and in evaluation mode, any other object unchanged."""
    if not _is_network(target):
        return target
    with torch_state():
        return target.to(check_device(device)).eval()


def _is_network(target: Any) -> bool:
    """Return whether an object is a `torch.nn.Module`, which only exists if torch is loaded."""
    loaded = sys.modules.get("torch.nn")
    return loaded is not None and isinstance(target, loaded.Module)


def import_object(path: str) -> Any:
    """Import the object at ``"module:attribute"`` or ``"folder/file.py:attribute"``.

    Raises:
        MetricError: If the import fails, Python would import another module of the same name, or
            the object cannot be a metric.
    """
    module_name, _, attribute = path.rpartition(":")
    if module_name.endswith(".py"):
        module_name = _prepend_to_path(path, absolute_path(module_name))
    if not module_name or module_name.startswith(".") or not attribute:
        raise MetricError(
            f"metric {path!r}: not MODULE:FUNCTION with the module's whole name, as in "
            "package.file, nor FILE.py:FUNCTION"
        )
    _check_not_shadowed(path, module_name.split(".")[0])
    try:
        target: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever a user's module raises
        raise MetricError(
            f"metric {path!r}: cannot import {module_name!r}: {error_line(error)}"
        ) from error
    for part in attribute.split("."):
        if not hasattr(target, part):
            near = near_names(part, dir(target))
            hint = f": {near}" if near else ""
            raise MetricError(f"metric {path!r}: {module_name!r} has no {attribute!r}{hint}")
        target = getattr(target, part)
    if not callable(target) and not hasattr(target, "fit"):
        raise MetricError(f"metric {path!r} is not callable")
    return target


def _prepend_to_path(path: str, file: Path) -> str:
    """Put the folder of a file first on Python's path and return the file's module name."""
    if not file.is_file():
        raise MetricError(f"metric {path!r}: no such file: {file}")
    if str(file.parent) not in sys.path[:1]:
        sys.path.insert(0, str(file.parent))
    return file.stem


def _check_not_shadowed(path: str, name: str) -> None:
    """Check that Python would import the first module of a name on its path.

    Raises:
        MetricError: If another one is loaded or in the standard library.
    """
    spec = PathFinder.find_spec(name)
    if spec is None or spec.origin is None or name == __name__.split(".")[0]:
        return
    origin = os.path.realpath(spec.origin)
    if name in sys.stdlib_module_names:
        library = os.path.realpath(sysconfig.get_path("stdlib"))
        shadowed, other = not origin.startswith(library + os.sep), "the standard library's"
    else:
        loaded = getattr(sys.modules.get(name), "__file__", None) or spec.origin
        shadowed, other = os.path.realpath(loaded) != origin, f"that of {loaded}"
    if shadowed:
        message = f"{name!r} is {other}, which shadows {spec.origin}: rename that file"
        raise MetricError(f"metric {path!r}: {message}")


def _wrapped(call: Any, trainer: Any = None) -> Metric:
    """Return the metric of a user's object.

    Args:
        call: The object.
        trainer: The object whose ``fit`` returned it, for attributes that ``call`` does not have.
    """
    name = getattr(call, "name", None) or getattr(call, "__name__", None) or type(call).__name__
    invariances = getattr(call, "invariances", ())
    if not (
        isinstance(invariances, Iterable)
        and not isinstance(invariances, str)
        and all(isinstance(invariance, str) for invariance in invariances)
    ):
        raise MetricError(f"metric {name!r}: invariances is a list of names, not {invariances!r}")
    options, needs = _parameters(call)
    facts: dict[str, Any] = {"needs": needs} if needs else {}
    for owner in (trainer, call):
        facts |= {fact: getattr(owner, fact) for fact in STATED if hasattr(owner, fact)}
    return Metric(
        name=name,
        family="custom",
        formula=(call.__doc__ or "").strip().split("\n")[0],
        function=update_wrapper(partial(_scores, name, call), call, (), ()),
        invariances=frozenset(invariances),
        options=options,
        fit=partial(_train, call) if trainer is None and hasattr(call, "fit") else None,
        model=call if trainer is not None else None,
        **facts,
    )


def _parameters(call: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the options of a function with their defaults, and the statistics that it needs."""
    if not inspect.isfunction(call):
        return {}, ()
    parameters = list(inspect.signature(call).parameters.values())
    options = {p.name: p.default for p in parameters if isinstance(p.default, VALUES)}
    return options, tuple(p.name for p in parameters if p.name in STATISTICS)


def _train(call: Any, training: Any, device: str) -> Metric:
    """Train a copy of a user's object, so that trainings are independent."""
    try:
        learner = copy.deepcopy(call)
    except Exception:  # an attribute, such as an open file, cannot be copied
        learner = call
    if _is_network(learner):
        learner.train()
    model = learner.fit(training, device)
    if isinstance(model, Metric):
        return model.to(device)
    if not callable(model):
        returned = f"fit returned {type(model).__name__}"
        raise MetricError(f"{returned}; it must return the scoring function, or the object")
    if learner is call and getattr(model, "__self__", model) is call:
        raise MetricError("fit returns the object, which cannot be copied for each fold")
    return trained_metric(model, call, device)


def trained_metric(model: Any, trainer: Any, device: str) -> Metric:
    """Return the metric of a trained model; the parameters of a network are frozen."""
    model = _on_device(model, device)
    if _is_network(model):
        model.requires_grad_(False)
    return _wrapped(model, trainer).to(device)


def _scores(name: str, call: Callable[..., Any], *features: Features, **options: Any) -> Tensor:
    """Call a user's function of tensors and check the scores that it returns."""
    whole = features[-1].values
    # The function may modify its arguments in place, which must not affect other metrics.
    copies = [one.values.expand_as(whole).clone() for one in features]
    with torch_state():  # restores a default device that the call sets
        answer = unmasked(call(*copies, **options))
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
