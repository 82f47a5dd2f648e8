"""Grids: the label rows of a task, arranged as sources by versions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from cfqa_data.arrow import pa
from cfqa_data.errors import MetricError
from cfqa_data.eval.statistics.bootstrap import source_counts

__all__ = ["Grid", "check_labels", "read_grids", "truths"]


@dataclass(frozen=True)
class Grid:
    """The compressed features of a task as a grid of sources by versions.

    Attributes:
        task: Name of the task.
        sources: S source ids, sorted.
        groups: (S,) index of each source's group; a source without a group has its own.
        versions: V pairs of codec and level, codecs in the order of the labels, levels sorted.
        rows: (S, V) row numbers in the labels.
    """

    task: str
    sources: tuple[str, ...]
    groups: NDArray[np.intp]
    versions: tuple[tuple[str, int], ...]
    rows: NDArray[np.intp]

    @property
    def codecs(self) -> dict[str, slice]:
        """The slice of versions of each codec."""
        names = [codec for codec, _ in self.versions]
        return {
            codec: slice(names.index(codec), names.index(codec) + names.count(codec))
            for codec in dict.fromkeys(names)
        }

    def draw(self, draws: int, seed: int) -> NDArray[np.float64]:
        """Draw bootstrap samples of the sources by group, (1 + draws, S) counts."""
        counts = source_counts(int(self.groups.max()) + 1, draws, seed, self.task)
        return counts[:, self.groups]

    def name(self, position: int) -> str:
        """Return the name of the feature at a position of the flattened grid, for messages."""
        source, version = divmod(position, len(self.versions))
        codec, level = self.versions[version]
        return f"{self.sources[source]}, {codec}, level {level}"


def read_grids(labels: pa.Table) -> Iterator[Grid]:
    """Yield the grid of each task, in the order of the labels.

    Raises:
        MetricError: If a source lacks a codec or level that others have, or a row occurs twice.
    """
    tasks, *key = (labels[name].to_pylist() for name in ("task", "source_id", "codec", "level"))
    keys = list(zip(*key, strict=True))
    known = labels["group"].to_pylist() if "group" in labels.column_names else [None] * len(keys)
    for task in dict.fromkeys(tasks):
        rows = [row for row, name in enumerate(tasks) if name == task]
        cells = {keys[row]: row for row in rows}
        sources = sorted({source for source, _, _ in cells})
        order = {codec: number for number, codec in enumerate(dict.fromkeys(k[1] for k in cells))}
        versions = sorted({key[1:] for key in cells}, key=lambda v: (order[v[0]], v[1]))
        for source, (codec, level) in product(sources, versions):
            if (source, codec, level) not in cells:
                raise MetricError(
                    f"labels of {task}: {source} has no row for codec {codec}, level {level}; "
                    "all sources need the same codecs and levels"
                )
        if len(rows) != len(cells):
            raise MetricError(f"labels of {task}: {len(rows) - len(cells)} rows occur twice")
        grid = np.array([[cells[source, *v] for v in versions] for source in sources], np.intp)
        firsts = zip(grid[:, 0], sources, strict=True)
        names = [(known[row] is None, known[row] or source) for row, source in firsts]
        numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
        groups = np.array([numbers[name] for name in names])
        yield Grid(task, tuple(sources), groups, tuple(versions), grid)


def check_labels(labels: pa.Table, target: str) -> None:
    """Check that scores can be correlated with labels, before anything is scored.

    Raises:
        MetricError: If a source lacks levels that other sources have, or a label is missing, NaN or
            Inf.
    """
    for grid in read_grids(labels):
        truths(grid, labels, target)


def truths(grid: Grid, labels: pa.Table, target: str) -> NDArray[np.float64]:
    """Return the labels of a task, (S, V) float64, larger is worse."""
    column = labels[target]
    if target == "loss" and column.take(grid.rows.ravel()).null_count == grid.rows.size:
        raise MetricError(
            f"task {grid.task} has no loss: use the distortion, or leave the task out"
        )
    try:
        truth = np.asarray(column.to_numpy().astype(np.float64)[grid.rows])
    except (TypeError, ValueError):
        raise MetricError(f"the labels in column {target!r} are not numbers") from None
    bad = np.flatnonzero(~np.isfinite(truth))
    if bad.size:
        raise MetricError(f"the {target} of {grid.name(int(bad[0]))} is missing, NaN or Inf")
    return truth
