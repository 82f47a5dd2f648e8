"""An evaluation from the file of scores that one wrote, without the features and the metrics.

A finished file of scores (``.parquet``) says in its metadata what it holds: the dataset it is of,
the facts of each metric, the label that was followed, which metrics failed, and what decided the
scores (see `cfqa_data.eval.fingerprint`).  Reading it back and correlating it anew gives the tables
that the evaluation had.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from cfqa_data.errors import MetricError
from cfqa_data.eval.metrics import Metric
from cfqa_data.eval.opening import opened
from cfqa_data.eval.results import Evaluation, conclude
from cfqa_data.eval.tables import scores_table
from cfqa_data.limits import MOST_ROWS, parse_json
from cfqa_data.parquet import read_parquet, read_schema
from cfqa_data.paths import absolute_path
from cfqa_data.pointers import pointer

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from cfqa_data.eval.reading import FeatureSource

__all__ = [
    "KEY",
    "arrays_digest",
    "dataset_identity",
    "read_evaluation",
    "table_digest",
    "with_facts",
]

KEY = b"cfqa"
"""Of the facts, JSON, in a file's metadata."""

WRONG = (OSError, LookupError, TypeError, AttributeError, ValueError, OverflowError, MetricError)
"""What reading a file that is something else may raise."""

COLUMNS = ("task", "source_id", "codec", "level")

FACTS = {
    *("name", "family", "formula", "lower_better", "score_range"),
    *("identity", "invariances", "citation", "cost"),
}
"""Of a metric, by name."""


def dataset_identity(dataset: FeatureSource) -> str:
    """Return what tells a dataset from others: the hash of its manifest, or else of its labels.

    Only what `cfqa_data.load` opened is known to hold what its manifest says. Anything else, though
    it borrow a manifest, may give other arrays: it is told by its labels.
    """
    from cfqa_data.dataset import Dataset
    from cfqa_data.layout import Layout
    from cfqa_data.manifest import hash_file, manifest_text

    if not isinstance(dataset, Dataset):
        return table_digest(dataset.labels)
    if dataset.path is not None:
        return hash_file(Layout(dataset.path).manifest)
    # Of a repo on the Hub: as it is written.
    return hashlib.sha256(manifest_text(dataset.manifest).encode()).hexdigest()


