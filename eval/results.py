"""The result of an evaluation, and reading it back from the file of scores that it wrote.

The metadata of a finished file of scores (``.parquet``) identifies the dataset, the facts of each
metric, the target label, the metrics that failed, and the fingerprints of the metrics (see
`cfqa_data.eval.fingerprint`).  The tables of statistics can be computed again from the file alone,
without the features and the metrics.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cfqa_data.console.summary import Described, Summary
from cfqa_data.console.text import counted
from cfqa_data.errors import MetricError
from cfqa_data.eval.features.datasets import KEYS, dataset_identity, opened, task_facts
from cfqa_data.eval.metrics import Metric
from cfqa_data.eval.provenance import Provenance
from cfqa_data.eval.statistics import DRAWS, Statistics, statistics
from cfqa_data.format.limits import MOST_ROWS, parse_json, pointer
from cfqa_data.format.parquet import read_parquet, read_schema
from cfqa_data.paths import absolute_path

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from cfqa_data.eval.comparison import Comparison
    from cfqa_data.eval.features.datasets import FeatureSource
    from cfqa_data.format.facts import TaskFacts

__all__ = ["Evaluation", "conclude", "read_evaluation", "scores_table", "with_facts"]

KEY = b"cfqa"
"""Of the facts, JSON, in a file's metadata."""

WRONG = (OSError, LookupError, TypeError, AttributeError, ValueError, OverflowError, MetricError)
"""What reading a file that is something else may raise, beside errors of Arrow."""

FACTS = (
    *("name", "family", "formula", "lower_better", "score_range"),
    *("identity", "invariances", "citation", "cost"),
)
"""Of a metric, by name."""


WITH_COMPARISONS = ("comparisons", "correlations", "across_codecs", "across_tasks", "left_out")
"""Tables whose cells are compared: what compares them has made them."""


