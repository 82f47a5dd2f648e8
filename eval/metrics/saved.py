"""Write a trained metric to a JSON file, and read it again: no code is stored and none is run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from cfqa_data.errors import MetricError
from cfqa_data.eval.metrics.base import Metric
from cfqa_data.eval.metrics.forest import Forest
from cfqa_data.eval.metrics.registry import create_metric
from cfqa_data.format.limits import LARGEST_JSON, parse_json, read_limited
from cfqa_data.format.storage import write_text
from cfqa_data.paths import absolute_path

__all__ = ["load_metric", "save_metric"]


def save_metric(metric: Metric, path: str | Path) -> Path:
    """Write what training has found, and return the file's path.

    Args:
        metric: One of the package's own trained metrics, trained.
        path: File to write, ``.json``.

    Raises:
        MetricError: It is another metric, or not trained.
        OSError: The file cannot be written.
    """
    if metric.fit or metric.family != "trained":
        raise MetricError(
            f"metric {metric.name!r} has nothing to save: "
            + ("it is not trained yet" if metric.fit else "it is not one that is trained")
        )
    options = {
        name: value.to_dict() if isinstance(value, Forest) else list(value)
        for name, value in metric.options.items()
    }
    facts = {"metric": metric.name, "options": options, "weights": dict(metric.weights)}
    path = absolute_path(path)
    write_text(path, json.dumps(facts, allow_nan=False) + "\n")
    return path


def load_metric(path: str | Path, device: str = "cpu") -> Metric:
    """Return the metric that `save_metric` wrote to a file.

    Raises:
        MetricError: It is no such file.
    """
    path = absolute_path(path)
    try:
        facts = parse_json(read_limited(path, LARGEST_JSON))
        name, given = str(facts["metric"]), dict(facts["options"])
        weights = {str(one): float(share) for one, share in dict(facts["weights"]).items()}
        options: dict[str, Any] = {
            option: Forest.from_dict(value) if isinstance(value, dict) else value
            for option, value in given.items()
        }
        metric = create_metric(name, device, **options)
        if metric.fit or metric.family != "trained":
            raise MetricError(f"{name} is not trained by it")
    except OSError as error:
        raise MetricError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (LookupError, TypeError, ValueError, MetricError) as error:
        why = f"no {error}" if isinstance(error, KeyError) else error
        raise MetricError(f"{path}: not a trained metric that was saved ({why})") from None
    return replace(metric, weights=weights)
