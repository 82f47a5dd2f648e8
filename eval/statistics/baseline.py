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
from cfqa_data.eval.statistics.cells import Cell, cell_of, join_cells
from cfqa_data.eval.statistics.columns import DIFFERENCES, Rows, make_table
from cfqa_data.eval.statistics.comparison import compare, holm, orientation, significance
from cfqa_data.eval.statistics.correlations import COEFFICIENTS, equal_rows
from cfqa_data.eval.statistics.grids import read_grids
from cfqa_data.eval.statistics.pooled import MOST_DRAWS, pooled_coefficients
from cfqa_data.eval.statistics.tables import DRAWS, truths
from cfqa_data.extras import extras

if TYPE_CHECKING:
    from cfqa_data.eval.metrics import Metric

__all__ = ["VIEWS", "check_direction", "compare_with_first"]

VIEWS = ("all", "task", "codec", "level")

Floats = NDArray[np.float64]


@extras()
def compare_with_first(
    labels: pa.Table,
    metrics: Sequence[Metric],
    values: NDArray[Any],
    target: str = "distortion",
    *,
    draws: int = DRAWS,
    seed: int = 0,
    views: Sequence[str] = VIEWS,
    coefficients: Sequence[str] = COEFFICIENTS,
) -> pa.Table:
    """Compare metrics with the first of them: return a table of the columns `DIFFERENCES`.

    Args:
        labels: One row per compressed feature, as for `statistics`.
        metrics: M metrics, two or more; the first is what the others are compared with.
        values: (rows, M) float64 scores; NaN where a metric has none.
        target: Label column to follow.
        draws: Resamples of the sources, at least 2.
        seed: Of the resamples, the same as those of `statistics`.
        views: Which to compute.
        coefficients: Which to compare, of `COEFFICIENTS`.

    Raises:
        MetricError: The direction of a metric is not declared.
    """
    for metric in metrics:
        check_direction(metric)
    signs = orientation([metric.lower_better for metric in metrics])
    parts: list[Rows] = []
    together: list[Cell] = []
    for grid in read_grids(labels):
        scores = np.moveaxis(np.asarray(values, np.float64)[grid.rows], -1, 0)
        truth, of = truths(grid, labels, target), (grid.groups, grid.draw(draws, seed))
        task = {"task": grid.task, "level": np.nan}
        together.append(cell_of(scores, truth, *of))
        if "task" in views:
            parts += _rows(together[-1], signs, coefficients, view="task", codec="all", **task)
        for codec, versions in grid.codecs.items() if "codec" in views else ():
            cell = cell_of(scores[:, :, versions], truth[:, versions], *of)
            parts += _rows(cell, signs, coefficients, view="codec", codec=codec, **task)
        for place, (codec, level) in enumerate(grid.versions) if "level" in views else ():
            part = slice(place, place + 1)
            cell = cell_of(scores[:, :, part], truth[:, part], *of)
            where = {"task": grid.task, "codec": codec, "level": level}
            parts += _pooled(cell, signs, coefficients, "", {"view": "level", **where})
    if "all" in views and together:
        where = {"view": "all", "task": "all", "codec": "all", "level": np.nan}
        parts += _rows(join_cells(together), signs, coefficients, **where)
    names = np.array([metric.name for metric in metrics[1:]], object)
    _correct(parts)
    pairs = {"metric": names, "other": metrics[0].name}
    return make_table(DIFFERENCES, (part | pairs for part in parts))


def check_direction(metric: Metric) -> None:
    """Check that a metric's direction is declared.

    Raises:
        MetricError: It is not.
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
    starts = np.cumsum(cell.sizes) - cell.sizes
    found = np.full((len(names), 6, len(both)), np.nan)
    sources = np.zeros(len(both), int)
    for which, points in equal_rows(both):
        sizes = np.add.reduceat(points, starts, dtype=np.intp)
        sources[which] = (sizes > 0).sum()
        if not points.any():
            continue
        scores = np.concatenate([cell.scores[:1], cell.scores[1:][which]])[:, points]
        here, begins = sizes > 0, (np.cumsum(sizes) - sizes)[sizes > 0]
        groups = len(np.unique(cell.groups[here]))
        truth, counts = cell.truth[points], cell.counts[: 1 + MOST_DRAWS, here]
        figures = pooled_coefficients(scores, truth, begins, counts, names)
        oriented = signs[[0, *(which + 1)], None] * figures
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
