"""A leaderboard of metrics from files of scores: as text, Markdown, or one HTML page.

Metrics are ranked by their mean SROCC over the sources of all tasks, a source's versions from all
codecs as one series.  Those than which none is significantly better share the first rank.
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
"""Package whose metrics are fitted to nothing but what their record tells."""

NOT_TOLD = "not declared"

TIES = (
    "=: no metric is significantly better. outperf.: by how many metrics (p < 0.05, after Holm).\n"
    "interval: 95%, over the sources. ms: per feature, without training."
)


@dataclass(frozen=True)
class Entry:
    """A metric on a leaderboard.

    Attributes:
        metric: The metric.
        rank: Its place; 1 for all than which none is significantly better. None for one that is
            not ranked.
        tied: Whether another has the same rank.
        beaten_by: How many metrics are significantly better; None where that is not known.
        gap: Where it lacks figures that others have, in words, for which it is not ranked.
        overall: Mean SROCC over the sources of all tasks, oriented, with its interval.
        by_task: That of each task.
        provenance: Where its scores come from.
        trained: What it was fitted to, in words; empty for a formula of this package.
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
        """The rank, with "=" where it is shared."""
        return "-" if self.rank is None else f"{self.rank}{'=' if self.tied else ''}"

    @property
    def version(self) -> str:
        """Package and version, or the beginning of the source's hash."""
        record = self.provenance
        which = record.version or (record.source_sha256 or "")[:8]
        return " ".join(filter(None, [record.package, which]))

    def to_dict(self) -> dict[str, Any]:
        """Return it JSON-safe."""
        of_entry = ("rank", "tied", "beaten_by", "gap", "trained", "version")
        return {
            "metric": self.metric.name,
            "lower_better": self.metric.lower_better,
            **{name: getattr(self, name) for name in of_entry},
            "srocc": self.overall._asdict(),
            "by_task": {task: figure._asdict() for task, figure in self.by_task.items()},
            "milliseconds": self.provenance.milliseconds,
            "date": self.provenance.date,
        }


@dataclass(frozen=True)
class Board:
    """The metrics that were scored on one dataset.

    Attributes:
        name: What the dataset is called.
        target: Label that was followed.
        tasks: Names of its tasks.
        codecs: Names of its codecs.
        sources: Number of sources.
        features: Number of compressed features.
        entries: The metrics, the best first, those that are not ranked last.
        notes: What is to be known of the scores.
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
        """The axis of the intervals."""
        return Scale.of(entry.overall for entry in self.entries)

    @property
    def title(self) -> str:
        """What it is of, in a line."""
        counts = f"{self.sources} sources, {self.features} features, {len(self.codecs)} codecs"
        return f"{self.name}: {counts}; mean SROCC with the {self.target}, all codecs pooled"

    def to_dict(self) -> dict[str, Any]:
        """Return it JSON-safe."""
        entries = [entry.to_dict() for entry in self.entries]
        return vars(self) | {"entries": entries}


@extras()
def leaderboard(
    *results: Evaluation | str | Path,
    dataset: FeatureSource | str | Path | None = None,
    target: str | None = None,
) -> list[Board]:
    """Rank the metrics of evaluations or files of scores, on each dataset that they are of.

    Args:
        results: Evaluations, or files that ``evaluate(..., out="NAME.parquet")`` wrote.
        dataset: The dataset that all are of; needed for files that do not keep labels.
        target: Label to follow; by default the one of the first result on a dataset.

    Returns:
        A board for each dataset, in the order of the results, the parts of one put together,
        beginning with the largest (see `Evaluation.same_dataset`).

    Raises:
        MetricError: There is no result; a file is not a whole file of scores.
    """
    source = None if dataset is None else opened(dataset)
    read = []
    for number, result in enumerate(results, 1):
        label = str(number)
        if isinstance(result, str | Path):
            label = absolute_path(result).stem
            result = read_file(result, source)
        read.append((label, result))
    if not read:
        raise MetricError("name at least one score file, .parquet")
    return [_board(pool if target is None else pool.following(target)) for pool in _pools(read)]


def _pools(read: Sequence[tuple[str, Evaluation]]) -> list[Evaluation]:
    """Put the results of each dataset together, whatever the order in which they are given.

    The largest is what the others are compared with, so that parts that share nothing meet in it.
    """

    def by_size(place: int) -> tuple[Any, ...]:
        found = read[place][1]
        return -found.labels.num_rows, found.dataset_name, found.dataset or "", place

    left, pools = sorted(range(len(read)), key=by_size), {}
    while left:
        members = [left.pop(0)]
        pool = read[members[0]][1]
        while more := [place for place in left if pool.same_dataset(read[place][1])]:
            label, other = read[more[0]]
            pool = pool.merge(other, label=label)
            members += more[:1]
            left.remove(more[0])
        first = min(members)
        pools[first] = pool.following(read[first][1].target)
    return [pools[first] for first in sorted(pools)]


def _board(evaluation: Evaluation) -> Board:
    labels, ranked = evaluation.labels, ranking(evaluation)
    first = [one for one in ranked if one.place and one.beaten_by == 0]
    entries = [
        Entry(
            metric=one.metric,
            rank=1 if one in first else one.place,
            tied=one in first and len(first) > 1,
            beaten_by=one.beaten_by,
            gap=one.gap,
            overall=Figure.of(one.overall, "srocc"),
            by_task={task: Figure.of(row, "srocc") for task, row in one.by_task.items()},
            provenance=evaluation.provenance.get(one.metric.name, Provenance()),
            trained=_trained(one.metric, evaluation),
        )
        for one in ranked
    ]
    names = (*labels.select(["task", "source_id"]).to_pydict().values(),)
    return Board(
        name=evaluation.dataset_name or f"dataset {(evaluation.dataset or 'unknown')[:8]}",
        target=evaluation.target,
        tasks=tuple(dict.fromkeys(labels["task"].to_pylist())),
        codecs=tuple(dict.fromkeys(labels["codec"].to_pylist())),
        sources=len(set(zip(*names, strict=True))),
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
    return NOT_TOLD


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
        if entry.trained not in ("", NOT_TOLD):
            remarks.append(f"{entry.metric.name}: trained on {entry.trained}.")
    if unknown := [e.metric.name for e in board.entries if e.trained == NOT_TOLD]:
        remarks.append(f"Training data not declared: {', '.join(unknown)}.")
    remarks += [f"{e.metric.name}: not ranked, {e.gap}." for e in board.entries if e.gap]
    return [*remarks, *board.notes]


def terminal_text(boards: Sequence[Board]) -> str:
    """Return boards as text for a terminal."""
    parts = []
    for board in boards:
        table = table_text(_cells(board), left=1, width=WIDTH)
        parts += [board.title, table, "\n".join(_remarks(board))]
    return "\n\n".join(filter(None, parts))


def markdown_page(boards: Sequence[Board]) -> str:
    """Return boards as Markdown, a section each."""
    parts = []
    for board in boards:
        cells, best = _cells(board), {(1, 2)}
        remarks = [f"- {markdown_safe(remark)}" for remark in _remarks(board)]
        parts += [f"## {board.name}", board.title, markdown_text(cells, best), "\n".join(remarks)]
    return "\n\n".join(["# Leaderboard", *filter(None, parts)]) + "\n"


def html_page(boards: Sequence[Board]) -> str:
    """Return boards as one HTML page that fetches nothing, with tables that sort."""
    return render_page("leaderboard.html", boards=boards)