def arrays_digest(dataset: FeatureSource) -> str:
    """Return a hash of some features of a dataset whose labels alone would tell it from others."""
    from cfqa_data.dataset import Dataset

    if isinstance(dataset, Dataset):
        return ""
    found = hashlib.sha256()
    columns = [dataset.labels[name].to_pylist() for name in COLUMNS[1:]]
    for row in sorted({0, len(columns[0]) // 2, len(columns[0]) - 1}):
        source, codec, level = (column[row] for column in columns)
        for array in (dataset.original(source), dataset.compressed(source, codec, int(level))):
            found.update(np.asarray(array).tobytes())
    return found.hexdigest()


def table_digest(table: pa.Table) -> str:
    """Return a hash of what a table holds, however it is cut into chunks."""
    return hashlib.sha256(repr(table.to_pydict()).encode()).hexdigest()


def with_facts(
    scores: pa.Table,
    dataset: str,
    target: str,
    metrics: Sequence[Metric],
    failures: Mapping[str, str],
    notes: Mapping[str, str] = MappingProxyType({}),
    decided: Mapping[str, Any] = MappingProxyType({}),
) -> pa.Table:
    """Return a table of scores that says of itself what `read_evaluation` needs to know.

    Args:
        scores: As `cfqa_data.eval.tables.scores_table` lays them out.
        dataset: Its `dataset_identity`.
        target: Label column that was followed.
        metrics: In the order of the scores.
        failures: What went wrong, by metric.
        notes: What else is to be known, by metric.
        decided: What the scores were made with, as `cfqa_data.eval.score_file` compares it.
    """
    facts = {
        **decided,
        "dataset": dataset,
        "target": target,
        "rows": scores.num_rows,
        "metrics": [_metric_facts(metric) for metric in metrics],
        "failures": dict(failures),
        "notes": dict(notes),
    }
    text = json.dumps(facts, sort_keys=True, allow_nan=False)
    return scores.replace_schema_metadata({KEY: text})


def read_evaluation(
    dataset: FeatureSource | str | Path,
    path: str | Path,
    target: str | None = None,
    *,
    follow_links: bool = False,
) -> Evaluation:
    """Return the evaluation whose scores a file holds.

    Its metrics know their facts but score nothing any more.

    Args:
        dataset: The dataset that was scored, open, or its path.
        path: What ``evaluate(..., out="NAME.parquet")`` wrote.
        target: Label to follow, ``distortion`` or ``loss``; by default the one of then.
        follow_links: Read what links in the dataset's folder lead to, wherever that is (with a
            path only).

    Raises:
        MetricError: This is not a whole file of scores, or one of another dataset.
        FormatError: The folder is not a dataset.
    """
    dataset = opened(dataset, follow_links=follow_links)
    table, facts, metrics = _read(absolute_path(path), dataset)
    target = facts["target"] if target is None else target
    if target not in ("distortion", "loss") or target not in dataset.labels.column_names:
        raise MetricError(f"the labels have no column {target!r} to follow")
    keys = table.take(np.arange(0, table.num_rows, len(metrics)))
    values = table["value"].to_numpy().reshape(-1, len(metrics))
    if not scores_table(keys, metrics, values).equals(table):
        raise MetricError(f"{path}: the scores are not in the order in which they were written")
    places = {
        tuple(r.values()): n for n, r in enumerate(dataset.labels.select(COLUMNS).to_pylist())
    }
    wanted = [tuple(row.values()) for row in keys.select(COLUMNS).to_pylist()]
    for key in wanted:
        if key not in places:
            raise MetricError(f"{path}: scores of {_named(key)}, which the dataset does not hold")
    labels = dataset.labels.take([places[key] for key in wanted])
    return conclude(
        labels,
        metrics,
        values,
        target,
        facts["failures"],
        notes=facts.get("notes", {}),
        dataset=facts["dataset"],
    )


def _metric_facts(metric: Metric) -> dict[str, Any]:
    """Return a metric's facts, JSON-safe.

    An end of its range that is infinite is None; an identity that is not finite is its name.
    """
    identity = metric.identity
    if identity is not None:
        identity = float(identity)
    return {
        "name": metric.name,
        "family": metric.family,
        "formula": metric.formula,
        "lower_better": metric.lower_better,
        "score_range": [end if math.isfinite(end) else None for end in metric.score_range],
        "identity": identity if identity is None or math.isfinite(identity) else repr(identity),
        "invariances": sorted(metric.invariances),
        "citation": metric.citation,
        "cost": metric.cost,
    }


def _metric(facts: dict[str, Any]) -> Metric:
    if set(facts) != FACTS:
        raise TypeError("not the facts of a metric")
    low, high = facts["score_range"]
    for name in ("formula", "citation"):
        if not isinstance(facts[name], str):
            raise TypeError(f"{name} is no text")
    identity = facts["identity"]
    changed = {
        "identity": None if identity is None else float(identity),
        "score_range": (-math.inf if low is None else low, math.inf if high is None else high),
        "invariances": frozenset(facts["invariances"]),
        "function": _gone,
    }
    return Metric(**{**facts, **changed})


def _gone(*features: Any, **options: Any) -> Tensor:
    raise MetricError("of this metric only its scores were read: it cannot score anything")


def _read(
    path: Path, dataset: FeatureSource
) -> tuple[pa.Table, dict[str, Any], tuple[Metric, ...]]:
    """Return the scores, the facts and the metrics of a file.

    Args:
        path: The file.
        dataset: What they must be of.

    Raises:
        MetricError: It is not such a file, or one of another dataset.
    """
    import pyarrow as pa

    remedy = "name the .parquet file that `cfqa eval DIR --out FILE` wrote"
    if not path.is_file():
        raise MetricError(f"{path}: there is no such file; {remedy}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MetricError(f"{path}: cannot be read: {error.strerror or error}") from None
    if kind := pointer(data):
        raise MetricError(f"{path}: {kind}")
    try:
        schema, _ = read_schema(data)
        facts = parse_json((schema.metadata or {})[KEY])
        metrics = tuple(_metric(entry) for entry in facts["metrics"])
        names = [metric.name for metric in metrics]
        whole = (
            schema.names == [*COLUMNS, "metric", "value"]
            and schema.field("value").type == pa.float64()
            and len(set(names)) == len(names)
            and all(_texts(facts.get(name, {})) for name in ("failures", "notes"))
            and isinstance(facts["dataset"], str)
        )
        rows, target = int(facts["rows"]), str(facts["target"])
        if whole and facts["dataset"] != dataset_identity(dataset):
            raise _OtherDataset
        table = read_parquet(data, dataset.labels.num_rows * len(metrics) if metrics else MOST_ROWS)
    except _OtherDataset:
        told = "these are the scores of another dataset; give theirs"
        raise MetricError(f"{path}: {told}") from None
    except (*WRONG, pa.ArrowException):
        raise MetricError(f"{path}: not a finished file of scores; {remedy}") from None
    if not whole or any(table[name].null_count for name in (*COLUMNS, "metric")):
        raise MetricError(f"{path}: not a finished file of scores; {remedy}")
    if table.num_rows == 0 or not metrics:
        raise MetricError(f"{path}: there are no scores in it")
    if table.num_rows != rows or rows % len(metrics):
        raise MetricError(f"{path}: holds {table.num_rows} scores of {rows}; score again")
    return table, facts | {"target": target}, metrics


def _texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


class _OtherDataset(Exception):
    """The scores are of another dataset."""


def _named(key: tuple[Any, ...]) -> str:
    task, source_id, codec, level = key
    return f"{task} {source_id}, {codec}, level {level}"
