"""Read evaluations from score files, and make them from scores of other programs."""

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
from cfqa_data.eval.merging import COMPARED_LABELS, merge, select_agreeing
from cfqa_data.eval.metrics import Metric
from cfqa_data.eval.provenance import Provenance
from cfqa_data.eval.results import Evaluation, make_evaluation, scores_table
from cfqa_data.eval.score_format import (
    INVALID_FILE_ERRORS,
    KEPT,
    KEY,
    REMEDY,
    elsewhere,
    metric_of,
    provenance_of,
)
from cfqa_data.eval.score_rows import key_columns, row_keys, row_name
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
    """Read one or several score files as one evaluation.

    Its metrics have their facts but cannot compute new scores.

    Args:
        files: Parquet files that ``evaluate(..., out="NAME.parquet")`` wrote. The first may be the
            dataset instead: ``read_evaluation("cfqa", "mine.parquet", "theirs.parquet")``.
        dataset: The dataset that was scored, open or as a path. By default the labels are read
            from the files, which must be of one dataset.
        target: Label to correlate with, ``distortion`` or ``loss``; by default that of the first
            file.
        follow_links: Follow symbolic links in the dataset's folder, even out of it; only for a
            path.

    Raises:
        MetricError: If a file is not a complete score file, or is of another dataset.
        FormatError: If the folder is not a dataset.
    """
    paths: list[Any] = list(files)
    first = paths[0] if paths else None
    is_score_file = isinstance(first, str | Path) and Path(first).suffix == ".parquet"
    if dataset is None and paths and not is_score_file:
        dataset = paths.pop(0)
    if not paths:
        raise MetricError("name at least one score file, .parquet")
    source = None if dataset is None else opened(dataset, follow_links=follow_links)
    evaluation, *others = (read_file(path, source) for path in paths)
    for path, other in zip(paths[1:], others, strict=True):
        evaluation = merge(evaluation, other, Path(path).stem)
    return evaluation.following(evaluation.target if target is None else target)


def read_file(path: str | Path, dataset: FeatureSource | None = None) -> Evaluation:
    """Read a score file, with the labels of a dataset or else those in the file.

    Raises:
        MetricError: If the file is not a complete score file, or is of another dataset.
    """
    path = absolute_path(path)
    evaluation = read_scores(path, 0 if dataset is None else dataset.labels.num_rows)
    if dataset is not None:
        return bind(evaluation, dataset, str(path))
    if evaluation.target not in evaluation.labels.column_names:
        raise MetricError(
            f"{path}: written by an older version, without labels; name the dataset too"
        )
    return evaluation


