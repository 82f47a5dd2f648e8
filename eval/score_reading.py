"""Read evaluations back from files of scores, and take in scores that were made elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cfqa_data.errors import MetricError
from cfqa_data.eval.features.datasets import (
    KEYS,
    dataset_facts,
    dataset_identity,
    feature_count,
    opened,
)
from cfqa_data.eval.merging import BOUND, agreeing, merge
from cfqa_data.eval.metrics import Metric
from cfqa_data.eval.provenance import Provenance
from cfqa_data.eval.results import Evaluation, conclude, scores_table
from cfqa_data.eval.score_format import (
    KEPT,
    KEY,
    REMEDY,
    WRONG,
    elsewhere,
    metric_of,
    provenance_of,
)
from cfqa_data.eval.score_rows import key_columns, named, row_keys
from cfqa_data.format.facts import TaskFacts
from cfqa_data.format.limits import MAX_ROWS, parse_json, pointer
from cfqa_data.format.parquet import read_parquet, read_schema
from cfqa_data.paths import absolute_path

if TYPE_CHECKING:
    import pyarrow as pa

    from cfqa_data.eval.features.datasets import FeatureSource

__all__ = ["bind", "from_scores", "read_evaluation", "read_file", "read_scores"]


def read_evaluation(
    *files: FeatureSource | str | Path,
    dataset: FeatureSource | str | Path | None = None,
    target: str | None = None,
    follow_links: bool = False,
) -> Evaluation:
    """Return the evaluation whose scores one or several files hold.

    Its metrics know their facts but score nothing any more.

    Args:
        files: What ``evaluate(..., out="NAME.parquet")`` wrote.  The first may be the dataset
            instead: ``read_evaluation("cfqa", "mine.parquet", "theirs.parquet")``.
        dataset: The dataset that was scored, open, or its path.  Without, the labels are those
            that the files hold, and several files are of the same dataset.
        target: Label to follow, ``distortion`` or ``loss``; by default the one of the first file.
        follow_links: Read what links in the dataset's folder lead to, wherever that is (with a
            path only).

    Raises:
        MetricError: One is not a whole file of scores, or one of another dataset.
        FormatError: The folder is not a dataset.
    """
    paths: list[Any] = list(files)
    first = paths[0] if paths else None
    named = isinstance(first, str | Path) and Path(first).suffix == ".parquet"
    if dataset is None and paths and not named:
        dataset = paths.pop(0)
    if not paths:
        raise MetricError("name at least one score file, .parquet")
    source = None if dataset is None else opened(dataset, follow_links=follow_links)
    evaluation, *others = (read_file(path, source) for path in paths)
    for path, other in zip(paths[1:], others, strict=True):
        evaluation = merge(evaluation, other, Path(path).stem)
    return evaluation.following(evaluation.target if target is None else target)


def read_file(path: str | Path, dataset: FeatureSource | None = None) -> Evaluation:
    """Return the evaluation whose scores a file holds, of a dataset or with the file's own labels.

    Raises:
        MetricError: This is not a whole file of scores, or one of another dataset.
    """
    path = absolute_path(path)
    found = read_scores(path, 0 if dataset is None else dataset.labels.num_rows)
    if dataset is not None:
        return bind(found, dataset, str(path))
    if found.target not in found.labels.column_names:
        raise MetricError(
            f"{path}: written by an older version, without labels; name the dataset too"
        )
    return found


def bind(evaluation: Evaluation, dataset: FeatureSource, name: str) -> Evaluation:
    """Return an evaluation with the labels of a dataset, whose scores they are.

    Args:
        evaluation: As it was read.
        dataset: An open dataset.
        name: How to call the evaluation in an error.

    Raises:
        MetricError: They are of another dataset.
    """
    if evaluation.dataset != dataset_identity(dataset):
        if not set(BOUND) & set(evaluation.labels.column_names):
            raise MetricError(f"{name}: scores of another dataset; give that dataset")
        whole = feature_count(dataset)
        evaluation = agreeing(evaluation, dataset.labels, name, whole, complete=True)
    places = {key: place for place, key in enumerate(row_keys(dataset.labels))}
    keys = row_keys(evaluation.labels)
    for key in keys:
        if key not in places:
            raise MetricError(f"{name}: scores of {named(key)}, which is not in the dataset")
    labels = dataset.labels.take([places[key] for key in keys])
    return replace(evaluation, labels=labels, **dataset_facts(dataset))


def from_scores(
    scores: Any,
    dataset: FeatureSource | str | Path,
    *,
    lower_better: bool | Mapping[str, bool] | None = None,
    target: str = "distortion",
    provenance: Provenance | None = None,
    follow_links: bool = False,
) -> Evaluation:
    """Return the evaluation of scores that were made elsewhere.

    Args:
        scores: A table (of pyarrow or pandas), or the path of a ``.parquet`` or ``.csv`` file, with
            the columns ``task``, ``source_id``, ``codec``, ``level``, ``metric`` and ``value``: one
            row per compressed feature and metric, in any order.  What lacks a row, or has none, has
            no score.
        dataset: Dataset, open, or its path.
        lower_better: Whether a smaller score is a better reconstruction, of all metrics or by name.
        target: Label to follow, ``distortion`` or ``loss``.
        provenance: Where the scores come from, as far as that is known.
        follow_links: Read what links in the dataset's folder lead to (with a path only).

    Raises:
        MetricError: This is no such table; a feature is named that the dataset does not hold, or
            one is there twice; a score is infinite.
        FormatError: The folder is not a dataset.
    """
    where, table = _table(scores)
    source = opened(dataset, follow_links=follow_links)
    if target not in ("distortion", "loss") or target not in source.labels.column_names:
        raise MetricError(f"the labels have no column {target!r} to follow")
    places = {key: place for place, key in enumerate(row_keys(source.labels))}
    given = table["metric"].to_pylist()
    names = list(dict.fromkeys(given))
    values = np.full((len(places), len(names)), np.nan)
    filled = np.zeros(values.shape, dtype=bool)
    columns = {name: column for column, name in enumerate(names)}
    for key, name, value in zip(row_keys(table), given, table["value"].to_numpy(), strict=True):
        if key not in places:
            raise MetricError(f"{where}: scores of {named(key)}, which is not in the dataset")
        at = places[key], columns[name]
        if filled[at]:
            raise MetricError(f"{where}: {name} of {named(key)} occurs twice")
        if np.isinf(value):
            raise MetricError(f"{where}: {name} of {named(key)} is {value}; leave it empty")
        filled[at], values[at] = True, value
    rows = np.flatnonzero(~np.isnan(values).all(axis=1))
    if not len(rows):
        raise MetricError(f"{where}: contains no scores")
    better = (
        lower_better if isinstance(lower_better, Mapping) else dict.fromkeys(names, lower_better)
    )
    metrics = [
        Metric(name, "custom", "", elsewhere, lower_better=better.get(name)) for name in names
    ]
    return conclude(
        source.labels.take(rows),
        metrics,
        values[rows],
        target,
        {},
        **dataset_facts(source),
        provenance=dict.fromkeys(names, provenance or Provenance()),
    )


def _table(scores: Any) -> tuple[str, pa.Table]:
    """Return how to call a table of scores, and the table, with the columns that there must be."""
    import pyarrow as pa

    where = "scores"
    kinds = dict.fromkeys((*KEYS, "metric"), pa.string()) | {"level": pa.int64()}
    kinds["value"] = pa.float64()
    try:
        if isinstance(scores, str | Path):
            path = absolute_path(scores)
            where = str(path)
            if path.suffix == ".csv":
                from pyarrow import csv

                options = csv.ConvertOptions(column_types=kinds)
                scores = csv.read_csv(path, convert_options=options)
            else:
                scores = read_parquet(path.read_bytes(), MAX_ROWS)
        elif not isinstance(scores, pa.Table):
            scores = pa.Table.from_pandas(scores, preserve_index=False)
        if lacking := [name for name in kinds if name not in scores.column_names]:
            raise MetricError(f"{where}: no column {lacking[0]!r}")
        table = key_columns(scores)
        for name in ("metric", "value"):
            table = table.append_column(name, scores[name].cast(kinds[name]))
        if empty := [name for name in kinds if name != "value" and table[name].null_count]:
            raise MetricError(f"{where}: the column {empty[0]!r} has empty cells")
    except OSError as error:
        raise MetricError(f"{where}: cannot be read: {error.strerror or error}") from None
    except (TypeError, ValueError, AttributeError, pa.ArrowException) as error:
        line = str(error).splitlines()[0]
        raise MetricError(f"{where}: not a score file, .parquet or .csv: {line}") from None
    return where, table


def read_scores(path: Path, features: int = 0) -> Evaluation:
    """Return the evaluation whose scores a Parquet file holds.

    Its metrics know their facts but score nothing any more.  Of a file of an earlier version, the
    labels are those that name the rows only.

    Args:
        path: The file.
        features: How many the dataset has, where that is known: a file may hold scores of so
            many, and in any case as many as a table may have of which nothing is known.

    Raises:
        MetricError: This is not a whole file of scores.
    """
    import pyarrow as pa

    if not path.is_file():
        raise MetricError(f"{path}: no such file; {REMEDY}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MetricError(f"{path}: cannot be read: {error.strerror or error}") from None
    if kind := pointer(data):
        raise MetricError(f"{path}: {kind}")
    try:
        schema, _ = read_schema(data)
        facts = {"failures": {}, "notes": {}, "tasks": {}, "dataset_name": ""} | parse_json(
            (schema.metadata or {})[KEY]
        )
        metrics = tuple(map(metric_of, facts["metrics"]))
        rows, columns = int(facts["rows"]), [*KEYS, "metric", "value"]
        known: dict[str, Any] = {
            "notes": dict(facts["notes"]),
            "dataset": facts["dataset"],
            "dataset_name": facts["dataset_name"],
            "dataset_features": facts.get("dataset_features"),
            "tasks": {
                name: TaskFacts.from_dict(task, name) for name, task in facts["tasks"].items()
            },
            "provenance": {metric.name: provenance_of(facts, metric.name) for metric in metrics},
        }
        texts = [facts["target"], facts["dataset_name"], *facts["failures"].values()]
        texts += [*known["notes"].values(), *filter(None, [facts["dataset"]])]
        if (
            schema.names[: len(columns)] != columns
            or not set(schema.names[len(columns) :]) <= set(KEPT)
            or schema.field("value").type != pa.float64()
            or len({metric.name for metric in metrics}) != len(metrics)
            or not all(isinstance(text, str) for text in texts)
            or not isinstance(known["dataset_features"], int | None)
        ):
            raise ValueError
        table = read_parquet(data, max(MAX_ROWS, features * len(metrics)))
        if any(table[name].null_count for name in columns[:-1]):
            raise ValueError
    except (*WRONG, pa.ArrowException):
        raise MetricError(f"{path}: not a finished score file; {REMEDY}") from None
    if table.num_rows == 0 or not metrics:
        raise MetricError(f"{path}: contains no scores")
    if table.num_rows != rows or rows % len(metrics):
        raise MetricError(f"{path}: holds {table.num_rows} scores of {rows}; score again")
    labels = table.drop_columns(["metric", "value"]).take(np.arange(0, rows, len(metrics)))
    values = table["value"].to_numpy().reshape(-1, len(metrics))
    if not scores_table(labels, metrics, values).equals(table.select(columns)):
        raise MetricError(f"{path}: the scores are not in the order in which they were written")
    return conclude(labels, metrics, values, facts["target"], dict(facts["failures"]), **known)
