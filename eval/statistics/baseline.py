"""Compare metrics with a baseline: paired differences, intervals and corrected p values.

The views, a column of the table:

* ``all``: all tasks together, as in the table ``across_tasks``.
* ``task``: a task with all codecs pooled, as in ``across_codecs``.
* ``codec``: a codec of a task, as in ``correlations``.
* ``level``: a level of a codec, over the sources, as in ``per_level``.

The figure ``srocc`` is the mean over the sources, ``pooled_srocc`` the coefficient of all points
together; at a level, where a source is one point, ``srocc`` is the coefficient over the sources.
Likewise for the other coefficients. Differences are tested as in `comparison`, pooled ones over the
same bootstrap samples.

Holm's correction covers all metrics, tasks, codecs and levels of a view and figure.
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
from cfqa_data.eval.statistics.pooled import MAX_DRAWS, pooled_coefficients
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
    """Compare metrics with the first of them; return a table with the columns `DIFFERENCES`.

    Args:
        cells: The scores, with at least two bootstrap samples.
        metrics: The metrics of the cells.
        chosen: Indices of at least two metrics, the baseline first.
        views: Views to compute.
        coefficients: Coefficients to compare, a subset of `COEFFICIENTS`.

    Raises:
        MetricError: If the direction of a metric is not declared.
    """
    compared = [metrics[number] for number in chosen]
    for metric in compared:
        check_direction(metric)
    signs = orientation([metric.lower_better for metric in compared])
    parts: list[Rows] = []

    def append(cell: Cell, codec: str = "all", **keys: Any) -> None:
        keys = {"task": "all", "codec": codec, "level": np.nan} | keys
        parts.extend(_rows(cell.select(chosen), signs, coefficients, **keys))

    for task in cells.tasks:
        name = task.grid.task
        if "task" in views:
            append(task.whole, view="task", task=name)
        for codec, cell in task.codecs.items() if "codec" in views else ():
            append(cell, codec, view="codec", task=name)
        for version, (codec, level) in enumerate(task.grid.versions) if "level" in views else ():
            cell = task.cell(slice(version, version + 1)).select(chosen)
            keys = {"view": "level", "codec": codec, "level": level, "task": name}
            parts.extend(_pooled(cell, signs, coefficients, "", keys))
    if "all" in views and cells.tasks:
        append(cells.together, view="all")
    names = np.array([metric.name for metric in compared[1:]], object)
    _correct(parts)
    pairs = {"metric": names, "other": compared[0].name}
    return make_table(DIFFERENCES, (part | pairs for part in parts))


def check_direction(metric: Metric) -> None:
    """Check that the direction of a metric is declared.

    Raises:
        MetricError: If it is not declared.
    """
    if metric.lower_better is None:
        why = "whether lower is better is not declared"
        raise MetricError(f"metric {metric.name!r} cannot be compared: {why}")


def _rows(cell: Cell, signs: Floats, names: Sequence[str], **keys: Any) -> Iterator[Rows]:
    """Yield the rows of a cell with several points per source: means, and pooled figures."""
    for name in names:
        oriented = signs[:, None] * cell.per_source[COEFFICIENTS.index(name)]
        differences = compare(oriented, cell.counts, cell.groups, against=0)
        both = ~np.isnan(oriented[1:]) & ~np.isnan(oriented[0])
        means = np.full((2, len(signs) - 1), np.nan)
        for rows, valid in equal_rows(both):
            if valid.any():
                means[0, rows] = oriented[1:][rows][:, valid].mean(axis=1)
                means[1, rows] = oriented[0, valid].mean()
        figures: Rows = {"figure": name, "value": means[0], "other_value": means[1]}
        figures |= {one: getattr(differences, one) for one in ("difference", "low", "high", "p")}
        yield keys | figures | {"n_sources": both.sum(axis=1)}
    yield from _pooled(cell, signs, names, "pooled_", keys)


def _pooled(
    cell: Cell, signs: Floats, names: Sequence[str], prefix: str, keys: Rows
) -> Iterator[Rows]:
    """Yield the rows of coefficients over all points that both metrics have scored."""
    both = ~np.isnan(cell.scores[1:]) & ~np.isnan(cell.scores[0])
    tables = np.full((len(names), 6, len(both)), np.nan)
    sources = np.zeros(len(both), int)
    chosen = [COEFFICIENTS.index(name) for name in names]
    for rows, points in equal_rows(both):
        sizes = np.add.reduceat(points, cell.starts, dtype=np.intp)
        sources[rows] = (present := sizes > 0).sum()
        if not points.any():
            continue
        compared = [0, *(rows + 1)]
        if points.all():  # computed for the other tables already
            figures = cell.pooled[chosen][:, compared]
        else:
            starts = (np.cumsum(sizes) - sizes)[present]
            counts = cell.counts[: 1 + MAX_DRAWS, present]
            scores = cell.scores[compared][:, points]
            figures = pooled_coefficients(scores, cell.truth[points], starts, counts, names)
        oriented = signs[compared, None] * figures
        groups = len(np.unique(cell.groups[present]))
        for table, (baseline, *others) in zip(tables, oriented, strict=True):
            table[0, rows], table[1, rows] = np.array(others)[:, 0], baseline[0]
            largest = float(np.abs(figures[..., 0]).max())
            table[2:, rows] = significance(np.array(others) - baseline, largest, groups)
    for name, table in zip(names, tables, strict=True):
        names_of_columns = ("value", "other_value", "difference", "low", "high", "p")
        columns = dict(zip(names_of_columns, table, strict=True))
        yield keys | {"figure": prefix + name, **columns, "n_sources": sources}


def _correct(parts: Sequence[Rows]) -> None:
    """Add ``p_holm`` to each part, corrected over the parts of the same view and figure."""
    families: dict[tuple[str, str], list[Rows]] = {}
    for part in parts:
        families.setdefault((part["view"], part["figure"]), []).append(part)
    for family in families.values():
        corrected = holm(np.concatenate([part["p"] for part in family]))
        for part, p in zip(family, np.split(corrected, len(family)), strict=True):
            part["p_holm"] = p