def bind(evaluation: Evaluation, dataset: FeatureSource, name: str) -> Evaluation:
    """Replace the labels of an evaluation by those of the dataset that was scored.

    Args:
        evaluation: An evaluation that was read from a file.
        dataset: An open dataset.
        name: Name of the evaluation in error messages.

    Raises:
        MetricError: If the evaluation is of another dataset.
    """
    if evaluation.dataset != dataset_identity(dataset):
        if not set(COMPARED_LABELS) & set(evaluation.labels.column_names):
            raise MetricError(f"{name}: scores of another dataset; give that dataset")
        features = feature_count(dataset)
        evaluation = select_agreeing(evaluation, dataset.labels, name, features, complete=True)
    row_of_key = {key: row for row, key in enumerate(row_keys(dataset.labels))}
    keys = row_keys(evaluation.labels)
    for key in keys:
        if key not in row_of_key:
            raise MetricError(f"{name}: scores of {row_name(key)}, which is not in the dataset")
    labels = dataset.labels.take([row_of_key[key] for key in keys])
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
    """Make an evaluation from scores that another program computed.

    Args:
        scores: A table (of pyarrow or pandas), or the path of a ``.parquet`` or ``.csv`` file, with
            the columns ``task``, ``source_id``, ``codec``, ``level``, ``metric`` and ``value``: one
            row per compressed feature and metric, in any order. A score is missing if its row or
            its value is.
        dataset: The dataset that was scored, open or as a path.
        lower_better: Whether a lower score is a better reconstruction, for all metrics or by name;
            None if unknown.
        target: Label to correlate with, ``distortion`` or ``loss``.
        provenance: Origin of the scores, as far as it is known.
        follow_links: Follow symbolic links in the dataset's folder, even out of it; only for a
            path.

    Raises:
        MetricError: If the table lacks a column, a feature is not in the dataset or occurs twice, a
            score is infinite, or the labels have no such target.
        FormatError: If the folder is not a dataset.
    """
    where, table = _table(scores)
    source = opened(dataset, follow_links=follow_links)
    if target not in ("distortion", "loss") or target not in source.labels.column_names:
        raise MetricError(f"the labels have no column {target!r} to follow")
    row_of_key = {key: row for row, key in enumerate(row_keys(source.labels))}
    metric_column = table["metric"].to_pylist()
    names = list(dict.fromkeys(metric_column))
    values = np.full((len(row_of_key), len(names)), np.nan)
    filled = np.zeros(values.shape, dtype=bool)
    columns = {name: column for column, name in enumerate(names)}
    rows_of_table = zip(row_keys(table), metric_column, table["value"].to_numpy(), strict=True)
    for key, name, value in rows_of_table:
        if key not in row_of_key:
            raise MetricError(f"{where}: scores of {row_name(key)}, which is not in the dataset")
        cell = row_of_key[key], columns[name]
        if filled[cell]:
            raise MetricError(f"{where}: {name} of {row_name(key)} occurs twice")
        if np.isinf(value):
            raise MetricError(f"{where}: {name} of {row_name(key)} is {value}; leave it empty")
        filled[cell], values[cell] = True, value
    rows = np.flatnonzero(~np.isnan(values).all(axis=1))
    if not len(rows):
        raise MetricError(f"{where}: contains no scores")
    better = (
        lower_better if isinstance(lower_better, Mapping) else dict.fromkeys(names, lower_better)
    )
    metrics = [
        Metric(name, "custom", "", elsewhere, lower_better=better.get(name)) for name in names
    ]
    return make_evaluation(
        source.labels.take(rows),
        metrics,
        values[rows],
        target,
        {},
        **dataset_facts(source),
        provenance=dict.fromkeys(names, provenance or Provenance()),
    )


def _table(scores: Any) -> tuple[str, pa.Table]:
    """Return the name of a table of scores in messages, and the table with the required columns."""
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
        if missing := [name for name in kinds if name not in scores.column_names]:
            raise MetricError(f"{where}: no column {missing[0]!r}")
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
    """Read a Parquet file of scores.

    The metrics have their facts but cannot compute new scores. Files of earlier versions have no
    labels other than the columns that name a row.

    Args:
        path: The file.
        features: Number of compressed features of the dataset, if known. A file of more scores
            than these, and than the general limit `MAX_ROWS`, is refused.

    Raises:
        MetricError: If the file is not a complete score file.
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
        defaults: dict[str, Any] = {"failures": {}, "notes": {}, "tasks": {}, "dataset_name": ""}
        facts = defaults | parse_json((schema.metadata or {})[KEY])
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
    except (*INVALID_FILE_ERRORS, pa.ArrowException):
        raise MetricError(f"{path}: not a finished score file; {REMEDY}") from None
    if table.num_rows == 0 or not metrics:
        raise MetricError(f"{path}: contains no scores")
    if table.num_rows != rows or rows % len(metrics):
        raise MetricError(f"{path}: holds {table.num_rows} scores of {rows}; score again")
    labels = table.drop_columns(["metric", "value"]).take(np.arange(0, rows, len(metrics)))
    values = table["value"].to_numpy().reshape(-1, len(metrics))
    if not scores_table(labels, metrics, values).equals(table.select(columns)):
        raise MetricError(f"{path}: the scores are not in the order in which they were written")
    return make_evaluation(labels, metrics, values, facts["target"], facts["failures"], **known)
