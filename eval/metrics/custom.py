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

__all__ = ["from_object", "imported", "made", "trained"]

STATED = (
    *("lower_better", "score_range", "identity", "citation", "least_tokens", "differentiable"),
    *("tasks", "needs", "scope", "no_reference", "inputs"),
)
"""Attributes that are taken over from a custom metric where it has them."""

VALUES = (bool, int, float, str, tuple, list)
"""Types of the defaults that make a function's parameters options."""


def from_object(found: Any, device: str, **options: Any) -> Metric:
    """Return a metric, or what a user made as one, as a metric on a device.

    Args:
        found: A `Metric`, a callable, an object with ``fit``, or a class of such.
        device: Torch device.
        options: Of a class, what an object is made with; of a `Metric` or a function, its own.

    Raises:
        MetricError: It is none of these, states impossible facts, or has no such option.
    """
    if isinstance(found, Metric):
        return found.with_options(**options).to(device)
    made_with: dict[str, Any] = {}
    if isinstance(found, type):
        found, made_with, options = made(found, options), options, {}
    if not callable(found) and not hasattr(found, "fit"):
        raise MetricError(f"a metric must be a name or a callable, not {found!r}")
    metric = _wrapped(_on(found, device)).to(device).with_options(**options)
    return replace(metric, made_with=made_with)


def made(found: type, options: dict[str, Any]) -> Any:
    """Return an object of a user's class.

    Raises:
        MetricError: It takes no such options, or fails.
    """
    if options:
        options = bind_options(found, options, f"metric {found.__name__!r}", MetricError)
    try:
        with torch_state(grad=True):
            return found(**options)
    except Exception as error:  # whatever a user's class raises
        message = f"metric {found.__name__!r} cannot be made: {error_line(error)}"
        raise MetricError(message) from error


def _on(found: Any, device: str) -> Any:
    """Return a network on a device and in evaluation mode, anything else as it is."""
    if not _is_network(found):
        return found
    with torch_state():
        return found.to(check_device(device)).eval()


def _is_network(found: Any) -> bool:
    """Whether this is a `torch.nn.Module`: whoever made one has imported torch."""
    loaded = sys.modules.get("torch.nn")
    return loaded is not None and isinstance(found, loaded.Module)


def imported(path: str) -> Any:
    """Return what a path ``"module:attribute"`` or ``"folder/file.py:attribute"`` names.

    Raises:
        MetricError: The import fails, Python would import another module, or there is no metric.
    """
    module_name, _, attribute = path.rpartition(":")
    if module_name.endswith(".py"):
        module_name = _module_of(path, absolute_path(module_name))
    if not module_name or module_name.startswith(".") or not attribute:
        raise MetricError(
            f"metric {path!r}: not MODULE:FUNCTION with the module's whole name, as in "
            "package.file, nor FILE.py:FUNCTION"
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
            near = near_names(part, dir(found))
            hint = f": {near}" if near else ""
            raise MetricError(f"metric {path!r}: {module_name!r} has no {attribute!r}{hint}")
        found = getattr(found, part)
    if not callable(found) and not hasattr(found, "fit"):
        raise MetricError(f"metric {path!r} is not callable")
    return found


def _module_of(path: str, file: Path) -> str:
    """Return the name of the module in a file, whose folder is searched first from now on."""
    if not file.is_file():
        raise MetricError(f"metric {path!r}: no such file: {file}")
    if str(file.parent) not in sys.path[:1]:
        sys.path.insert(0, str(file.parent))
    return file.stem


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
        message = f"{name!r} is {whose}, which shadows {spec.origin}: rename that file"
        raise MetricError(f"metric {path!r}: {message}")


def _wrapped(call: Any, trainer: Any = None) -> Metric:
    """Return a user's object as a metric.

    Args:
        call: The object.
        trainer: What returned it when it was trained, whose facts hold where it states none.
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
    """Return the options of a function with their defaults, and the statistics that it takes."""
    if not inspect.isfunction(call):
        return {}, ()
    parameters = list(inspect.signature(call).parameters.values())
    options = {p.name: p.default for p in parameters if isinstance(p.default, VALUES)}
    return options, tuple(p.name for p in parameters if p.name in STATISTICS)


def _train(call: Any, training: Any, device: str) -> Metric:
    """Train a copy of a user's object: no training sees what another one found."""
    try:
        learner = copy.deepcopy(call)
    except Exception:  # whatever an object holds, such as an open file
        learner = call
    if _is_network(learner):
        learner.train()
    found = learner.fit(training, device)
    if isinstance(found, Metric):
        return found.to(device)
    if not callable(found):
        returned = f"fit returned {type(found).__name__}"
        raise MetricError(f"{returned}; it must return the scoring function, or the object")
    if learner is call and getattr(found, "__self__", found) is call:
        raise MetricError("fit returns the object, which cannot be copied for each fold")
    return trained(found, call, device)


def trained(model: Any, trainer: Any, device: str) -> Metric:
    """Return what a user's trainer made as a metric; the parameters of a network are frozen."""
    model = _on(model, device)
    if _is_network(model):
        model.requires_grad_(False)
    return _wrapped(model, trainer).to(device)


def _scores(name: str, call: Callable[..., Any], *features: Features, **options: Any) -> Tensor:
    """Call a user's function, which is one of tensors, and check what it returns."""
    whole = features[-1].values
    # Copies: what a metric does to them in place must not reach the next one.
    copies = [one.values.expand_as(whole).clone() for one in features]
    with torch_state():  # a default device that the call sets is not that of its answer
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
