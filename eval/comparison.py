"""Compare the metrics of an evaluation with a baseline, as a table and as text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cfqa_data.console.summary import Described, Summary
from cfqa_data.console.text import WIDTH, table_text
from cfqa_data.errors import MetricError, unknown_name
from cfqa_data.eval.metrics import as_metrics
from cfqa_data.eval.statistics.baseline import VIEWS, check_direction, compare_with_first
from cfqa_data.eval.statistics.comparison import ALPHA
from cfqa_data.eval.statistics.correlations import COEFFICIENTS
from cfqa_data.eval.statistics.tables import DRAWS

if TYPE_CHECKING:
    import pyarrow as pa

    from cfqa_data.eval.results import Evaluation

__all__ = ["Comparison", "baseline_of", "compare_metrics", "p_text"]

Row = Mapping[str, Any]


@dataclass(frozen=True, repr=False)
class Comparison(Described):
    """Differences between metrics and a baseline; ``print`` shows those of the SROCC.

    Attributes:
        table: One row per view, task, codec, level, figure and metric, with the columns that
            docs/statistics.md describes. A positive difference means that the metric is better
            than the baseline.
        against: Name of the baseline.
        target: Label column that the scores are correlated with.
    """

    table: pa.Table
    against: str
    target: str

    def _summary(self, rows: bool) -> Summary:
        names = ", ".join(dict.fromkeys(self.table["metric"].to_pylist()))
        title = f"Comparison with {self.against}"
        facts = {"metrics": names, "target": self.target, "differences": self.table.num_rows}
        return Summary(title, facts, self._rows("srocc") if rows else ())

    def __str__(self) -> str:
        return self.text()

    def text(self, figure: str = "srocc", *, per_codec: bool = False) -> str:
        """Format the differences of a coefficient on all tasks and on each task.

        Args:
            figure: ``srocc``, ``plcc`` or ``krocc``.
            per_codec: Include the differences for each codec and at each level.
        """
        title = (
            f"{figure.upper()} with the {self.target}: by how much each metric is better than "
            f"{self.against}.\n95% intervals over the sources; p after Holm's correction."
        )
        views = VIEWS[:-1] if per_codec else VIEWS[:2]
        parts = [title, table_text(self._rows(figure, views), left=3, width=WIDTH, group=2)]
        by_level = self._select(figure, "level") if per_codec else {}
        if by_level:
            numbers = sorted({int(level) for cells in by_level.values() for level in cells})
            heads = ["task", "codec", "metric", *map(str, numbers)]
            rows = [
                [*key, *(_short(cells.get(level)) for level in numbers)]
                for key, cells in by_level.items()
            ]
            title = f"Over the sources at each level; * where p is below {ALPHA:g}."
            parts += [title, table_text([heads, *rows], left=3, width=WIDTH)]
        return "\n\n".join(parts)

    def _rows(self, figure: str, views: Sequence[str] = VIEWS[:2]) -> list[list[str]]:
        """Return the header and rows of some views, except the view ``level``."""
        heads = ["task", "codec", "metric", "per source", "p", "all points", "p"]
        return [heads] + [
            [*key, *_cells(cells.get(figure)), *_cells(cells.get(f"pooled_{figure}"))]
            for view in views
            for key, cells in self._select(figure, view).items()
        ]

    def _select(self, figure: str, view: str) -> dict[tuple[str, ...], dict[Any, Row]]:
        """Return the rows of a view by (task, codec, metric), then by level or else by figure."""
        selected = defaultdict[tuple[str, ...], dict[Any, Row]](dict)
        for row in self.table.to_pylist():
            if row["view"] == view and row["figure"] in (figure, f"pooled_{figure}"):
                key = row["task"], row["codec"], row["metric"]
                selected[key][row["figure"] if row["level"] is None else row["level"]] = row
        return selected


def _cells(row: Row | None) -> list[str]:
    if row is None or row["difference"] is None:
        return ["-", "-"]
    low, high, p = (row[name] for name in ("low", "high", "p_holm"))
    interval = "" if low is None else f" [{low:+.3f}, {high:+.3f}]"
    return [f"{row['difference']:+.4f}{interval}", p_text(p)]


def p_text(p: float | None) -> str:
    """Return a p value as text, such as "0.032" or "<0.001"; "-" if there is none."""
    if p is None:
        return "-"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _short(row: Row | None) -> str:
    if row is None or row["difference"] is None:
        return "-"
    significant = row["p_holm"] is not None and row["p_holm"] < ALPHA
    return f"{row['difference']:+.2f}{'*' if significant else ' '}"


def baseline_of(names: Sequence[str], device: str = "cpu") -> str:
    """Return the name of a baseline, which must be a single metric of declared direction.

    Raises:
        MetricError: If there is not exactly one metric, or its direction is not declared.
    """
    if len(names) != 1:
        raise MetricError(f"name one metric to compare the others with, not {len(names)}")
    (metric,) = as_metrics(names[0], device)
    check_direction(metric)
    return metric.name


def compare_metrics(
    evaluation: Evaluation,
    metrics: str | Iterable[str] | None,
    against: str,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    views: Sequence[str] = VIEWS,
    coefficients: Sequence[str] = COEFFICIENTS,
) -> Comparison:
    """Compare metrics of an evaluation with a baseline: see `Evaluation.compare`.

    Args:
        evaluation: The evaluation.
        metrics: Names of the metrics; None for all others whose direction is declared.
        against: Name of the baseline.
        draws: Number of bootstrap samples of the sources.
        seed: Seed of the bootstrap.
        views: Views to compute.
        coefficients: Coefficients to compare.

    Raises:
        MetricError: See `Evaluation.compare`.
    """
    known = {metric.name: metric for metric in evaluation.metrics}
    if metrics is None:
        others = [m for m in evaluation.metrics if m.name != against]
        directed = [m.name for m in others if m.lower_better is not None]
        metrics = directed or [m.name for m in others]  # the latter raises an error below
    names = list(dict.fromkeys([metrics] if isinstance(metrics, str) else metrics))
    for name in (against, *names):
        if name not in known:
            hint = unknown_name("metric", name, known)
            raise MetricError(f"{hint}; only metrics that were scored can be compared")
    if against in names or not names:
        raise MetricError(
            f"nothing to compare with {against!r}: name another metric that was scored"
        )
    if draws < 2:
        raise MetricError(f"draws must be at least 2, not {draws}")
    columns = [list(known).index(name) for name in (against, *names)]
    table = compare_with_first(
        evaluation.cells(draws, seed),
        evaluation.metrics,
        columns,
        views=views,
        coefficients=coefficients,
    )
    return Comparison(table, against, evaluation.target)
