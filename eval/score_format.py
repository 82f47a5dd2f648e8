"""Write score files: one row per compressed feature and metric.

The columns `KEYS` and ``metric`` identify a score and ``value`` contains it (null if missing). A
Parquet file also has the label columns `KEPT`, and JSON metadata in the key ``cfqa``: the dataset,
facts of its tasks and of each metric, provenance of the scores, target, failures and notes. The
tables of statistics can be computed from that file alone. A CSV file has the scores only.

Files of earlier versions, without labels and provenance, can be read too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cfqa_data.errors import CfqaError, MetricError
from cfqa_data.eval.fingerprint import COVERS
from cfqa_data.eval.metrics import Metric
from cfqa_data.eval.provenance import Provenance
from cfqa_data.format.storage import atomic_path, write_table

if TYPE_CHECKING:
    from torch import Tensor

    from cfqa_data.eval.results import Evaluation

__all__ = [
    "INVALID_FILE_ERRORS",
    "KEPT",
    "KEY",
    "REMEDY",
    "elsewhere",
    "metric_of",
    "provenance_of",
    "write_scores",
]

KEY = b"cfqa"
"""Key of the JSON facts in the metadata of a file."""

KEPT = ("fold", "group", "bpfp", "score", "distortion", "loss", "mse")
"""Columns of the labels that a file contains, if they exist."""

FACTS = (
    *("name", "family", "formula", "lower_better", "score_range"),
    *("identity", "invariances", "citation", "cost"),
)
"""Facts of a metric that a file contains."""

INVALID_FILE_ERRORS = (
    *(OSError, LookupError, TypeError, AttributeError, ValueError),
    *(OverflowError, CfqaError),
)
"""Errors that reading a file of other content may raise, in addition to those of Arrow."""

REMEDY = "name the .parquet file that `cfqa eval DIR --out FILE` wrote"


def write_scores(
    evaluation: Evaluation, path: Path, check: Callable[[], None] | None = None
) -> None:
    """Write an evaluation's scores to a file, ``.parquet`` or ``.csv``.

    Args:
        evaluation: The evaluation.
        path: File to write.
        check: Called before the file is moved to its path. If it raises, an existing file stays.

    Raises:
        OSError: If the file cannot be written.
    """
    table = evaluation.scores
    if path.suffix == ".csv":
        from pyarrow import csv

        with atomic_path(path) as partial:
            with partial.open("wb") as file:
                csv.write_csv(table, file)
            if check:
                check()
        return
    metrics = (*evaluation.metrics, *evaluation.without)
    kept = [name for name in KEPT if name in evaluation.labels.column_names]
    rows = np.repeat(np.arange(evaluation.labels.num_rows), len(metrics))
    for name, column in zip(kept, evaluation.labels.select(kept).take(rows).columns, strict=True):
        table = table.append_column(name, column)
    known = evaluation.provenance
    facts = {
        "dataset": evaluation.dataset,
        "dataset_name": evaluation.dataset_name,
        "dataset_features": evaluation.dataset_features,
        "tasks": {name: task.to_dict() for name, task in evaluation.tasks.items()},
        "target": evaluation.target,
        "failures": evaluation.failures,
        "notes": evaluation.notes,
        "rows": table.num_rows,
        "metrics": [_metric_facts(metric) for metric in metrics],
        "provenance": {m.name: known.get(m.name, Provenance()).to_dict() for m in metrics},
        "covers": COVERS,
    }
    text = json.dumps(facts, sort_keys=True, allow_nan=False)
    write_table(path, table.replace_schema_metadata({KEY: text}), check)


def elsewhere(*features: Any, **options: Any) -> Tensor:
    """Raise: the function of a metric whose scores were read from a file."""
    raise MetricError("only the scores of this metric were read: it cannot compute new ones")


def _metric_facts(metric: Metric) -> dict[str, Any]:
    """Return the facts of a metric as JSON types.

    Infinite ends of its range become None, and an identity that is not finite becomes text.
    """
    identity = None if metric.identity is None else float(metric.identity)
    left_out = {} if metric.left_out is None else {"left_out": metric.left_out}
    return (
        {name: getattr(metric, name) for name in FACTS}
        | left_out
        | {
            "score_range": [end if math.isfinite(end) else None for end in metric.score_range],
            "identity": identity if identity is None or math.isfinite(identity) else repr(identity),
            "invariances": sorted(metric.invariances),
        }
    )


def metric_of(facts: dict[str, Any]) -> Metric:
    """Return a metric with the facts in a file; it cannot compute new scores.

    Raises:
        TypeError, ValueError, LookupError, MetricError: If they are not the facts of a metric.
    """
    if set(facts) - {"left_out"} != set(FACTS):
        raise TypeError("not the metadata of a metric")
    for name in ("formula", "citation", *({"left_out"} & set(facts))):
        if not isinstance(facts[name], str):
            raise TypeError(f"{name} is not text")
    (low, high), identity = facts["score_range"], facts["identity"]
    changed = {
        "identity": None if identity is None else float(identity),
        "score_range": (-math.inf if low is None else low, math.inf if high is None else high),
        "invariances": frozenset(facts["invariances"]),
    }
    return Metric(**facts | changed, function=elsewhere)


def provenance_of(facts: Mapping[str, Any], name: str) -> Provenance:
    """Return the provenance of a metric's scores that the facts of a file contain."""
    if "provenance" in facts:
        return Provenance.from_dict(facts["provenance"].get(name, {}))
    settings = facts.get("settings", {})
    known = {key: settings.get(key) for key in ("device", "precision", "arrays")}
    return Provenance.from_dict({**known, "fingerprint": facts.get("code", {}).get(name)})
