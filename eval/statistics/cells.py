"""Every figure of one cell: the points that are correlated together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cfqa_data.eval.statistics.bootstrap import interval, resampled_means
from cfqa_data.eval.statistics.comparison import Differences, compare, orientation
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


@dataclass(frozen=True)
class Cell:
    """Points of S sources, those of one source next to each other, and M metrics.

    Attributes:
        scores: (M, n) scores, NaN where there is none.
        truth: (n,) labels, larger is worse.
        starts: (S,) where each source's points begin.
        per_source: (3, M, S) `coefficients` within each source.
        constant: (S,) whether the truth is constant on the source.
        flat: (M, S) whether the metric is constant on the source.
        counts: (1 + R, S) resamples, the data itself first.
    """

    scores: Floats
    truth: Floats
    starts: NDArray[np.intp]
    per_source: Floats
    constant: NDArray[np.bool_]
    flat: NDArray[np.bool_]
    counts: Floats


def cell_of(scores: Floats, truth: Floats, counts: Floats) -> Cell:
    """Make a cell of (M, S, L) scores and (S, L) truth."""
    return Cell(
        scores=scores.reshape(len(scores), -1),
        truth=truth.ravel(),
        starts=np.arange(len(truth)) * truth.shape[1],
        per_source=coefficients(scores, truth),
        constant=constant_rows(truth),
        flat=constant_rows(scores),
        counts=counts,
    )


def join_cells(cells: Sequence[Cell], truths: Sequence[Floats]) -> Cell:
    """Put the sources of several cells together, with new truths for their points.

    Each keeps its own resamples: sources are drawn within each cell, and what is correlated within
    a source stays as it was.
    """
    offsets = np.cumsum([0, *(cell.truth.size for cell in cells[:-1])])
    return Cell(
        scores=np.concatenate([cell.scores for cell in cells], axis=1),
        truth=np.concatenate(truths),
        starts=np.concatenate(
            [cell.starts + offset for cell, offset in zip(cells, offsets, strict=True)]
        ),
        per_source=np.concatenate([cell.per_source for cell in cells], axis=2),
        constant=np.concatenate([cell.constant for cell in cells]),
        flat=np.concatenate([cell.flat for cell in cells], axis=1),
        counts=np.concatenate([cell.counts for cell in cells], axis=1),
    )


def cell_rows(
    cell: Cell, metrics: Sequence[Metric]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return one row of figures per metric, and one per coefficient and pair of metrics."""
    valid = ~np.isnan(cell.per_source[0])  # (M, S)
    present = ~np.isnan(cell.scores)  # (M, n)
    means, pooled = np.full((2, 3, len(metrics), len(cell.counts)), np.nan)
    for which, _ in equal_rows(valid):
        means[:, which] = resampled_means(cell.per_source[:, which], cell.counts)
    pooled_sources = np.zeros(len(metrics), dtype=np.intp)
    for which, points in equal_rows(present):
        pooled_sources[which], pooled[:, which] = _pooled(cell, which, points)
    rows: list[dict[str, Any]] = []
    for index, metric in enumerate(metrics):
        rows.append(
            {
                "metric": metric.name,
                "lower_better": metric.lower_better,
                "n_valid": int(valid[index].sum()),
                "n_constant": int(cell.constant.sum()),
                "n_missing": int((~valid[index] & ~cell.constant).sum()),
                "n_flat": int((cell.flat[index] & ~cell.constant).sum()),
                "n_pooled": int(present[index].sum()),
                **_mapped(cell.scores[index, present[index]], cell.truth[present[index]]),
            }
        )
    for prefix, figures, sources in (
        ("", means, valid.sum(axis=1)),
        ("pooled_", pooled, pooled_sources),
    ):
        low, high = interval(figures)
        for place, name in enumerate(COEFFICIENTS):
            for index, row in enumerate(rows):
                # From a single source, every resample is the data.
                known = sources[index] > 1
                row[prefix + name] = figures[place, index, 0]
                row[f"{prefix}{name}_low"] = low[place, index] if known else np.nan
                row[f"{prefix}{name}_high"] = high[place, index] if known else np.nan
    comparisons = list(_compared(cell, metrics, rows))
    return rows, comparisons


def _pooled(
    cell: Cell, which: NDArray[np.intp], points: NDArray[np.bool_]
) -> tuple[int, NDArray[Any]]:
    """Return how many sources have some points, and (3, M, 1 + R) their coefficients together."""
    sizes = np.add.reduceat(points, cell.starts, dtype=np.intp)
    there = sizes > 0
    if not there.any():
        return 0, np.full((3, len(which), len(cell.counts)), np.nan)
    starts = np.cumsum(sizes[there]) - sizes[there]
    scores, truth = np.compress(points, cell.scores[which], axis=1), cell.truth[points]
    return int(there.sum()), pooled_coefficients(scores, truth, starts, cell.counts[:, there])


def _mapped(scores: Floats, truth: Floats) -> dict[str, Any]:
    if not len(scores):
        return {"mapped_plcc": np.nan, "mapped_rmse": np.nan, "mapping": None}
    mapped = map_scores(scores, truth)
    return {"mapped_plcc": mapped.plcc, "mapped_rmse": mapped.rmse, "mapping": mapped.kind}


def _compared(
    cell: Cell, metrics: Sequence[Metric], rows: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Yield the rows of comparisons; fill each metric's group into its row of figures."""
    signs = orientation([metric.lower_better for metric in metrics])
    known = np.flatnonzero(~np.isnan(signs))
    for place, name in enumerate(COEFFICIENTS):
        found = compare(signs[known, None] * cell.per_source[place, known], cell.counts)
        for row in rows:
            row[f"{name}_group"] = None
        # Nothing is known to be better where nothing could be compared.
        groups, compared = found.groups(len(known)), found.compared(len(known))
        for index, group in zip(known[compared], groups[compared], strict=True):
            rows[index][f"{name}_group"] = int(group)
        yield from _pairs(found, name, [metrics[int(index)].name for index in known])


def _pairs(found: Differences, figure: str, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    columns = (found.difference, found.low, found.high, found.p, found.p_holm)
    for pair, (first, second) in enumerate(zip(found.first, found.second, strict=True)):
        values = (column[pair] for column in columns)
        yield {
            "figure": figure,
            "metric": names[first],
            "other": names[second],
            **dict(zip(("difference", "low", "high", "p", "p_holm"), values, strict=True)),
        }
