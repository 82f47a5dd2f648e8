"""A small dataset in memory that counts its reads, for tests of the evaluator."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa

TASKS = {"cls": (1, 1, 5, 8), "seg": (2, 1, 4, 8)}
CODECS = ("x265", "vvenc")
LEVELS = 10


class MemoryDataset:
    """Features with noise that grows with the level, twice as fast for vvenc; labels follow it."""

    def __init__(self, sources: int = 3, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.originals: dict[str, np.ndarray] = {}
        self.versions: dict[tuple[str, str, int], np.ndarray] = {}
        self.reads: Counter[Any] = Counter()
        rows = []
        for task, shape in TASKS.items():
            for codec in CODECS:  # the outer loop, so that the rows of a source are not adjacent
                for index in range(sources):
                    source = f"{task}-{index}"
                    x = self.originals.setdefault(source, rng.normal(size=shape).astype("f4"))
                    for level in range(LEVELS):
                        size = 0.05 * (level + 1) * (1 + (codec == "vvenc"))
                        y = (x + size * rng.normal(size=shape)).astype("f4")
                        self.versions[source, codec, level] = y
                        distortion = 0.0 if index == 0 else size**2 + 0.01 * rng.normal()
                        rows.append((task, source, codec, level, distortion, size))
        names = ("task", "source_id", "codec", "level", "distortion", "loss")
        columns = dict(zip(names, zip(*rows, strict=True), strict=True))
        self.labels = pa.table({name: list(column) for name, column in columns.items()})

    def original(self, source_id: str) -> np.ndarray:
        self.reads[source_id] += 1
        return self.originals[source_id]

    def compressed(self, source_id: str, codec: str, level: int) -> np.ndarray:
        self.reads[source_id, codec, level] += 1
        return self.versions[source_id, codec, level]


class FoldedDataset(MemoryDataset):
    """A memory dataset with a fold per source."""

    def __init__(self, sources: int = 4, folds: int = 2) -> None:
        super().__init__(sources)
        numbers = [int(name.split("-")[1]) % folds for name in self.labels["source_id"].to_pylist()]
        self.labels = self.labels.append_column("fold", pa.array(numbers))


class InterruptAfter:
    """A progress listener that raises KeyboardInterrupt after some features."""

    def __init__(self, after: int) -> None:
        self.left = after

    def start(self, stage: str, total: int, unit: str) -> None:
        pass

    def advance(self, n: int = 1) -> None:
        self.left -= n
        if self.left < 0:
            raise KeyboardInterrupt

    def finish(self) -> None:
        pass


def rows_of(table: pa.Table, **where: Any) -> list[dict[str, Any]]:
    return [row for row in table.to_pylist() if all(row[k] == v for k, v in where.items())]
