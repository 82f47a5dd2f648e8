"""The cells of an evaluation: the points that are correlated together, and what follows of them.

A cell is a codec of a task, a task with all its codecs, or all tasks together. What takes long to
compute of one is computed once, when it is asked for.
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
from cfqa_data.eval.statistics.pooled import MOST_DRAWS, pooled_coefficients

if TYPE_CHECKING:
    from cfqa_data.eval.metrics import Metric

__all__ = ["Cell", "Cells", "TaskCells", "arrange", "cell_comparisons", "cell_figures"]

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

    @classmethod
    def of(cls, scores: Floats, truth: Floats, groups: NDArray[np.intp], counts: Floats) -> Cell:
        """Make a cell of (M, S, L) scores and (S, L) truth."""
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
        """Where each source's points begin, (S,)."""
        return np.cumsum(self.sizes) - self.sizes

    @cached_property
    def pooled(self) -> Floats:
        """Coefficients of all points that a metric has scores of, (3, M, 1 + R) on each resample.

        R is `MOST_DRAWS` at most; NaN where there is no score.
        """
        counts = self.counts[: 1 + MOST_DRAWS]
        found = np.full((3, len(self.scores), len(counts)), np.nan)
        for which, points in equal_rows(~np.isnan(self.scores)):
            sizes = np.add.reduceat(points, self.starts, dtype=np.intp)
            here = sizes > 0
            if here.any():
                scores = np.compress(points, self.scores[which], axis=1)
                begins = np.cumsum(sizes[here]) - sizes[here]
                found[:, which] = pooled_coefficients(
                    scores, self.truth[points], begins, counts[:, here]
                )
        return found

    @cached_property
    def mapped(self) -> list[Mapped]:
        """What correlates of each metric after the mapping."""
        return [
            map_scores(scores[here], self.truth[here]) if here.any() else NOTHING
            for scores, here in zip(self.scores, ~np.isnan(self.scores), strict=True)
        ]

    def select(self, metrics: Sequence[int]) -> Cell:
        """Return the cell of some metrics; what was computed of all stays."""
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
    """A task, whose cells are made when they are asked for.

    Attributes:
        grid: Where its points are in the labels.
        scores: (M, S, V) scores of all metrics, NaN where there is none.
        plain: Which of the metrics the cells hold: those without ``left_out``.
        truth: (S, V) labels.
        counts: (1 + R, S) resamples.
    """

    grid: Grid
    scores: Floats
    plain: NDArray[np.intp]
    truth: Floats
    counts: Floats

    @cached_property
    def whole(self) -> Cell:
        """All codecs together."""
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
        """The sources of all tasks.

        The truth becomes the share of a task's points below each, ties counting half: comparable
        across tasks. Each keeps its own resamples: sources are drawn within each task, and what is
        correlated within a source stays as it was.
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
    """Arrange scores for what is computed of them; see `cfqa_data.eval.statistics.statistics`.

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
                where = grid.name(int(bad.argmax()))
                raise MetricError(f"{metrics[number].name}: the score of {where} is Inf")
        tasks.append(TaskCells(grid, scores, plain, truth, grid.draw(draws, seed)))
    return Cells(tuple(tasks))


def cell_figures(cell: Cell) -> Rows:
    """Return a row of figures per metric, but for its group."""
    valid = ~np.isnan(cell.per_source[0])  # (M, S)
    present = ~np.isnan(cell.scores)  # (M, n)
    scored = np.logical_or.reduceat(present, cell.starts, axis=1)  # (M, S): sources with a score
    means = np.full((3, len(valid), len(cell.counts)), np.nan)
    for which, _ in equal_rows(valid):
        means[:, which] = resampled_means(cell.per_source[:, which], cell.counts)
    versions = np.unique(cell.sizes)
    found: Rows = {
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
