"""Read features in batches, prefetched by threads and as integer codes for a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cfqa_data.errors import MetricError
from cfqa_data.eval.features.batch import Features, first_nonfinite
from cfqa_data.eval.features.datasets import FeatureSource
from cfqa_data.loaders.ahead import read_ahead
from cfqa_data.loaders.torch.codes import CodeTensors

__all__ = ["Batch", "FeatureSource", "read_batches", "usual_size"]

# Size of a batch in bytes of float32. Small batches stay in a CPU's cache (up to three times as
# fast as 16 MB at 65 x 192); large ones use a GPU's cores.
CPU_BATCH_BYTES = 4 * 2**20
GPU_BATCH_BYTES = 256 * 2**20
# Size in bytes from which a feature is a batch of its own on a CPU, which saves copying it.
ALONE = 2**20
# Threads that read ahead for a GPU, or from the Hub, where latency dominates. On a CPU the metrics
# need the cores: reading files in parallel made evaluations of the published sizes 1.4 to 1.8 times
# slower on two cores.
THREADS = 4


@dataclass(frozen=True, eq=False)
class Batch:
    """Compressed versions of one original, on the device.

    Attributes:
        source_id: The ID of the original.
        rows: Label rows of the versions.
        names: Description of each version in error messages.
        x: The original, a batch of 1; the same object for all batches of a source.
        y: The versions.
        codecs: The codec of each version.
    """

    source_id: str
    rows: list[int]
    names: list[str]
    x: Features
    y: Features
    codecs: list[str]

    def parts(self, scope: str, size: int | None) -> list[Batch]:
        """Return the parts that a metric of a scope scores at once.

        Args:
            scope: One of `cfqa_data.eval.metrics.base.SCOPES`.
            size: Versions per part for the scope ``pair``; by default `usual_size`.
        """
        if scope == "source":
            return [self]
        if scope == "ladder":
            places = [
                [n for n, c in enumerate(self.codecs) if c == codec]
                for codec in dict.fromkeys(self.codecs)
            ]
        else:
            step = size or usual_size(self.x)
            places = [
                list(range(n, min(n + step, len(self.rows))))
                for n in range(0, len(self.rows), step)
            ]
        return [self._part(tuple(part)) for part in places]

    def _part(self, places: tuple[int, ...]) -> Batch:
        """Return the versions at some positions; the same cached object for the same positions."""
        if len(places) == len(self.rows):
            return self

        def select(values: Sequence[Any]) -> list[Any]:
            return [values[place] for place in places]

        def make() -> Batch:
            contiguous = places[-1] - places[0] + 1 == len(places)
            index: Any = slice(places[0], places[-1] + 1) if contiguous else list(places)
            y = Features(self.y.values[index])
            rows, names = select(self.rows), select(self.names)
            return Batch(self.source_id, rows, names, self.x, y, select(self.codecs))

        part: Batch = self.y.once(places, make)
        return part


def usual_size(x: Features) -> int:
    """Return the default number of versions per batch on the device of an original."""
    cpu, size = x.values.device.type == "cpu", 4 * x.values.numel()
    if cpu and size >= ALONE:
        return 1
    return max(1, (CPU_BATCH_BYTES if cpu else GPU_BATCH_BYTES) // size)


def read_batches(
    dataset: FeatureSource, rows: Sequence[int], device: str, size: int | None = None
) -> Iterator[Batch]:
    """Yield the features of some label rows in batches of one source, reading each original once.

    Args:
        dataset: The dataset to read.
        rows: Indices of rows of ``dataset.labels`` in any order.
        device: Torch device.
        size: Features per batch. By default a batch has at most 4 MiB on a CPU, where features of
            1 MiB or more are batches of their own, and 256 MiB on other devices.

    Raises:
        MetricError: If a feature has NaN or Inf, or its shape is not that of its original; the
            message names it.
    """
    columns = [dataset.labels[name].to_pylist() for name in ("source_id", "codec", "level")]
    keys = {row: (columns[0][row], columns[1][row], int(columns[2][row])) for row in rows}
    by_source: dict[str, list[int]] = {}
    for row, key in keys.items():
        by_source.setdefault(key[0], []).append(row)
    read = _reader(dataset, device)

    def jobs() -> Iterator[tuple[str, Features, list[int]]]:
        for source_id, of_source in by_source.items():
            original = np.array(dataset.original(source_id), dtype=np.float32)[None]
            values = torch.from_numpy(original)
            if first_nonfinite(values) is not None:  # on the host, to avoid a synchronisation
                raise MetricError(f"original {source_id} holds NaN or Inf")
            x = Features(values.to(device))
            step = size or usual_size(x)
            for first in range(0, len(of_source), step):
                yield source_id, x, of_source[first : first + step]

    def versions(job: tuple[str, Features, list[int]]) -> tuple[Any, ...]:
        return *job, [read(*keys[row]) for row in job[2]]

    ready: Iterator[tuple[Any, ...]] = map(versions, jobs())
    if device != "cpu" or getattr(dataset, "path", "") is None:  # None: it is read from the Hub
        ready = read_ahead(versions, jobs(), threads=THREADS, ahead=1)
    for source_id, x, part, arrays in ready:
        names = ["compressed feature {}, {}, level {}".format(*keys[row]) for row in part]
        for name, array in zip(names, arrays, strict=True):
            shape = getattr(array, "indices", array).shape
            if shape != x.shape[1:]:
                raise MetricError(f"{name}: its shape is {shape}, the original's {x.shape[1:]}")
        y = Features(_stacked(arrays, device))
        finite = bool(y.norms.isfinite().all())  # most metrics need the norms, too
        if not finite and (item := first_nonfinite(y.values)) is not None:
            raise MetricError(f"{names[item]} holds NaN or Inf")
        yield Batch(source_id, part, names, x, y, [keys[row][1] for row in part])


def _reader(dataset: FeatureSource, device: str) -> Callable[[str, str, int], Any]:
    """Return the function that reads compressed features, as integer codes for other devices."""
    codes, manifest = (getattr(dataset, name, None) for name in ("codes", "manifest"))
    if device == "cpu" or codes is None:
        return dataset.compressed
    tasks = manifest.tasks.values() if manifest else ()
    codecs = [codec for task in tasks for codec in task.codecs.values()]
    plain = {codec.name for codec in codecs if codec.quantizer is None}  # these store no codes

    def read(source_id: str, codec: str, level: int) -> Any:
        return (dataset.compressed if codec in plain else codes)(source_id, codec, level)

    return read


def _stacked(versions: list[Any], device: str) -> torch.Tensor:
    """Return arrays and codes as one float32 tensor (B, N, C, T, D) on the device."""
    if all(isinstance(version, np.ndarray) for version in versions):
        whole = versions[0][None] if len(versions) == 1 else np.stack(versions)
        return torch.from_numpy(np.require(whole, np.float32, "W")).to(device)
    return torch.stack(
        [
            _stacked([version], device)[0]
            if isinstance(version, np.ndarray)
            else CodeTensors.of(version).dequantize(device)
            for version in versions
        ]
    )
