"""Metrics of an evaluation compared with one of them, as a table and as text."""

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
    """Differences between metrics and one of them; ``print`` shows those of SROCC.

    Attributes:
        table: One row per view, task, codec, level, figure and metric; docs/statistics.md has the
            columns. A difference above 0 says that the metric is better than the other.
        against: The metric that all are compared with.
        target: Label that they follow.
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
        """Lay out the differences of a coefficient, of all tasks together and of each.

        Args:
            figure: Srocc, plcc or krocc.
            per_codec: Also those of each codec, and at each level.
        """
        title = (
            f"{figure.upper()} with the {self.target}: by how much each metric is better than "
            f"{self.against}.\n95% intervals over the sources; p after Holm's correction."
        )
        views = VIEWS[:-1] if per_codec else VIEWS[:2]
        parts = [title, table_text(self._rows(figure, views), left=3, width=WIDTH, group=2)]
        levels = self._of(figure, "level") if per_codec else {}
        if levels:
            numbers = sorted({int(level) for of in levels.values() for level in of})
            heads = ["task", "codec", "metric", *map(str, numbers)]
            rows = [
                [*key, *(_short(of.get(level)) for level in numbers)] for key, of in levels.items()
            ]
            title = f"Over the sources at each level; * where p is below {ALPHA:g}."
            parts += [title, table_text([heads, *rows], left=3, width=WIDTH)]
        return "\n\n".join(parts)

    def _rows(self, figure: str, views: Sequence[str] = VIEWS[:2]) -> list[list[str]]:
        """Return heads and rows of some views, but not that per level."""
        heads = ["task", "codec", "metric", "per source", "p", "all points", "p"]
        return [heads] + [
            [*key, *_cells(of.get(figure)), *_cells(of.get(f"pooled_{figure}"))]
            for view in views
            for key, of in self._of(figure, view).items()
        ]

    def _of(self, figure: str, view: str) -> dict[tuple[str, ...], dict[Any, Row]]:
        """Return by task, codec and metric the rows of a view, by figure or level."""
        found = defaultdict[tuple[str, ...], dict[Any, Row]](dict)
        for row in self.table.to_pylist():
            if row["view"] == view and row["figure"] in (figure, f"pooled_{figure}"):
                key = row["task"], row["codec"], row["metric"]
                found[key][row["figure"] if row["level"] is None else row["level"]] = row
        return found


def _cells(row: Row | None) -> list[str]:
    if row is None or row["difference"] is None:
        return ["-", "-"]
    low, high, p = (row[name] for name in ("low", "high", "p_holm"))
    interval = "" if low is None else f" [{low:+.3f}, {high:+.3f}]"
    return [f"{row['difference']:+.4f}{interval}", p_text(p)]


def p_text(p: float | None) -> str:
    """Return a p as papers write it: "0.032", "<0.001"; "-" for none."""
    if p is None:
        return "-"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _short(row: Row | None) -> str:
    if row is None or row["difference"] is None:
        return "-"
    significant = row["p_holm"] is not None and row["p_holm"] < ALPHA
    return f"{row['difference']:+.2f}{'*' if significant else ' '}"


def baseline_of(named: Sequence[str], device: str = "cpu") -> str:
    """Return the name of the one metric that is named, which others can be compared with.

    Raises:
        MetricError: If that is none, or several, or one whose direction is not declared.
    """
    if len(named) != 1:
        raise MetricError(f"name one metric to compare the others with, not {len(named)}")
    (metric,) = as_metrics(named[0], device)
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
    """Compare metrics of an evaluation with one of them: see `Evaluation.compare`.

    Args:
        evaluation: Has the scores of all.
        metrics: Names; None for all others whose direction is declared.
        against: Name of the metric to compare with.
        draws: Resamples of the sources.
        seed: Of the resamples.
        views: Which to compute.
        coefficients: Which to compare.

    Raises:
        MetricError: See `Evaluation.compare`.
    """
    known = {metric.name: metric for metric in evaluation.metrics}
    if metrics is None:
        others = [m for m in evaluation.metrics if m.name != against]
        directed = [m.name for m in others if m.lower_better is not None]
        metrics = directed or [m.name for m in others]  # which is an error that says so
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
    places = [list(known).index(name) for name in (against, *names)]
    table = compare_with_first(
        evaluation.cells(draws, seed),
        evaluation.metrics,
        places,
        views=views,
        coefficients=coefficients,
    )
    return Comparison(table, against, evaluation.target)
