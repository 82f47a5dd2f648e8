"""The result of an evaluation: scores, labels, and tables of statistics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cfqa_data.console.summary import Described, Summary
from cfqa_data.console.text import counted
from cfqa_data.errors import DiskError, MetricError
from cfqa_data.eval.metrics import Metric
from cfqa_data.eval.provenance import Provenance
from cfqa_data.eval.score_rows import key_columns
from cfqa_data.eval.statistics import DRAWS, Statistics, statistics
from cfqa_data.eval.statistics.cells import Cells, arrange
from cfqa_data.paths import absolute_path

if TYPE_CHECKING:
    import pyarrow as pa

    from cfqa_data.eval.comparison import Comparison
    from cfqa_data.eval.disagreements import Disagreements
    from cfqa_data.format.facts import TaskFacts

__all__ = ["Evaluation", "make_evaluation", "scores_table"]

WITH_COMPARISONS = ("comparisons", "correlations", "across_codecs", "across_tasks", "left_out")
"""Tables that the computation of ``comparisons`` yields at no further cost."""


class _Table:
    """A table of `Statistics` that is computed on first access."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, evaluation: Evaluation, owner: type) -> pa.Table:
        name = self._name
        evaluation.make_tables(*(WITH_COMPARISONS if name == "comparisons" else (name,)))
        return evaluation._tables[name]


