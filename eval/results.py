"""The result of an evaluation: scores, what they are of, and tables of statistics."""

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

__all__ = ["Evaluation", "conclude", "scores_table"]

WITH_COMPARISONS = ("comparisons", "correlations", "across_codecs", "across_tasks", "left_out")
"""Tables whose cells are compared: what compares them has made them."""


class _Table:
    """A table of `Statistics`, which is made when it is first asked for."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, evaluation: Evaluation, owner: type) -> pa.Table:
        name = self._name
        evaluation.make_tables(*(WITH_COMPARISONS if name == "comparisons" else (name,)))
        return evaluation._tables[name]


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
        dataset_name: What it is called; empty if that is not known.
        dataset_features: How many compressed features it has, of which ``labels`` may be a part;
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
        """The scores, (rows, M), NaN where there is none, of ``metrics`` and then ``without``."""
        shape = self.labels.num_rows, len(self.metrics) + len(self.without)
        return np.asarray(self.scores["value"].to_numpy().reshape(shape), dtype=np.float64)

    def columns(self) -> dict[str, NDArray[np.float64]]:
        """Return the scores of each metric by its name, (rows,)."""
        names = [metric.name for metric in (*self.metrics, *self.without)]
        return dict(zip(names, self.values.T, strict=True))

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_cells": {}}  # they are made again

    def cells(self, draws: int = DRAWS, seed: int = 0) -> Cells:
        """Return the scores as they are arranged for statistics, and what was computed of them."""
        if (draws, seed) not in self._cells:
            of = self.labels, (*self.metrics, *self.without), self.values, self.target
            self._cells[draws, seed] = arrange(*of, draws, seed)
        return self._cells[draws, seed]

    def statistics(self, *, draws: int = DRAWS, seed: int = 0, **how: Any) -> Statistics:
        """Return tables of statistics.

        Args:
            draws: Resamples of the sources; see `cfqa_data.eval.statistics.statistics`.
            seed: Of the resamples.
            how: ``tables`` of `cfqa_data.eval.statistics.statistics`.
        """
        of = self.labels, (*self.metrics, *self.without), self.values, self.target
        return statistics(*of, tasks=self.tasks, cells=self.cells(draws, seed), **how)

    def rescored(
        self, labels: pa.Table, metrics: Sequence[Metric], values: NDArray[Any]
    ) -> Evaluation:
        """Return the same evaluation of other scores.

        Args:
            labels: The rows.
            metrics: M metrics, those with ``left_out`` last.
            values: (rows, M) scores.
        """
        return replace(self, **_scored(labels, metrics, values))

    def part(self, rows: Sequence[int] | NDArray[Any], names: Iterable[str]) -> Evaluation:
        """Return the scores of some metrics, by name, on some rows of the labels."""
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
        """Return one figure of every metric, a row each, on every task and on all, a column each.

        All codecs are together, as in ``across_codecs`` and ``across_tasks``.

        Args:
            kind: ``latex`` (for the package booktabs), ``markdown``, ``csv``, or ``text``, or
                ``pandas`` for a data frame.
            figure: srocc, plcc or krocc, the mean over sources; pooled_srocc, pooled_plcc or
                pooled_krocc, mapped_plcc or mapped_rmse of all points together.
            oriented: Turn the sign of metrics where higher is better, so that more is better.
            bold_best: Set the best of each column bold, or, in text, a star at it.

        Raises:
            MetricError: There is no such kind or figure.
        """
        from cfqa_data.eval.tables import figures_table

        how = {"oriented": oriented, "bold_best": bold_best}
        return figures_table(self, kind, figure, **how)

    def following(self, target: str) -> Evaluation:
        """Return the same scores with other figures: of how they follow another label.

        Args:
            target: ``distortion`` or ``loss``.

        Raises:
            MetricError: The labels have no such column.
        """
        if target not in ("distortion", "loss") or target not in self.labels.column_names:
            raise MetricError(f"the labels have no column {target!r} to follow")
        return replace(self, target=target)

    def same_dataset(self, other: Evaluation) -> bool:
        """Whether another result is of this one's dataset, or of one built apart that agrees.

        Those agree of which more than half of the features of each may have the same labels.
        """
        from cfqa_data.eval.merging import same_dataset

        return same_dataset(self, other)

    def merge(self, *others: Evaluation, label: str = "") -> Evaluation:
        """Put results of one dataset together: all features and all metrics.

        Where two have scores of the same metric, the first ones are kept. Datasets that were built
        apart are the same where the labels of more than half of the features of each agree to 1e-6;
        what differs is left out, which ``notes`` and a `MetricWarning` tell.

        Args:
            others: Further results.
            label: What tells their metrics from others of the same name: such a one is then called
                ``NAME (LABEL)``.

        Raises:
            MetricError: They are of different datasets; without a label, two metrics of one name
                are not the same.
        """
        from cfqa_data.eval.merging import merge

        merged = self
        for other in others:
            if not isinstance(other, Evaluation):
                raise MetricError(f"only an `Evaluation` can be merged, not {other!r}")
            merged = merge(merged, other, label)
        return merged

    def write(self, path: str | Path, *, force: bool = False) -> Path:
        """Write the scores to a file, and return its path.

        Args:
            path: ``.parquet``, which `read_evaluation` reads, or ``.csv``, which has no facts.
            force: Replace what is there.

        Raises:
            CfqaError: A file is there, or none can be written.
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
        """Make several tables at once, which takes less time than one after the other."""
        if missing := [name for name in names if name not in self._tables]:
            made = self.statistics(tables=missing)
            self._tables.update((name, getattr(made, name)) for name in missing)

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

    def disagreements(
        self, metric: str, count: int = 20, *, against: str | None = None
    ) -> Disagreements:
        """Return the features on which a metric disagrees most in rank with the label.

        Args:
            metric: Name of a metric; where its direction is not declared, lower is taken for
                better.
            count: At most so many, one of a source.
            against: Another metric, to compare with instead of the label.

        Raises:
            MetricError: A metric was not scored, or count is less than 1.
        """
        from cfqa_data.eval.disagreements import find_disagreements

        return find_disagreements(self, metric, count, against)


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
        known: Other attributes of an `Evaluation`.
    """
    scored = _scored(labels, metrics, values)
    return Evaluation(**scored, target=target, failures=dict(failures), **known)


def _scored(labels: pa.Table, metrics: Sequence[Metric], values: NDArray[Any]) -> dict[str, Any]:
    """Return the attributes of an `Evaluation` that its scores decide."""
    return {
        "labels": labels,
        "scores": scores_table(labels, metrics, values),
        "metrics": tuple(metric for metric in metrics if metric.left_out is None),
        "without": tuple(metric for metric in metrics if metric.left_out is not None),
    }


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
