"""What an evaluation found: its scores, and the tables that follow from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from cfqa_data.eval.metrics import Metric
from cfqa_data.eval.statistics import statistics
from cfqa_data.eval.tables import scores_table

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Evaluation", "conclude"]


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found; docs/statistics.md describes the tables, null where no figure is.

    Attributes:
        labels: The rows that were scored.
        scores: One row per compressed feature and metric; null where the metric failed.
        correlations: One row per task, codec and metric.
        across_codecs: One row per task and metric, all codecs together.
        across_tasks: One row per metric, all tasks together.
        per_level: One row per task, codec, level and metric, over the sources.
        comparisons: One row per pair of metrics, coefficient, and row of the first three tables.
        discrimination: One row per task and metric: can it tell versions of a source apart?
        metrics: The metrics, in the tables' order; those that scored nothing are not among them.
        target: Label column that the scores were correlated with.
        failures: What went wrong with each metric that failed somewhere, by name, and how many
            features have no score; with the file of scores, by path.
        notes: What else is to be known of a metric's scores, by name.
        dataset: What identifies the dataset, as a report and a file of scores are compared with;
            None if that is not known.
    """

    labels: pa.Table
    scores: pa.Table
    correlations: pa.Table
    across_codecs: pa.Table
    across_tasks: pa.Table
    per_level: pa.Table
    comparisons: pa.Table
    discrimination: pa.Table
    metrics: tuple[Metric, ...]
    target: str
    failures: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    dataset: str | None = None


def conclude(
    labels: pa.Table,
    metrics: Sequence[Metric],
    values: NDArray[Any],
    target: str,
    failures: Mapping[str, str],
    *,
    notes: Mapping[str, str] = MappingProxyType({}),
    dataset: str | None = None,
) -> Evaluation:
    """Make the tables of an evaluation from its scores.

    Args:
        labels: The rows that were scored.
        metrics: M metrics.
        values: (rows, M) float64 scores; NaN where there is none.
        target: Label column to follow.
        failures: See `Evaluation`.
        notes: See `Evaluation`.
        dataset: See `Evaluation`.
    """
    found = statistics(labels, metrics, values, target)
    return Evaluation(
        labels=labels,
        scores=scores_table(labels, metrics, values),
        correlations=found.correlations,
        across_codecs=found.across_codecs,
        across_tasks=found.across_tasks,
        per_level=found.per_level,
        comparisons=found.comparisons,
        discrimination=found.discrimination,
        metrics=tuple(metrics),
        target=target,
        failures=dict(failures),
        notes=dict(notes),
        dataset=dataset,
    )