@dataclass(frozen=True, kw_only=True, repr=False)
class Evaluation(Described):
    """The result of `evaluate`: scores, and the tables of `Statistics`, computed on first access.

    Attributes:
        labels: The label rows that were scored.
        scores: One row per compressed feature and metric; null where the metric failed or is
            undefined.
        metrics: The metrics in the order of the tables, without those that have no score at all.
        without: The trained metrics as trained without one codec each (``leave_out``). Their
            scores follow those of ``metrics``.
        errors: The first error of each metric that failed for some feature, by name. Its
            ``__cause__`` is the exception of the metric, with its traceback. Empty if the scores
            were read from a file.
        fitted: The models of each metric that this run trained, by task and by the fold that they
            score. Empty if the scores were read from a file.
        target: Label column that the scores are correlated with.
        failures: A message for each metric that failed for some feature, by name, with the number
            of features without a score; and one for the score file, by path, if it could not be
            written.
        notes: Further remarks on the scores of a metric, by name.
        dataset: Hash that identifies the dataset; None if unknown.
        dataset_name: Name of the dataset; empty if unknown.
        dataset_features: Number of compressed features of the dataset, of which ``labels`` may be
            a part; None if unknown.
        tasks: Facts of the dataset's tasks, by name.
        provenance: Origin of the scores of each metric, by name.
    """

    labels: pa.Table
    scores: pa.Table
    metrics: tuple[Metric, ...]
    target: str
    failures: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    dataset: str | None = None
    dataset_name: str = ""
    dataset_features: int | None = None
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
    _cells: dict[tuple[int, int], Cells] = field(
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
        """Scores of ``metrics``, then of ``without``, (rows, M) float64; NaN where missing."""
        shape = self.labels.num_rows, len(self.metrics) + len(self.without)
        return np.asarray(self.scores["value"].to_numpy().reshape(shape), dtype=np.float64)

    def columns(self) -> dict[str, NDArray[np.float64]]:
        """Return the scores of each metric by its name, (rows,)."""
        names = [metric.name for metric in (*self.metrics, *self.without)]
        return dict(zip(names, self.values.T, strict=True))

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_cells": {}}  # large, and cheap to compute again

    def cells(self, draws: int = DRAWS, seed: int = 0) -> Cells:
        """Return the scores arranged for statistics, with the results that were computed so far."""
        if (draws, seed) not in self._cells:
            of = self.labels, (*self.metrics, *self.without), self.values, self.target
            self._cells[draws, seed] = arrange(*of, draws, seed)
        return self._cells[draws, seed]

    def statistics(self, *, draws: int = DRAWS, seed: int = 0, **how: Any) -> Statistics:
        """Compute the tables of statistics.

        Args:
            draws: Number of bootstrap samples of the sources.
            seed: Seed of the bootstrap.
            how: Further arguments of `cfqa_data.eval.statistics.statistics`: ``tables``.
        """
        of = self.labels, (*self.metrics, *self.without), self.values, self.target
        return statistics(*of, tasks=self.tasks, cells=self.cells(draws, seed), **how)

    def rescored(
        self, labels: pa.Table, metrics: Sequence[Metric], values: NDArray[Any]
    ) -> Evaluation:
        """Return a copy with other scores.

        Args:
            labels: The label rows that were scored.
            metrics: M metrics, those with ``left_out`` last.
            values: (rows, M) scores; NaN where there is none.
        """
        return replace(self, **_score_attributes(labels, metrics, values))

    def part(self, rows: Sequence[int] | NDArray[Any], names: Iterable[str]) -> Evaluation:
        """Return a copy with some rows of the labels and some metrics only.

        Args:
            rows: Row numbers.
            names: Names of the metrics.
        """
        wanted, every = set(names), (*self.metrics, *self.without)
        columns = [place for place, metric in enumerate(every) if metric.name in wanted]
        values = self.values[np.asarray(rows, dtype=np.intp)][:, columns]
        return self.rescored(
            self.labels.take(np.asarray(rows)), [every[c] for c in columns], values
        )

    def table(
        self,
        kind: str = "text",
        figure: str = "srocc",
        *,
        oriented: bool = True,
        bold_best: bool = True,
    ) -> Any:
        """Return a table of one figure: a row per metric, a column per task and one for all tasks.

        All codecs are pooled, as in ``across_codecs`` and ``across_tasks``.

        Args:
            kind: ``text``, ``latex`` (for the package booktabs), ``markdown``, ``csv``, or
                ``pandas``, which returns a data frame instead of a text.
            figure: ``srocc``, ``plcc`` or ``krocc``, the mean over the sources; or
                ``pooled_srocc``, ``pooled_plcc``, ``pooled_krocc``, ``mapped_plcc`` or
                ``mapped_rmse``, of the points of all sources together.
            oriented: Reverse the sign of metrics where higher is better, so that 1 is always
                perfect agreement.
            bold_best: Set the best value of each column in bold; in text, mark it with a star.

        Raises:
            MetricError: If the kind or the figure is unknown.
        """
        from cfqa_data.eval.tables import figures_table

        how = {"oriented": oriented, "bold_best": bold_best}
        return figures_table(self, kind, figure, **how)

    def following(self, target: str) -> Evaluation:
        """Return the same scores, to be correlated with another label.

        Args:
            target: ``distortion`` or ``loss``.

        Raises:
            MetricError: If the labels have no such column.
        """
        if target not in ("distortion", "loss") or target not in self.labels.column_names:
            raise MetricError(f"the labels have no column {target!r} to follow")
        return replace(self, target=target)

    def same_dataset(self, other: Evaluation) -> bool:
        """Return whether another evaluation is of the same dataset or of a build that agrees.

        Two builds agree if more than half of the features of each have the same labels.
        """
        from cfqa_data.eval.merging import same_dataset

        return same_dataset(self, other)

    def merge(self, *others: Evaluation, label: str = "") -> Evaluation:
        """Combine evaluations of one dataset into one with all their features and metrics.

        Where several have a score of the same metric and feature, the first is kept. Separate
        builds of a dataset count as the same if the labels of more than half of the features of
        each agree to 1e-6; features whose labels differ are left out, and ``notes`` and a
        `MetricWarning` report them.

        Args:
            others: Further evaluations.
            label: Distinguishes different metrics of the same name: that of ``others`` is renamed
                to ``NAME (LABEL)``.

        Returns:
            A new evaluation.

        Raises:
            MetricError: If the evaluations are of different datasets, or two different metrics have
                the same name and there is no label.
        """
        from cfqa_data.eval.merging import merge

        merged = self
        for other in others:
            if not isinstance(other, Evaluation):
                raise MetricError(f"only an `Evaluation` can be merged, not {other!r}")
            merged = merge(merged, other, label)
        return merged

    def write(self, path: str | Path, *, force: bool = False) -> Path:
        """Write the scores to a file and return its path.

        Args:
            path: A ``.parquet`` file, which `read_evaluation` reads, or a ``.csv`` file, which has
                the scores only.
            force: Replace an existing file.

        Raises:
            CfqaError: If the file exists or cannot be written.
        """
        from cfqa_data.eval.score_format import write_scores
        from cfqa_data.format.storage import check_writable

        path = absolute_path(path)
        check_writable(path)
        if path.suffix not in (".parquet", ".csv"):
            raise MetricError(f"{path}: the file name must end in .parquet or .csv")
        if path.exists() and not force:
            raise MetricError(f"{path}: already exists; write to another file, or pass force=True")
        try:
            write_scores(self, path)
        except OSError as error:
            why = error.strerror or error
            raise DiskError(f"{path}: the scores could not be written: {why}") from None
        return path

    def make_tables(self, *names: str) -> None:
        """Compute several tables together, which takes less time than one by one."""
        if missing := [name for name in names if name not in self._tables]:
            computed = self.statistics(tables=missing)
            self._tables.update((name, getattr(computed, name)) for name in missing)

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
        """Compare metrics with a baseline: paired differences, 95% intervals and p values.

        Args:
            metrics: Names of the metrics; by default all others whose direction is declared.
            against: Name of the baseline.
            draws: Number of bootstrap samples of the sources, for the intervals and p values.
            seed: Seed of the bootstrap.

        Returns:
            The differences, positive where a metric is better than the baseline.

        Raises:
            MetricError: If a metric was not scored, or its direction is not declared.
        """
        from cfqa_data.eval.comparison import compare_metrics

        return compare_metrics(self, metrics, against, draws=draws, seed=seed)

    def disagreements(
        self, metric: str, count: int = 20, *, against: str | None = None
    ) -> Disagreements:
        """Return the features that a metric ranks most differently from the label.

        Args:
            metric: Name of a metric. Lower is assumed to be better if its direction is not
                declared.
            count: Maximum number of features, at most one per source.
            against: Name of a metric to compare with instead of the label.

        Raises:
            MetricError: If a metric was not scored, or ``count`` is less than 1.
        """
        from cfqa_data.eval.disagreements import find_disagreements

        return find_disagreements(self, metric, count, against)


def make_evaluation(
    labels: pa.Table,
    metrics: Sequence[Metric],
    values: NDArray[Any],
    target: str,
    failures: Mapping[str, str],
    **facts: Any,
) -> Evaluation:
    """Make an evaluation from an array of scores.

    Args:
        labels: The label rows that were scored.
        metrics: M metrics.
        values: (rows, M) float64 scores; NaN where there is none.
        target: Label column to correlate with.
        failures: A message for each metric that failed, by name.
        facts: Other attributes of `Evaluation`.
    """
    scored = _score_attributes(labels, metrics, values)
    return Evaluation(**scored, target=target, failures=dict(failures), **facts)


def _score_attributes(
    labels: pa.Table, metrics: Sequence[Metric], values: NDArray[Any]
) -> dict[str, Any]:
    """Return the attributes of an `Evaluation` that depend on its scores."""
    return {
        "labels": labels,
        "scores": scores_table(labels, metrics, values),
        "metrics": tuple(metric for metric in metrics if metric.left_out is None),
        "without": tuple(metric for metric in metrics if metric.left_out is not None),
    }


def scores_table(labels: pa.Table, metrics: Sequence[Metric], values: NDArray[Any]) -> pa.Table:
    """Return scores in long form, the metrics of a feature in consecutive rows.

    Args:
        labels: One row per compressed feature.
        metrics: M metrics.
        values: (rows, M) float64 scores; NaN becomes null.
    """
    import pyarrow as pa

    rows = key_columns(labels).combine_chunks()
    names = pa.array([metric.name for metric in metrics], pa.string())
    repeated = rows.take(pa.array(np.repeat(np.arange(labels.num_rows), len(metrics))))
    return repeated.append_column(
        "metric", names.take(pa.array(np.tile(np.arange(len(metrics)), labels.num_rows)))
    ).append_column("value", pa.array(values.ravel(), pa.float64(), from_pandas=True))
