"""Compute all figures of one cell, that is, of the points that are correlated together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from cfqa_data.eval.statistics.bootstrap import interval, resampled_means
from cfqa_data.eval.statistics.columns import Rows
from cfqa_data.eval.statistics.comparison import compare
from cfqa_data.eval.statistics.correlations import (
    COEFFICIENTS,
    average_ranks,
    coefficients,
    constant_rows,
    equal_rows,
)
from cfqa_data.eval.statistics.mapping import Mapped, map_scores
from cfqa_data.eval.statistics.pooled import MOST_DRAWS, pooled_coefficients

__all__ = ["Cell", "cell_comparisons", "cell_figures", "cell_of", "join_cells"]

Floats = NDArray[np.float64]
NOTHING = Mapped(np.nan, np.nan, None, np.asarray)
"""What correlates where there is no score."""


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


def join_cells(cells: Sequence[Cell]) -> Cell:
    """Put the sources of several tasks together.

    The truth becomes the share of a task's points below each, ties counting half: comparable across
    tasks. Each keeps its own resamples: sources are drawn within each cell, and what is correlated
    within a source stays as it was.
    """
    truths = [(average_ranks(cell.truth[None])[0] - 0.5) / cell.truth.size for cell in cells]
    joined = {
        part.name: np.concatenate([getattr(cell, part.name) for cell in cells], axis=-1)
        for part in fields(Cell)
    }
    groups = [cell.groups.max() + 1 for cell in cells]
    before = np.cumsum(groups) - groups
    joined["groups"] += np.repeat(before, [len(cell.groups) for cell in cells])
    return Cell(**joined | {"truth": np.concatenate(truths)})


def cell_figures(cell: Cell) -> Rows:
    """Return a row of figures per metric, but for its group."""
    valid = ~np.isnan(cell.per_source[0])  # (M, S)
    present = ~np.isnan(cell.scores)  # (M, n)
    scored = np.zeros_like(valid)  # (M, S): sources with a score
    counts = cell.counts[: 1 + MOST_DRAWS]
    means = np.full((3, len(valid), len(cell.counts)), np.nan)
    pooled = np.full((3, len(valid), len(counts)), np.nan)
    for which, _ in equal_rows(valid):
        means[:, which] = resampled_means(cell.per_source[:, which], cell.counts)
    starts = np.cumsum(cell.sizes) - cell.sizes
    for which, points in equal_rows(present):
        sizes = np.add.reduceat(points, starts, dtype=np.intp)
        scored[which] = nonempty = sizes > 0
        if nonempty.any():
            scores, truth = np.compress(points, cell.scores[which], axis=1), cell.truth[points]
            begins = np.cumsum(sizes[nonempty]) - sizes[nonempty]
            pooled[:, which] = pooled_coefficients(scores, truth, begins, counts[:, nonempty])
    versions = np.unique(cell.sizes)
    mapped = [
        map_scores(scores[here], cell.truth[here]) if here.any() else NOTHING
        for scores, here in zip(cell.scores, present, strict=True)
    ]
    found: Rows = {
        "n_versions": versions[0] if len(versions) == 1 else None,
        "n_valid": valid.sum(axis=1),
        "n_constant": cell.constant.sum(),
        "n_missing": (~valid & ~cell.constant).sum(axis=1),
        "n_flat": (cell.flat & ~cell.constant).sum(axis=1),
        "n_pooled": present.sum(axis=1),
        "mapped_plcc": [fit.plcc for fit in mapped],
        "mapped_rmse": [fit.rmse for fit in mapped],
        "mapping": [fit.kind for fit in mapped],
    }
    for prefix, figures, sources in (("", means, valid), ("pooled_", pooled, scored)):
        low, high = interval(figures)
        # From a single group, every resample is the data.
        alone = [len(np.unique(cell.groups[row])) < 2 for row in sources]
        low[:, alone] = high[:, alone] = np.nan
        for place, name in enumerate(COEFFICIENTS):
            found[prefix + name] = figures[place, :, 0]
            found |= {f"{prefix}{name}_low": low[place], f"{prefix}{name}_high": high[place]}
    return found


def cell_comparisons(
    cell: Cell, names: NDArray[np.object_], signs: Floats, intervals: bool = True
) -> tuple[Rows, list[Rows]]:
    """Return each metric's groups, and the rows of comparisons of its pairs by each coefficient.

    Groups need no intervals.
    """
    known = np.flatnonzero(~np.isnan(signs))
    names = names[known]
    groups, comparisons = {}, []
    for name, coefficient in zip(COEFFICIENTS, cell.per_source, strict=True):
        oriented = signs[known, None] * coefficient[known]
        found = compare(oriented, cell.counts, cell.groups, intervals=intervals)
        # Nothing is known to be better where nothing could be compared.
        compared = found.compared(len(known))
        groups[f"{name}_group"] = column = np.full(len(signs), np.nan)
        column[known[compared]] = found.groups(len(known))[compared]
        pairs = {"metric": names[found.first], "other": names[found.second]}
        comparisons.append({"figure": name, **pairs, **found._asdict()})
    return groups, comparisons
