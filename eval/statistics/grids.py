"""The label rows of a task as an array: sources by codecs by levels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cfqa_data.errors import MetricError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Grid", "read_grids"]


@dataclass(frozen=True)
class Grid:
    """Where the compressed features of a task are in the labels.

    Attributes:
        task: The task.
        sources: S source ids, sorted.
        codecs: K codecs, in the labels' order.
        levels: L levels, sorted.
        rows: (S, K, L) row numbers.
    """

    task: str
    sources: tuple[str, ...]
    codecs: tuple[str, ...]
    levels: tuple[int, ...]
    rows: NDArray[np.intp]

    def name(self, position: int) -> str:
        """Return in words which feature is at a position of the flattened grid."""
        source, codec, level = np.unravel_index(position, self.rows.shape)
        return f"{self.sources[source]}, {self.codecs[codec]}, level {self.levels[level]}"


def read_grids(labels: pa.Table) -> Iterator[Grid]:
    """Yield the grid of each task, in the labels' order.

    Raises:
        MetricError: A source lacks a codec or level that others have, or a row is there twice.
    """
    columns = {name: labels[name].to_pylist() for name in ("task", "source_id", "codec", "level")}
    for task in dict.fromkeys(columns["task"]):
        rows = [row for row, name in enumerate(columns["task"]) if name == task]
        cells = {
            (columns["source_id"][row], columns["codec"][row], columns["level"][row]): row
            for row in rows
        }
        sources, codecs, levels = (list(dict.fromkeys(axis)) for axis in zip(*cells, strict=True))
        sources.sort()
        levels.sort()
        full = [(s, k, v) for s in sources for k in codecs for v in levels]
        for cell in full:
            if cell not in cells:
                raise MetricError(
                    f"labels of {task}: {cell[0]} has no row for codec {cell[1]}, level {cell[2]}; "
                    "all sources need the same codecs and levels"
                )
        if len(rows) != len(full):
            raise MetricError(f"labels of {task}: {len(rows) - len(full)} rows are there twice")
        grid = np.array([cells[cell] for cell in full], dtype=np.intp)
        shape = (len(sources), len(codecs), len(levels))
        yield Grid(task, tuple(sources), tuple(codecs), tuple(levels), grid.reshape(shape))
