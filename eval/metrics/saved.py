"""Save trained metrics to files and load them; files contain no code.

Metrics of this package are saved as JSON, and a user's model as the tensors of its ``state_dict``.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cfqa_data.access.memory import as_numpy
from cfqa_data.errors import MetricError
from cfqa_data.eval.features.lazy_torch import torch
from cfqa_data.eval.features.trained_on import TrainedOn
from cfqa_data.eval.metrics.base import Metric, error_line
from cfqa_data.eval.metrics.custom import import_object, instance_of, trained_metric
from cfqa_data.eval.metrics.forest import Forest
from cfqa_data.eval.metrics.registry import TRAINED_METRICS, create_metric
from cfqa_data.format.limits import LARGEST_JSON, parse_json, read_limited
from cfqa_data.format.storage import write_tensors, write_text
from cfqa_data.paths import absolute_path

__all__ = ["load_metric", "save_metric"]

SUFFIX = ".safetensors"

FACTS = ("name", "lower_better", "least_tokens", "tasks", "scope", "no_reference")
"""Attributes of the metric of a user's model that its file contains besides the tensors."""

STATISTIC = "statistic "
"""Prefix of the name of a tensor that is not part of the model, but a statistic it ``needs``."""


def save_metric(metric: Metric, path: str | Path) -> Path:
    """Save the result of training to a file and return its path.

    Args:
        metric: A trained metric of this package, or one whose model, the result of its ``fit``, has
            a method ``state_dict()``, as a `torch.nn.Module` has.
        path: File to write, ``.json``, or ``.safetensors`` for a model.

    Raises:
        MetricError: If the metric is not trained or cannot be saved.
        OSError: If the file cannot be written.
    """
    path = absolute_path(path)
    if not isinstance(metric, Metric):
        raise MetricError(f"only a trained `Metric` can be saved, not {metric!r}")
    if metric.fit or (metric.family != "trained" and metric.model is None):
        raise MetricError(
            f"metric {metric.name!r} has nothing to save: "
            + ("it is not trained yet" if metric.fit else "it is not a trained metric")
        )
    if metric.model is not None:
        return _save_model(metric, path)
    options = {
        name: value.to_dict() if isinstance(value, Forest) else list(value)
        for name, value in metric.options.items()
    }
    own = next(one.name for one in TRAINED_METRICS if one.function is metric.function)
    named = {} if metric.name == own else {"name": metric.name}
    facts = {"metric": own, "options": options, "weights": dict(metric.weights)} | named
    facts |= _training_facts(metric)
    write_text(path, json.dumps(facts, allow_nan=False) + "\n")
    return path


def _save_model(metric: Metric, path: Path) -> Path:
    if path.suffix != SUFFIX:
        raise MetricError(f"{path}: the file name of a model must end in {SUFFIX}")
    kind = type(metric.model).__qualname__
    try:
        state = dict(metric.model.state_dict())
        arrays = {str(name): as_numpy(torch.as_tensor(value)) for name, value in state.items()}
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        remedy = "fit returns a torch.nn.Module, or an object whose state_dict() is of tensors"
        why = f"its {kind} has no state to save ({error_line(error)}); {remedy}"
        raise MetricError(f"metric {metric.name!r}: {why}") from error
    statistics = metric.options.keys() & metric.needs
    arrays |= {STATISTIC + name: as_numpy(metric.options[name]) for name in statistics}
    facts = {"class": kind} | {name: getattr(metric, name) for name in FACTS}
    write_tensors(path, arrays, facts | _training_facts(metric))
    return path


def _training_facts(metric: Metric) -> dict[str, Any]:
    """Return the description of the training data for the file; empty if unknown."""
    return {"trained_on": asdict(metric.trained_on)} if metric.trained_on else {}


def _trained_on(facts: Mapping[str, Any]) -> TrainedOn | None:
    return TrainedOn.from_dict(facts["trained_on"]) if "trained_on" in facts else None


def load_metric(path: str | Path, device: str = "cpu", *, metric: Any = None) -> Metric:
    """Return the metric that `save_metric` wrote to a file.

    Args:
        path: The file.
        device: Torch device.
        metric: Class of the model in a ``.safetensors`` file, which ``fit`` returned; or its path,
            ``"module:class"``; or an instance, into a copy of which the state is loaded.

    Raises:
        MetricError: If the file is not such a file, or holds a model of another class.
    """
    path = absolute_path(path)
    if path.suffix == SUFFIX:
        return _load_model(path, device, metric)
    try:
        facts = parse_json(read_limited(path, LARGEST_JSON))
        name, stored = str(facts["metric"]), dict(facts["options"])
        weights = {str(one): float(share) for one, share in dict(facts["weights"]).items()}
        options: dict[str, Any] = {
            option: Forest.from_dict(value) if isinstance(value, dict) else value
            for option, value in stored.items()
        }
        trained_on = _trained_on(facts)
        loaded = create_metric(name, device, name=facts.get("name", name), **options)
        if loaded.fit or loaded.family != "trained":
            raise MetricError(f"{name} is not trained by it")
    except OSError as error:
        raise MetricError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (LookupError, TypeError, ValueError, MetricError) as error:
        why = f"no {error}" if isinstance(error, KeyError) else str(error)
        why = "it is not text" if isinstance(error, UnicodeDecodeError) else why
        raise MetricError(f"{path}: not a saved trained metric ({why})") from None
    return replace(loaded, weights=weights, trained_on=trained_on)


def _load_model(path: Path, device: str, metric: Any) -> Metric:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            facts = parse_json((file.metadata() or {})["cfqa"].encode())
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        kind, attributes = str(facts["class"]), {name: facts[name] for name in FACTS}
        attributes["trained_on"] = _trained_on(facts)
    except OSError as error:
        raise MetricError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (SafetensorError, LookupError, TypeError, AttributeError, ValueError) as error:
        why = error_line(error)
        raise MetricError(f"{path}: not a saved trained metric ({why})") from None
    if metric is None:
        raise MetricError(f"{path}: holds the state of a {kind}; give it: metric={kind}")
    target = import_object(metric) if isinstance(metric, str) else metric
    model = instance_of(target, {}) if isinstance(target, type) else copy.deepcopy(target)
    options = {n.removeprefix(STATISTIC): t for n, t in tensors.items() if n.startswith(STATISTIC)}
    state = {name: t for name, t in tensors.items() if not name.startswith(STATISTIC)}
    try:
        model.load_state_dict(state)
    except Exception as error:  # whatever a user's class raises
        why = " ".join(f"{type(error).__name__}: {error}".split())
        message = f"{path}: holds the state of a {kind}, not of this {type(model).__qualname__}"
        raise MetricError(f"{message} ({why})") from error
    loaded = replace(trained_metric(model, model, device), **attributes, needs=tuple(options))
    return loaded.with_options(**options)
