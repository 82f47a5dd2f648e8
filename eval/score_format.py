"""Files of scores: one row per compressed feature and metric, with what the scores are of.

Columns of the table, Parquet or CSV: those of `KEYS` and ``metric`` name a score, ``value`` is it
(null where there is none); a Parquet file also has what labels it was correlated with, `KEPT`,
and in its metadata, key ``cfqa``, as JSON: the dataset, the facts of its tasks and of each metric,
where each metric's scores come from, the label that was followed, failures and notes.  The tables
of statistics can be computed again from that file alone.

Files of earlier versions, which have neither labels nor provenance, are read too.
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
    "KEPT",
    "KEY",
    "REMEDY",
    "WRONG",
    "elsewhere",
    "metric_of",
    "provenance_of",
    "write_scores",
]

KEY = b"cfqa"
"""Of the facts, JSON, in a file's metadata."""

KEPT = ("fold", "group", "bpfp", "score", "distortion", "loss", "mse")
"""Columns of labels that a file keeps, where there are any."""

FACTS = (
    *("name", "family", "formula", "lower_better", "score_range"),
    *("identity", "invariances", "citation", "cost"),
)
"""Of a metric, by name."""

WRONG = (OSError, LookupError, TypeError, AttributeError, ValueError, OverflowError, CfqaError)
"""What reading a file that is something else may raise, beside errors of Arrow and of facts."""

REMEDY = "name the .parquet file that `cfqa eval DIR --out FILE` wrote"


def write_scores(
    evaluation: Evaluation, path: Path, check: Callable[[], None] | None = None
) -> None:
    """Write an evaluation's scores to a file, ``.parquet`` or ``.csv``.

    Args:
        evaluation: Whose scores to write; a CSV file has nothing else.
        path: The file.
        check: Called before the file takes its place; may raise to leave alone what is there.

    Raises:
        OSError: If it cannot be written.
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
    """Stand for the function of a metric whose scores were made elsewhere."""
    raise MetricError("only the scores of this metric were read: it cannot compute new ones")


def _metric_facts(metric: Metric) -> dict[str, Any]:
    """Return a metric's facts, JSON-safe.

    An end of its range that is infinite is None; an identity that is not finite is its name.
    """
    identity = None if metric.identity is None else float(metric.identity)
    again = {} if metric.left_out is None else {"left_out": metric.left_out}
    return (
        {name: getattr(metric, name) for name in FACTS}
        | again
        | {
            "score_range": [end if math.isfinite(end) else None for end in metric.score_range],
            "identity": identity if identity is None or math.isfinite(identity) else repr(identity),
            "invariances": sorted(metric.invariances),
        }
    )


def metric_of(facts: dict[str, Any]) -> Metric:
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
    """Return where a metric's scores come from, as far as the facts of a file tell."""
    if "provenance" in facts:
        return Provenance.from_dict(facts["provenance"].get(name, {}))
    found = {key: facts.get("settings", {}).get(key) for key in ("device", "precision", "arrays")}
    return Provenance.from_dict({**found, "fingerprint": facts.get("code", {}).get(name)})
