"""Compute all figures of one cell, that is, of the points that are correlated together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cfqa_data.eval.statistics.bootstrap import interval, resampled_means
from cfqa_data.eval.statistics.comparison import compare, orientation
from cfqa_data.eval.statistics.correlations import (
    COEFFICIENTS,
    coefficients,
    constant_rows,
    equal_rows,
)
from cfqa_data.eval.statistics.mapping import map_scores
from cfqa_data.eval.statistics.pooled import pooled_coefficients

if TYPE_CHECKING:
    from cfqa_data.eval.metrics import Metric

__all__ = ["Cell", "cell_of", "cell_rows", "join_cells"]

Floats = NDArray[np.float64]
Row = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """Points of S sources, those of one source next to each other, and M metrics.

    Attributes:
        scores: (M, n) scores, NaN where there is none.
        truth: (n,) labels, larger is worse.
        sizes: (S,) points of each source.
        per_source: (3, M, S) `coefficients` within each source.
        constant: (S,) whether the truth is constant on the source.
        flat: (M, S) whether the metric is constant on the source.
        groups: (S,) number of the group that each source is drawn with.
        counts: (1 + R, S) resamples, the data itself first.
    """

    scores: Floats
    truth: Floats
    sizes: NDArray[np.intp]
    per_source: Floats
    constant: NDArray[np.bool_]
    flat: NDArray[np.bool_]
    groups: NDArray[np.intp]
    counts: Floats


def cell_of(scores: Floats, truth: Floats, groups: NDArray[np.intp], counts: Floats) -> Cell:
    """Make a cell of (M, S, L) scores and (S, L) truth."""
    return Cell(
        scores=scores.reshape(len(scores), -1),
        truth=truth.ravel(),
        sizes=np.full(len(truth), truth.shape[1]),
        per_source=coefficients(scores, truth),
        constant=constant_rows(truth),
        flat=constant_rows(scores),
        groups=groups,
        counts=counts,
    )


def join_cells(cells: Sequence[Cell], truths: Sequence[Floats]) -> Cell:
    """Put the sources of several cells together, with new truths for their points.

    Each keeps its own resamples: sources are drawn within each cell, and what is correlated within
    a source stays as it was.
    """
    firsts = np.cumsum([0, *(cell.groups.max() + 1 for cell in cells[:-1])])

    def joined(name: str) -> Any:
        return np.concatenate([getattr(cell, name) for cell in cells], axis=-1)

    return Cell(
        truth=np.concatenate(truths),
        groups=np.concatenate([c.groups + first for c, first in zip(cells, firsts, strict=True)]),
        **{
            name: joined(name)
            for name in ("scores", "sizes", "per_source", "constant", "flat", "counts")
        },
    )


def cell_rows(cell: Cell, metrics: Sequence[Metric]) -> tuple[list[Row], list[Row]]:
    """Return one row of figures per metric, and one per coefficient and pair of metrics."""
    valid = ~np.isnan(cell.per_source[0])  # (M, S)
    present = ~np.isnan(cell.scores)  # (M, n)
    scored = np.zeros_like(valid)  # (M, S): sources with a score
    means, pooled = np.full((2, 3, len(metrics), len(cell.counts)), np.nan)
    for which, _ in equal_rows(valid):
        means[:, which] = resampled_means(cell.per_source[:, which], cell.counts)
    starts = np.cumsum(cell.sizes) - cell.sizes
    for which, points in equal_rows(present):
        sizes = np.add.reduceat(points, starts, dtype=np.intp)
        scored[which] = nonempty = sizes > 0
        if nonempty.any():
            scores, truth = np.compress(points, cell.scores[which], axis=1), cell.truth[points]
            begins = np.cumsum(sizes[nonempty]) - sizes[nonempty]
            pooled[:, which] = pooled_coefficients(scores, truth, begins, cell.counts[:, nonempty])
    versions = np.unique(cell.sizes)
    rows: list[Row] = [
        {
            "n_versions": int(versions[0]) if len(versions) == 1 else None,
            "metric": metric.name,
            "lower_better": metric.lower_better,
            "n_valid": int(valid[index].sum()),
            "n_constant": int(cell.constant.sum()),
            "n_missing": int((~valid[index] & ~cell.constant).sum()),
            "n_flat": int((cell.flat[index] & ~cell.constant).sum()),
            "n_pooled": int(present[index].sum()),
            **_mapped(cell.scores[index, present[index]], cell.truth[present[index]]),
        }
        for index, metric in enumerate(metrics)
    ]
    for prefix, figures, sources in (("", means, valid), ("pooled_", pooled, scored)):
        low, high = interval(figures)
        for index, row in enumerate(rows):
            # From a single group, every resample is the data.
            known = len(np.unique(cell.groups[sources[index]])) > 1
            for place, name in enumerate(COEFFICIENTS):
                row[prefix + name] = figures[place, index, 0]
                row[f"{prefix}{name}_low"] = low[place, index] if known else np.nan
                row[f"{prefix}{name}_high"] = high[place, index] if known else np.nan
    return rows, list(_compared(cell, metrics, rows))


def _mapped(scores: Floats, truth: Floats) -> Row:
    if not len(scores):
        return {"mapped_plcc": np.nan, "mapped_rmse": np.nan, "mapping": None}
    mapped = map_scores(scores, truth)
    return {"mapped_plcc": mapped.plcc, "mapped_rmse": mapped.rmse, "mapping": mapped.kind}


def _compared(cell: Cell, metrics: Sequence[Metric], rows: list[Row]) -> Iterator[Row]:
    """Yield the rows of comparisons; fill each metric's group into its row of figures."""
    signs = orientation([metric.lower_better for metric in metrics])
    known = np.flatnonzero(~np.isnan(signs))
    for place, name in enumerate(COEFFICIENTS):
        oriented = signs[known, None] * cell.per_source[place, known]
        found = compare(oriented, cell.counts, cell.groups)
        for row in rows:
            row[f"{name}_group"] = None
        # Nothing is known to be better where nothing could be compared.
        groups, compared = found.groups(len(known)), found.compared(len(known))
        for index, group in zip(known[compared], groups[compared], strict=True):
            rows[index][f"{name}_group"] = int(group)
        figures = ("difference", "low", "high", "p", "p_holm")
        for pair, (first, second) in enumerate(zip(found.first, found.second, strict=True)):
            yield {
                "figure": name,
                "metric": metrics[known[first]].name,
                "other": metrics[known[second]].name,
                **{figure: getattr(found, figure)[pair] for figure in figures},
            }
