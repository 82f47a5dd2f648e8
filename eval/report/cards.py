"""One metric closely: its facts, its figures per task, its scatters, and the items to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from cfqa_data.eval.report.axes import number_text
from cfqa_data.eval.report.figures import TaskPoints, scatter
from cfqa_data.eval.report.items import Disagreement, disagreements
from cfqa_data.eval.report.ranking import Figure, Ranked

if TYPE_CHECKING:
    from cfqa_data.eval import Evaluation

__all__ = ["Card", "TaskFigures", "cards"]


@dataclass(frozen=True)
class TaskFigures:
    """A metric's figures on one task, all codecs together.

    Attributes:
        task: The task.
        within: PLCC, SROCC ... per source, averaged, by coefficient.
        pooled: The same with all points as one series.
        mapped_plcc: PLCC after the logistic.
        mapped_rmse: Root mean square error after it, in the label's unit.
        areas: Krasula's two areas, or None.
        flat: Sources on which the metric is constant.
        missing: Compressed features without a score.
        left_out: Sources that are left out of the averages for that.
    """

    task: str
    within: dict[str, Figure]
    pooled: dict[str, Figure]
    mapped_plcc: Figure
    mapped_rmse: float | None
    areas: tuple[float | None, float | None]
    flat: int
    missing: int
    left_out: int


@dataclass(frozen=True)
class Card:
    """All that the page says of one metric.

    Attributes:
        entry: Its place in the ranking.
        range: The scores that it may have, as text.
        figures: Per task.
        scatters: Per task.
        items: Disagreements with the label, the worst first.
    """

    entry: Ranked
    range: str
    figures: Sequence[TaskFigures]
    scatters: Sequence[tuple[str, Markup]]
    items: Sequence[Disagreement]


def cards(
    evaluation: Evaluation, ranked: Sequence[Ranked], points: Sequence[TaskPoints]
) -> list[Card]:
    """Return a card per metric, in the order of the ranking."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in evaluation.across_codecs.to_pylist():
        rows.setdefault(row["metric"], []).append(row)
    made = []
    for entry in ranked:
        items = disagreements(points, entry.number, entry.metric)
        scatters = []
        of_task = {}
        for part in points:
            there = ~np.isnan(part.scores[:, entry.number])
            of_task[part.task] = int((~there).sum())
            if not there.any():
                continue
            ringed = {
                item.row: str(place)
                for place, item in enumerate(items, 1)
                if item.task == part.task
            }
            drawn = scatter(part, entry.number, entry.metric.name, evaluation.target, ringed)
            scatters.append((part.task, drawn))
        figures = [_figures(row, entry, of_task[row["task"]]) for row in rows[entry.metric.name]]
        made.append(Card(entry, _range(entry), figures, scatters, items))
    return made


def _figures(row: dict[str, Any], entry: Ranked, missing: int) -> TaskFigures:
    names = tuple(entry.overall)
    return TaskFigures(
        task=row["task"],
        within={name: Figure.of(row, name) for name in names},
        pooled={name: Figure.of(row, f"pooled_{name}") for name in names},
        mapped_plcc=Figure.of(row, "mapped_plcc"),
        mapped_rmse=row["mapped_rmse"],
        areas=entry.discrimination.get(row["task"], (None, None)),
        flat=row["n_flat"],
        missing=missing,
        left_out=row["n_missing"],
    )


def _range(entry: Ranked) -> str:
    low, high = map(number_text, entry.metric.score_range)
    return f"{low} to {high}"