class _Table:
    """A table of `Statistics`, which is made when it is first asked for."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, evaluation: Evaluation, owner: type) -> pa.Table:
        tables, name = evaluation._tables, self._name
        if name not in tables:
            several = WITH_COMPARISONS if name == "comparisons" else (name,)
            made = evaluation.statistics(tables=several)
            tables.update((each, getattr(made, each)) for each in several)
        return tables[name]


@dataclass(frozen=True, kw_only=True, repr=False)
class Evaluation(Described):
    """What `evaluate` found: scores, and the tables of `Statistics`, each made when asked for.

    Attributes:
        labels: The rows that were scored.
        scores: One row per compressed feature and metric; null where the metric failed, or is not
            defined.
        metrics: The metrics, in the tables' order; those that scored nothing are not among them.
        without: The trained ones of them in their trainings without a codec each, whose scores
            follow those of the others.
        errors: The first error of each metric that failed somewhere; its ``__cause__`` is what the
            metric raised, with the traceback. None of a file.
        fitted: The models of each metric that was trained in this run, by task and the fold whose
            sources they score. None of a file.
        target: Label column that the scores were correlated with.
        failures: What went wrong with each metric that failed somewhere, by name, and how many
            features have no score; with the file of scores, by path.
        notes: What else is to be known of a metric's scores, by name.
        dataset: What identifies the dataset, as a report and a file of scores are compared with;
            None if that is not known.
        tasks: The facts of the dataset's tasks, by name.
        provenance: Where the scores of each metric come from, by its name.
    """

    labels: pa.Table
    scores: pa.Table
    metrics: tuple[Metric, ...]
    target: str
    failures: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    dataset: str | None = None
    tasks: Mapping[str, TaskFacts] = field(default_factory=dict)
    without: tuple[Metric, ...] = ()
    provenance: Mapping[str, Provenance] = field(default_factory=dict)
    errors: Mapping[str, MetricError] = field(default_factory=dict, repr=False, compare=False)
    fitted: Mapping[str, Mapping[tuple[str, int], Metric]] = field(
        default_factory=dict, repr=False, compare=False
    )
    _tables: dict[str, pa.Table] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    correlations = _Table()
    across_codecs = _Table()
    across_tasks = _Table()
    per_level = _Table()
    comparisons = _Table()
    discrimination = _Table()
    left_out = _Table()

    @property
    def values(self) -> NDArray[np.float64]:
        """The scores, (rows, M), NaN where there is none, of ``metrics`` and then ``without``."""
        values = self.scores["value"].to_numpy()
        return np.asarray(values.reshape(self.labels.num_rows, -1), dtype=np.float64)

    def statistics(self, **how: Any) -> Statistics:
        """Return tables of statistics.

        Args:
            how: ``draws``, ``seed`` and ``tables`` of `cfqa_data.eval.statistics.statistics`.
        """
        metrics = (*self.metrics, *self.without)
        return statistics(self.labels, metrics, self.values, self.target, tasks=self.tasks, **how)

    def _summary(self, rows: bool) -> Summary:
        metrics = counted(len(self.metrics), "metrics")
        facts = {
            "features": self.labels.num_rows,
            "target": self.target,
            "failures": len(self.failures) or "",
        }
        if not rows:
            return Summary(f"Evaluation of {metrics}", facts)
        tasks = list(dict.fromkeys(self.labels["task"].to_pylist()))
        figures: dict[str, dict[str, Any]] = {metric.name: {} for metric in self.metrics}
        for row in self.across_codecs.to_pylist() + self.across_tasks.to_pylist():
            figures[row["metric"]][row.get("task", "all")] = row["srocc"]
        heads = ["SROCC per source", *(["all"] if len(tasks) > 1 else []), *tasks]
        cells = [
            (name, *("-" if of.get(task) is None else f"{of[task]:.3f}" for task in heads[1:]))
            for name, of in figures.items()
        ]
        return Summary(f"Evaluation of {metrics}", facts, [heads, *cells])

    def compare(
        self,
        metrics: str | Iterable[str] | None = None,
        against: str = "cosine",
        *,
        draws: int = DRAWS,
        seed: int = 0,
    ) -> Comparison:
        """Compare one or several metrics with another: is it better, by how much, and surely?

        Args:
            metrics: Names; by default all others whose direction is declared.
            against: The metric to compare with.
            draws: Resamples of the sources, for intervals and p.
            seed: Of the resamples.

        Raises:
            MetricError: A metric was not scored, or its direction is not declared.
        """
        from cfqa_data.eval.comparison import compare_metrics

        return compare_metrics(self, metrics, against, draws=draws, seed=seed)


def conclude(
    labels: pa.Table,
    metrics: Sequence[Metric],
    values: NDArray[Any],
    target: str,
    failures: Mapping[str, str],
    **known: Any,
) -> Evaluation:
    """Make an evaluation of its (rows, M) scores.

    Args:
        labels: See `Evaluation`.
        metrics: M metrics.
        values: The scores; NaN where there is none.
        target: See `Evaluation`.
        failures: See `Evaluation`.
        known: ``notes``, ``dataset``, ``tasks`` and ``provenance`` of an `Evaluation`.
    """
    return Evaluation(
        labels=labels,
        scores=scores_table(labels, metrics, values),
        metrics=tuple(metric for metric in metrics if metric.left_out is None),
        without=tuple(metric for metric in metrics if metric.left_out is not None),
        target=target,
        failures=dict(failures),
        **known,
    )


def key_columns(labels: pa.Table) -> pa.Table:
    """Return what names each row of labels, in types that a file of scores is read back with.

    Args:
        labels: Anybody's: texts may be ``large_string``, ``string_view`` or a dictionary.
    """
    import pyarrow as pa

    keys = labels.select(KEYS)
    kinds = [getattr(kind, "value_type", kind) for kind in keys.schema.types]
    texts = [pa.types.is_large_string(kind) or pa.types.is_string_view(kind) for kind in kinds]
    kinds = [pa.string() if text else kind for kind, text in zip(kinds, texts, strict=True)]
    return keys.cast(pa.schema(list(zip(KEYS, kinds, strict=True))))


def row_keys(labels: pa.Table) -> list[tuple[Any, ...]]:
    """Return what names each row of labels: the values of `KEYS`."""
    return list(zip(*(labels[name].to_pylist() for name in KEYS), strict=True))


def scores_table(labels: pa.Table, metrics: Sequence[Metric], values: NDArray[Any]) -> pa.Table:
    """Lay out scores in long form, the metrics of one feature next to each other.

    Args:
        labels: One row per compressed feature.
        metrics: M metrics.
        values: (rows, M) float64 scores; NaN, where there is none, becomes null.
    """
    import pyarrow as pa

    rows = key_columns(labels).combine_chunks()
    names = pa.array([metric.name for metric in metrics], pa.string())
    repeated = rows.take(pa.array(np.repeat(np.arange(labels.num_rows), len(metrics))))
    return repeated.append_column(
        "metric", names.take(pa.array(np.tile(np.arange(len(metrics)), labels.num_rows)))
    ).append_column("value", pa.array(values.ravel(), pa.float64(), from_pandas=True))


def with_facts(scores: pa.Table, metrics: Sequence[Metric], **facts: Any) -> pa.Table:
    """Return a table of scores with the metadata that `read_evaluation` needs.

    Args:
        scores: As `scores_table` lays them out.
        metrics: In the order of the scores.
        facts: ``dataset``, ``target``, ``failures``, ``notes`` and ``provenance`` of an
            `Evaluation`, and what the scores were made with, as `cfqa_data.eval.score_file`
            compares it.
    """
    provenance = facts.get("provenance", {})
    facts["provenance"] = {m.name: provenance.get(m.name, Provenance()).to_dict() for m in metrics}
    facts |= {"rows": scores.num_rows, "metrics": [_metric_facts(metric) for metric in metrics]}
    text = json.dumps(facts, sort_keys=True, allow_nan=False)
    return scores.replace_schema_metadata({KEY: text})


def read_facts(data: bytes) -> tuple[pa.Schema, dict[str, Any]]:
    """Return the columns of a file of scores, and its metadata.

    Raises:
        Exception: One of `WRONG`, or of Arrow's: it is no such file.
    """
    schema, _ = read_schema(data)
    return schema, parse_json((schema.metadata or {})[KEY])


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
    places = {key: place for place, key in enumerate(row_keys(dataset.labels))}
    scored = row_keys(keys)
    for key in scored:
        if key not in places:
            named = "{} {}, {}, level {}".format(*key)
            raise MetricError(f"{path}: scores of {named}, which the dataset does not hold")
    labels = dataset.labels.take([places[key] for key in scored])
    known = {"notes": facts["notes"], "dataset": facts["dataset"], "tasks": task_facts(dataset)}
    known["provenance"] = facts["provenance"]
    return conclude(labels, metrics, values, target, facts["failures"], **known)


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


def _metric(facts: dict[str, Any]) -> Metric:
    if set(facts) - {"left_out"} != set(FACTS):
        raise TypeError("not the facts of a metric")
    for name in ("formula", "citation", *({"left_out"} & set(facts))):
        if not isinstance(facts[name], str):
            raise TypeError(f"{name} is no text")
    (low, high), identity = facts["score_range"], facts["identity"]
    changed = {
        "identity": None if identity is None else float(identity),
        "score_range": (-math.inf if low is None else low, math.inf if high is None else high),
        "invariances": frozenset(facts["invariances"]),
    }
    return Metric(**facts | changed, function=_gone)


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
        schema, facts = read_facts(data)
        facts = {"failures": {}, "notes": {}} | facts
        metrics = tuple(_metric(entry) for entry in facts["metrics"])
        rows, facts["target"] = int(facts["rows"]), str(facts["target"])
        told = facts.get("provenance", {})
        facts["provenance"] = {
            metric.name: Provenance.from_dict(told.get(metric.name, {})) for metric in metrics
        }
        texts = [facts["dataset"], *facts["failures"].values(), *facts["notes"].values()]
        if (
            schema.names != [*KEYS, "metric", "value"]
            or schema.field("value").type != pa.float64()
            or len({metric.name for metric in metrics}) != len(metrics)
            or not all(isinstance(text, str) for text in texts)
        ):
            raise ValueError
        is_other = facts["dataset"] != dataset_identity(dataset)
        if not is_other:
            most = dataset.labels.num_rows * len(metrics) if metrics else MOST_ROWS
            table = read_parquet(data, most)
            if any(table[name].null_count for name in (*KEYS, "metric")):
                raise ValueError
    except (*WRONG, pa.ArrowException):
        raise MetricError(f"{path}: not a finished file of scores; {remedy}") from None
    if is_other:
        raise MetricError(f"{path}: these are the scores of another dataset; give theirs")
    if table.num_rows == 0 or not metrics:
        raise MetricError(f"{path}: there are no scores in it")
    if table.num_rows != rows or rows % len(metrics):
        raise MetricError(f"{path}: holds {table.num_rows} scores of {rows}; score again")
    return table, facts, metrics
