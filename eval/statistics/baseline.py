"""Compare metrics with one of them, in every way: paired differences, intervals, corrected p.

The views, a column of the table:

* ``all``: all tasks together, as in the table ``across_tasks``.
* ``task``: a task, its codecs together, as in ``across_codecs``.
* ``codec``: a codec of a task, as in ``correlations``.
* ``level``: a level of a codec, over the sources, as in ``per_level``.

A coefficient's name is the mean over the sources, with ``pooled_`` before it that of all points
together; at a level, where a source is one point, it is that over the sources. Differences of
means are tested as in `comparison`; those of pooled figures likewise, over the same resamples.

Holm's correction is over all that is looked at together: the metrics, tasks, codecs and levels of
one view and figure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cfqa_data.arrow import pa
from cfqa_data.errors import MetricError
from cfqa_data.eval.statistics.cells import Cell, Cells
from cfqa_data.eval.statistics.columns import DIFFERENCES, Rows, make_table
from cfqa_data.eval.statistics.comparison import compare, holm, orientation, significance
from cfqa_data.eval.statistics.correlations import COEFFICIENTS, equal_rows
from cfqa_data.eval.statistics.pooled import MOST_DRAWS, pooled_coefficients
from cfqa_data.extras import extras

if TYPE_CHECKING:
    from cfqa_data.eval.metrics import Metric

__all__ = ["VIEWS", "check_direction", "compare_with_first"]

VIEWS = ("all", "task", "codec", "level")

Floats = NDArray[np.float64]


@extras()
def compare_with_first(
    cells: Cells,
    metrics: Sequence[Metric],
    chosen: Sequence[int],
    *,
    views: Sequence[str] = VIEWS,
    coefficients: Sequence[str] = COEFFICIENTS,
) -> pa.Table:
    """Compare metrics with the first of them: return a table of the columns `DIFFERENCES`.

    Args:
        cells: Of the scores, with two resamples or more.
        metrics: The metrics of the cells.
        chosen: Numbers of two of them or more; the others are compared with the first.
        views: Which to compute.
        coefficients: Which to compare, of `COEFFICIENTS`.

    Raises:
        MetricError: If the direction of a metric is not declared.
    """
    compared = [metrics[number] for number in chosen]
    for metric in compared:
        check_direction(metric)
    signs = orientation([metric.lower_better for metric in compared])
    parts: list[Rows] = []

    def append(cell: Cell, codec: str = "all", **where: Any) -> None:
        place = {"task": "all", "codec": codec, "level": np.nan} | where
        parts.extend(_rows(cell.select(chosen), signs, coefficients, **place))

    for task in cells.tasks:
        of = {"task": task.grid.task}
        if "task" in views:
            append(task.whole, view="task", **of)
        for codec, cell in task.codecs.items() if "codec" in views else ():
            append(cell, codec, view="codec", **of)
        for place, (codec, level) in enumerate(task.grid.versions) if "level" in views else ():
            cell = task.cell(slice(place, place + 1)).select(chosen)
            where = {"view": "level", "codec": codec, "level": level, **of}
            parts.extend(_pooled(cell, signs, coefficients, "", where))
    if "all" in views and cells.tasks:
        append(cells.together, view="all")
    names = np.array([metric.name for metric in compared[1:]], object)
    _correct(parts)
    pairs = {"metric": names, "other": compared[0].name}
    return make_table(DIFFERENCES, (part | pairs for part in parts))


def check_direction(metric: Metric) -> None:
    """Check that a metric's direction is declared.

    Raises:
        MetricError: If it is not.
    """
    if metric.lower_better is None:
        why = "whether lower is better is not declared"
        raise MetricError(f"metric {metric.name!r} cannot be compared: {why}")


def _rows(cell: Cell, signs: Floats, names: Sequence[str], **where: Any) -> Iterator[Rows]:
    """Yield the rows of a cell of several points a source: means over the sources, and pooled."""
    for name in names:
        oriented = signs[:, None] * cell.per_source[COEFFICIENTS.index(name)]
        found = compare(oriented, cell.counts, cell.groups, against=0)
        both = ~np.isnan(oriented[1:]) & ~np.isnan(oriented[0])
        means = np.full((2, len(signs) - 1), np.nan)
        for which, here in equal_rows(both):
            if here.any():
                means[0, which] = oriented[1:][which][:, here].mean(axis=1)
                means[1, which] = oriented[0, here].mean()
        figures: Rows = {"figure": name, "value": means[0], "other_value": means[1]}
        figures |= {one: getattr(found, one) for one in ("difference", "low", "high", "p")}
        yield where | figures | {"n_sources": both.sum(axis=1)}
    yield from _pooled(cell, signs, names, "pooled_", where)


def _pooled(
    cell: Cell, signs: Floats, names: Sequence[str], prefix: str, where: Rows
) -> Iterator[Rows]:
    """Yield the rows of coefficients over all points, of those that both metrics have scores of."""
    both = ~np.isnan(cell.scores[1:]) & ~np.isnan(cell.scores[0])
    found = np.full((len(names), 6, len(both)), np.nan)
    sources = np.zeros(len(both), int)
    chosen = [COEFFICIENTS.index(name) for name in names]
    for which, points in equal_rows(both):
        sizes = np.add.reduceat(points, cell.starts, dtype=np.intp)
        sources[which] = (here := sizes > 0).sum()
        if not points.any():
            continue
        compared = [0, *(which + 1)]
        if points.all():  # as all tables have it
            figures = cell.pooled[chosen][:, compared]
        else:
            begins = (np.cumsum(sizes) - sizes)[here]
            counts = cell.counts[: 1 + MOST_DRAWS, here]
            scores = cell.scores[compared][:, points]
            figures = pooled_coefficients(scores, cell.truth[points], begins, counts, names)
        oriented = signs[compared, None] * figures
        groups = len(np.unique(cell.groups[here]))
        for of_one, (first, *others) in zip(found, oriented, strict=True):
            of_one[0, which], of_one[1, which] = np.array(others)[:, 0], first[0]
            largest = float(np.abs(figures[..., 0]).max())
            of_one[2:, which] = significance(np.array(others) - first, largest, groups)
    for name, of_one in zip(names, found, strict=True):
        columns = ("value", "other_value", "difference", "low", "high", "p")
        columns_of = dict(zip(columns, of_one, strict=True))
        yield where | {"figure": prefix + name, **columns_of, "n_sources": sources}


def _correct(parts: Sequence[Rows]) -> None:
    """Give each part its ``p_holm``, corrected over the parts of the same view and figure."""
    families: dict[tuple[str, str], list[Rows]] = {}
    for part in parts:
        families.setdefault((part["view"], part["figure"]), []).append(part)
    for family in families.values():
        corrected = holm(np.concatenate([part["p"] for part in family]))
        for part, p in zip(family, np.split(corrected, len(family)), strict=True):
            part["p_holm"] = p
