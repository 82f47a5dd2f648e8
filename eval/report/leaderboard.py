"""A leaderboard of metrics from score files: as text, Markdown, or one HTML page.

Metrics are ranked by their mean SROCC over the sources of all tasks, with a source's versions from
all codecs pooled. Metrics that no other metric significantly outperforms share the first rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfqa_data.console.text import WIDTH, table_text
from cfqa_data.errors import MetricError
from cfqa_data.eval.features.datasets import opened
from cfqa_data.eval.metrics import Metric
from cfqa_data.eval.provenance import Provenance
from cfqa_data.eval.report.axes import MINUS
from cfqa_data.eval.report.drawing import render_page
from cfqa_data.eval.report.ranking import Figure, Scale, ranking
from cfqa_data.eval.score_reading import read_file
from cfqa_data.eval.tables import markdown_safe, markdown_text
from cfqa_data.extras import extras
from cfqa_data.paths import absolute_path

if TYPE_CHECKING:
    from cfqa_data.eval.features.datasets import FeatureSource
    from cfqa_data.eval.results import Evaluation

__all__ = ["Board", "Entry", "html_page", "leaderboard", "markdown_page", "terminal_text"]

OWN = "cfqa-data"
"""Package whose metrics declare all data that they are fitted to."""

NOT_DECLARED = "not declared"

TIES = (
    "=: no metric is significantly better. outperf.: by how many metrics (p < 0.05, after Holm).\n"
    "interval: 95%, over the sources. ms: per feature, without training."
)


@dataclass(frozen=True)
class Entry:
    """A metric on a leaderboard.

    Attributes:
        metric: The metric.
        rank: Its rank; 1 if no metric is significantly better. None if the metric is not ranked.
        tied: Whether other metrics have the same rank.
        beaten_by: Number of metrics that are significantly better; None if unknown.
        gap: Why the metric is not ranked: where it lacks scores that others have. Empty if ranked.
        overall: Mean SROCC over the sources of all tasks, oriented, with its interval.
        by_task: Mean SROCC over the sources of each task.
        provenance: Origin of its scores.
        trained: The data that it was fitted to; empty for a formula of this package.
    """

    metric: Metric
    rank: int | None
    tied: bool
    beaten_by: int | None
    gap: str
    overall: Figure
    by_task: Mapping[str, Figure]
    provenance: Provenance
    trained: str

    @property
    def rank_text(self) -> str:
        """The rank, followed by "=" if other metrics share it."""
        return "-" if self.rank is None else f"{self.rank}{'=' if self.tied else ''}"

    @property
    def version(self) -> str:
        """Package and version, or the first digits of the source file's hash."""
        record = self.provenance
        version = record.version or (record.source_sha256 or "")[:8]
        return " ".join(filter(None, [record.package, version]))

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as a dictionary of JSON types."""
        names = ("rank", "tied", "beaten_by", "gap", "trained", "version")
        return {
            "metric": self.metric.name,
            "lower_better": self.metric.lower_better,
            **{name: getattr(self, name) for name in names},
            "srocc": self.overall._asdict(),
            "by_task": {task: figure._asdict() for task, figure in self.by_task.items()},
            "milliseconds": self.provenance.milliseconds,
            "date": self.provenance.date,
        }


@dataclass(frozen=True)
class Board:
    """The leaderboard of one dataset.

    Attributes:
        name: Name of the dataset.
        target: Label column that the scores are correlated with.
        tasks: Names of its tasks.
        codecs: Names of its codecs.
        sources: Number of sources.
        features: Number of compressed features.
        entries: The metrics, best first; those that are not ranked are last.
        notes: Remarks on the scores.
    """

    name: str
    target: str
    tasks: tuple[str, ...]
    codecs: tuple[str, ...]
    sources: int
    features: int
    entries: tuple[Entry, ...]
    notes: tuple[str, ...]

    @property
    def scale(self) -> Scale:
        """The axis on which the intervals are drawn."""
        return Scale.of(entry.overall for entry in self.entries)

    @property
    def title(self) -> str:
        """A line that describes the board."""
        counts = f"{self.sources} sources, {self.features} features, {len(self.codecs)} codecs"
        return f"{self.name}: {counts}; mean SROCC with the {self.target}, all codecs pooled"

    def to_dict(self) -> dict[str, Any]:
        """Return the board as a dictionary of JSON types."""
        entries = [entry.to_dict() for entry in self.entries]
        return vars(self) | {"entries": entries}


@extras()
def leaderboard(
    *results: Evaluation | str | Path,
    dataset: FeatureSource | str | Path | None = None,
    target: str | None = None,
) -> list[Board]:
    """Rank the metrics of evaluations or score files, separately for each dataset.

    Args:
        results: Evaluations, or files that ``evaluate(..., out="NAME.parquet")`` wrote.
        dataset: The dataset of all results; required for files without labels.
        target: Label to correlate with; by default that of the first result of a dataset.

    Returns:
        A board for each dataset, in the order of the results. Results of one dataset (see
        `Evaluation.same_dataset`) are merged.

    Raises:
        MetricError: If there is no result, or a file is not a complete score file.
    """
    source = None if dataset is None else opened(dataset)
    labelled = []
    for number, result in enumerate(results, 1):
        label = str(number)
        if isinstance(result, str | Path):
            label = absolute_path(result).stem
            result = read_file(result, source)
        labelled.append((label, result))
    if not labelled:
        raise MetricError("name at least one score file, .parquet")
    merged = _merge_by_dataset(labelled)
    return [_board(one if target is None else one.following(target)) for one in merged]


def _merge_by_dataset(labelled: Sequence[tuple[str, Evaluation]]) -> list[Evaluation]:
    """Merge the evaluations of each dataset; the result does not depend on their order.

    Merging starts from the largest, since parts that share no features can still agree with it.
    """

    def by_size(index: int) -> tuple[Any, ...]:
        one = labelled[index][1]
        return -one.labels.num_rows, one.dataset_name, one.dataset or "", index

    remaining, merged = sorted(range(len(labelled)), key=by_size), {}
    while remaining:
        members = [remaining.pop(0)]
        whole = labelled[members[0]][1]
        while same := [index for index in remaining if whole.same_dataset(labelled[index][1])]:
            label, other = labelled[same[0]]
            whole = whole.merge(other, label=label)
            members.append(same[0])
            remaining.remove(same[0])
        first = min(members)
        merged[first] = whole.following(labelled[first][1].target)
    return [merged[first] for first in sorted(merged)]


def _board(evaluation: Evaluation) -> Board:
    labels, ranked = evaluation.labels, ranking(evaluation)
    unbeaten = [one for one in ranked if one.place and one.beaten_by == 0]
    entries = [
        Entry(
            metric=one.metric,
            rank=1 if one in unbeaten else one.place,
            tied=one in unbeaten and len(unbeaten) > 1,
            beaten_by=one.beaten_by,
            gap=one.gap,
            overall=Figure.of(one.overall, "srocc"),
            by_task={task: Figure.of(row, "srocc") for task, row in one.by_task.items()},
            provenance=evaluation.provenance.get(one.metric.name, Provenance()),
            trained=_trained(one.metric, evaluation),
        )
        for one in ranked
    ]
    sources = labels.select(["task", "source_id"]).to_pydict().values()
    return Board(
        name=evaluation.dataset_name or f"dataset {(evaluation.dataset or 'unknown')[:8]}",
        target=evaluation.target,
        tasks=tuple(dict.fromkeys(labels["task"].to_pylist())),
        codecs=tuple(dict.fromkeys(labels["codec"].to_pylist())),
        sources=len(set(zip(*sources, strict=True))),
        features=labels.num_rows,
        entries=tuple(entries),
        notes=tuple(line for note in evaluation.notes.values() for line in note.splitlines()),
    )


def _trained(metric: Metric, evaluation: Evaluation) -> str:
    record = evaluation.provenance.get(metric.name, Provenance())
    if (seen := record.trained_on or record.trained_before) is not None:
        folds, codecs = ", ".join(map(str, seen.folds)), ", ".join(seen.codecs)
        if set(seen.codecs) == set(evaluation.labels["codec"].unique().to_pylist()):
            codecs = "all codecs"
        how = "cross-fitted" if record.trained_on else "before this evaluation"
        return f"{seen.originals} originals of folds {folds}, {how}; {codecs}; {seen.target}"
    if record.package in (OWN, None) and metric.family not in ("trained", "custom"):
        return ""
    return NOT_DECLARED


def _cells(board: Board) -> list[list[str]]:
    heads = ["metric", "rank", "SROCC", "interval", "outperf.", *board.tasks, "ms", "version"]
    cells = [heads]
    for entry in board.entries:
        figures = [entry.overall.text, entry.overall.interval]
        figures.append("-" if entry.beaten_by is None else str(entry.beaten_by))
        figures += [entry.by_task[task].text for task in board.tasks]
        plain = [text.replace(MINUS, "-").replace("\u2013", "-") for text in figures]
        spent = entry.provenance.milliseconds
        time = "-" if spent is None else f"{spent:.3g}"
        cells.append([entry.metric.name, entry.rank_text, *plain, time, entry.version or "-"])
    return cells


def _remarks(board: Board) -> list[str]:
    remarks = TIES.splitlines()
    for entry in board.entries:
        if entry.trained not in ("", NOT_DECLARED):
            remarks.append(f"{entry.metric.name}: trained on {entry.trained}.")
    if unknown := [e.metric.name for e in board.entries if e.trained == NOT_DECLARED]:
        remarks.append(f"Training data not declared: {', '.join(unknown)}.")
    remarks += [f"{e.metric.name}: not ranked, {e.gap}." for e in board.entries if e.gap]
    return [*remarks, *board.notes]


def terminal_text(boards: Sequence[Board]) -> str:
    """Return the boards as text for a terminal."""
    parts = []
    for board in boards:
        table = table_text(_cells(board), left=1, width=WIDTH)
        parts += [board.title, table, "\n".join(_remarks(board))]
    return "\n\n".join(filter(None, parts))


def markdown_page(boards: Sequence[Board]) -> str:
    """Return the boards as Markdown, with a section for each."""
    parts = []
    for board in boards:
        cells, best = _cells(board), {(1, 2)}
        remarks = [f"- {markdown_safe(remark)}" for remark in _remarks(board)]
        parts += [f"## {board.name}", board.title, markdown_text(cells, best), "\n".join(remarks)]
    return "\n\n".join(["# Leaderboard", *filter(None, parts)]) + "\n"


def html_page(boards: Sequence[Board]) -> str:
    """Return the boards as one HTML page with sortable tables, which makes no requests."""
    return render_page("leaderboard.html", boards=boards)
