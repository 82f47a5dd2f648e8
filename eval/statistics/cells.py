"""Every figure of one cell: the points that are correlated together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cfqa_data.eval.statistics.bootstrap import interval, resampled_means
from cfqa_data.eval.statistics.comparison import Differences, compare, orientation
from cfqa_data.eval.statistics.correlations import COEFFICIENTS, coefficients, constant_rows
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
        scores: (M, n) scores.
        truth: (n,) labels, larger is worse.
        starts: (S,) where each source's points begin.
        per_source: (3, M, S) `coefficients` within each source.
        flat: (M, S) whether the metric is constant on the source.
        counts: (1 + R, S) resamples, the data itself first.
    """

    scores: Floats
    truth: Floats
    starts: NDArray[np.intp]
    per_source: Floats
    flat: NDArray[np.bool_]
    counts: Floats


def cell_of(scores: Floats, truth: Floats, counts: Floats) -> Cell:
    """Make a cell of (M, S, L) scores and (S, L) truth."""
    return Cell(
        scores=scores.reshape(len(scores), -1),
        truth=truth.ravel(),
        starts=np.arange(len(truth)) * truth.shape[1],
        per_source=coefficients(scores, truth),
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
        flat=np.concatenate([cell.flat for cell in cells], axis=1),
        counts=np.concatenate([cell.counts for cell in cells], axis=1),
    )


def cell_rows(
    cell: Cell, metrics: Sequence[Metric]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return one row of figures per metric, and one per coefficient and pair of metrics."""
    constant = np.isnan(cell.per_source[0, 0])
    valid = int((~constant).sum())
    means = resampled_means(cell.per_source, cell.counts)
    pooled = pooled_coefficients(cell.scores, cell.truth, cell.starts, cell.counts)
    counts = {
        "n_valid": valid,
        "n_constant": int(constant.sum()),
        "n_pooled": cell.truth.size,
    }
    rows: list[dict[str, Any]] = []
    for index, metric in enumerate(metrics):
        mapped = map_scores(cell.scores[index], cell.truth)
        rows.append(
            {
                "metric": metric.name,
                "lower_better": metric.lower_better,
                **counts,
                "n_flat": int((cell.flat[index] & ~constant).sum()),
                "mapped_plcc": mapped.plcc,
                "mapped_rmse": mapped.rmse,
                "mapping": mapped.kind,
            }
        )
    for prefix, figures, sources in (("", means, valid), ("pooled_", pooled, len(cell.starts))):
        # From a single source, every resample is the data.
        low, high = interval(figures if sources > 1 else figures[..., :1])
        for place, name in enumerate(COEFFICIENTS):
            for index, row in enumerate(rows):
                row[prefix + name] = figures[place, index, 0]
                row[f"{prefix}{name}_low"] = low[place, index]
                row[f"{prefix}{name}_high"] = high[place, index]
    comparisons = list(_compared(means, valid, metrics, rows))
    return rows, comparisons


def _compared(
    means: Floats, valid: int, metrics: Sequence[Metric], rows: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Yield the rows of comparisons; fill each metric's group into its row of figures."""
    signs = orientation([metric.lower_better for metric in metrics])
    known = np.flatnonzero(~np.isnan(signs))
    for place, name in enumerate(COEFFICIENTS):
        found = compare(signs[known, None] * means[place, known], valid)
        for row in rows:
            row[f"{name}_group"] = None
        # Nothing is known to be better where nothing could be compared.
        if not np.isnan(found.p_holm).any():
            for index, group in zip(known, found.groups(len(known)), strict=True):
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
