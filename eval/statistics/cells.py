"""Cells: sets of points that are correlated together, and their figures.

A cell is a codec of a task, a task with all its codecs, or all tasks together. Costly results are
computed on first access and cached.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cfqa_data.arrow import pa
from cfqa_data.errors import MetricError
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
from cfqa_data.eval.statistics.grids import Grid, read_grids, truths
from cfqa_data.eval.statistics.mapping import Mapped, map_scores
from cfqa_data.eval.statistics.pooled import MAX_DRAWS, pooled_coefficients

if TYPE_CHECKING:
    from cfqa_data.eval.metrics import Metric

__all__ = ["Cell", "Cells", "TaskCells", "arrange", "cell_comparisons", "cell_figures"]

Floats = NDArray[np.float64]
NO_MAPPING = Mapped(np.nan, np.nan, None, np.asarray)
"""Result of the mapping if there is no score."""


@dataclass(frozen=True)
class Cell:
    """The n points of S sources, grouped by source, with the scores of M metrics.

    Attributes:
        scores: (M, n) scores; NaN where missing.
        truth: (n,) labels, larger is worse.
        sizes: (S,) number of points of each source.
        per_source: (3, M, S) `coefficients` within each source.
        constant: (S,) whether the label is constant on the source.
        flat: (M, S) whether the metric is constant on the source.
        groups: (S,) index of the group with which each source is resampled.
        counts: (1 + R, S) bootstrap counts, the data itself first.
    """

    scores: Floats
    truth: Floats
    sizes: NDArray[np.intp]
    per_source: Floats
    constant: NDArray[np.bool_]
    flat: NDArray[np.bool_]
    groups: NDArray[np.intp]
    counts: Floats

    @classmethod
    def of(cls, scores: Floats, truth: Floats, groups: NDArray[np.intp], counts: Floats) -> Cell:
        """Make a cell from (M, S, L) scores and (S, L) labels."""
        return cls(
            scores=scores.reshape(len(scores), -1),
            truth=truth.ravel(),
            sizes=np.full(len(truth), truth.shape[1]),
            per_source=coefficients(scores, truth),
            constant=constant_rows(truth),
            flat=constant_rows(scores),
            groups=groups,
            counts=counts,
        )

    @property
    def starts(self) -> NDArray[np.intp]:
        """Index of the first point of each source, (S,)."""
        return np.cumsum(self.sizes) - self.sizes

    @cached_property
    def pooled(self) -> Floats:
        """Coefficients of all points, (3, M, 1 + R), for the data and each bootstrap sample.

        R is at most `MAX_DRAWS`. Points without a score are left out; NaN if there is no score.
        """
        counts = self.counts[: 1 + MAX_DRAWS]
        result = np.full((3, len(self.scores), len(counts)), np.nan)
        for rows, points in equal_rows(~np.isnan(self.scores)):
            sizes = np.add.reduceat(points, self.starts, dtype=np.intp)
            present = sizes > 0
            if present.any():
                scores = np.compress(points, self.scores[rows], axis=1)
                starts = np.cumsum(sizes[present]) - sizes[present]
                result[:, rows] = pooled_coefficients(
                    scores, self.truth[points], starts, counts[:, present]
                )
        return result

    @cached_property
    def mapped(self) -> list[Mapped]:
        """The logistic mapping of each metric."""
        return [
            map_scores(scores[present], self.truth[present]) if present.any() else NO_MAPPING
            for scores, present in zip(self.scores, ~np.isnan(self.scores), strict=True)
        ]

    def select(self, metrics: Sequence[int]) -> Cell:
        """Return the cell of some metrics, with the cached results of the whole."""
        part = replace(
            self,
            scores=self.scores[metrics],
            per_source=self.per_source[:, metrics],
            flat=self.flat[metrics],
        )
        if "pooled" in vars(self):
            vars(part)["pooled"] = self.pooled[:, metrics]
        return part


@dataclass(frozen=True)
class TaskCells:
    """The cells of a task, which are made on first access.

    Attributes:
        grid: Position of its points in the labels.
        scores: (M, S, V) scores of all metrics; NaN where missing.
        plain: Indices of the metrics in the cells: those without ``left_out``.
        truth: (S, V) labels, larger is worse.
        counts: (1 + R, S) bootstrap counts.
    """

    grid: Grid
    scores: Floats
    plain: NDArray[np.intp]
    truth: Floats
    counts: Floats

    @cached_property
    def whole(self) -> Cell:
        """The cell of all codecs together."""
        return self.cell(slice(None))

    @cached_property
    def codecs(self) -> dict[str, Cell]:
        """The cell of each codec."""
        return {codec: self.cell(versions) for codec, versions in self.grid.codecs.items()}

    def cell(self, versions: slice) -> Cell:
        """Return the cell of some versions."""
        scores, truth = self.scores[self.plain][:, :, versions], self.truth[:, versions]
        return Cell.of(scores, truth, self.grid.groups, self.counts)


@dataclass(frozen=True)
class Cells:
    """All tasks of an evaluation."""

    tasks: tuple[TaskCells, ...]

    @cached_property
    def together(self) -> Cell:
        """The cell of the sources of all tasks.

        To be comparable across tasks, a label is replaced by its percentile within the task: the
        share of points below it, ties counting half. Sources are resampled within each task, and
        the coefficients within a source are unchanged.
        """
        cells = [task.whole for task in self.tasks]
        truths = [(average_ranks(cell.truth) - 0.5) / cell.truth.size for cell in cells]
        joined = {
            part.name: np.concatenate([getattr(cell, part.name) for cell in cells], axis=-1)
            for part in fields(Cell)
        }
        groups = [cell.groups.max() + 1 for cell in cells]
        before = np.cumsum(groups) - groups
        joined["groups"] += np.repeat(before, [len(cell.groups) for cell in cells])
        return Cell(**joined | {"truth": np.concatenate(truths)})


def arrange(
    labels: pa.Table,
    metrics: Sequence[Metric],
    values: NDArray[Any],
    target: str,
    draws: int,
    seed: int,
) -> Cells:
    """Arrange scores by task for the statistics; see `cfqa_data.eval.statistics.statistics`.

    Raises:
        MetricError: If a source lacks levels that other sources have, a label is NaN or Inf, a
            score is Inf, or draws or seed is negative.
    """
    for name, value in (("draws", draws), ("seed", seed)):
        if value < 0:
            raise MetricError(f"{name} must be at least 0, not {value}")
    plain = np.array([n for n, one in enumerate(metrics) if one.left_out is None], np.intp)
    tasks = []
    for grid in read_grids(labels):
        scores = np.moveaxis(np.asarray(values, dtype=np.float64)[grid.rows], -1, 0)
        truth = truths(grid, labels, target)
        for number in plain:
            if (bad := np.isinf(scores[number]).ravel()).any():
                name = grid.name(int(bad.argmax()))
                raise MetricError(f"{metrics[number].name}: the score of {name} is Inf")
        tasks.append(TaskCells(grid, scores, plain, truth, grid.draw(draws, seed)))
    return Cells(tuple(tasks))


def cell_figures(cell: Cell) -> Rows:
    """Return the columns of figures, a row per metric, without the groups."""
    valid = ~np.isnan(cell.per_source[0])  # (M, S)
    present = ~np.isnan(cell.scores)  # (M, n)
    scored = np.logical_or.reduceat(present, cell.starts, axis=1)  # (M, S)
    means = np.full((3, len(valid), len(cell.counts)), np.nan)
    for rows, _ in equal_rows(valid):
        means[:, rows] = resampled_means(cell.per_source[:, rows], cell.counts)
    versions = np.unique(cell.sizes)
    columns: Rows = {
        "n_versions": versions[0] if len(versions) == 1 else None,
        "n_valid": valid.sum(axis=1),
        "n_constant": cell.constant.sum(),
        "n_missing": (~valid & ~cell.constant).sum(axis=1),
        "n_flat": (cell.flat & ~cell.constant).sum(axis=1),
        "n_pooled": present.sum(axis=1),
        "mapped_plcc": [fit.plcc for fit in cell.mapped],
        "mapped_rmse": [fit.rmse for fit in cell.mapped],
        "mapping": [fit.kind for fit in cell.mapped],
    }
    for prefix, figures, sources in (("", means, valid), ("pooled_", cell.pooled, scored)):
        low, high = interval(figures)
        # With a single group, every bootstrap sample is the data.
        single = [len(np.unique(cell.groups[row])) < 2 for row in sources]
        low[:, single] = high[:, single] = np.nan
        for place, name in enumerate(COEFFICIENTS):
            columns[prefix + name] = figures[place, :, 0]
            columns |= {f"{prefix}{name}_low": low[place], f"{prefix}{name}_high": high[place]}
    return columns


def cell_comparisons(
    cell: Cell, names: NDArray[np.object_], signs: Floats, intervals: bool = True
) -> tuple[Rows, list[Rows]]:
    """Compare all pairs of metrics by each coefficient.

    Args:
        cell: The cell.
        names: (M,) names of the metrics.
        signs: (M,) `orientation` of the metrics.
        intervals: Whether to compute the intervals of the differences.

    Returns:
        The number of significantly better metrics for each metric, by coefficient, and the rows of
        the table ``comparisons``.
    """
    known = np.flatnonzero(~np.isnan(signs))
    names = names[known]
    groups, comparisons = {}, []
    for name, coefficient in zip(COEFFICIENTS, cell.per_source, strict=True):
        oriented = signs[known, None] * coefficient[known]
        differences = compare(oriented, cell.counts, cell.groups, intervals=intervals)
        # The group is unknown if nothing could be compared.
        compared = differences.compared(len(known))
        groups[f"{name}_group"] = column = np.full(len(signs), np.nan)
        column[known[compared]] = differences.groups(len(known))[compared]
        pairs = {"metric": names[differences.first], "other": names[differences.second]}
        comparisons.append({"figure": name, **pairs, **differences._asdict()})
    return groups, comparisons
