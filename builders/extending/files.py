"""Label reconstructions in files that are named after their sources."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from safetensors import SafetensorError, safe_open

from cfqa_data.access.dataset import Dataset
from cfqa_data.arrow import pa
from cfqa_data.builders.extending.labelling import as_features, check_shape, label
from cfqa_data.builders.pipeline.label import baseline_values, batch_of_levels
from cfqa_data.builders.sources.files import names_in, reason
from cfqa_data.console.progress import Progress, Silent
from cfqa_data.errors import CfqaError, check_known
from cfqa_data.format.schema import BASELINES

__all__ = ["label_files"]


def label_files(dataset: Dataset, path: Path, *, progress: Progress | None = None) -> pa.Table:
    """Score reconstructions in files with the dataset's own heads.

    Batches are read in parts of as many features as a build labels at once.

    Args:
        dataset: Dataset whose originals are reconstructed.
        path: A folder of ``SOURCE.npy`` files, each a feature (N, C, T, D) or a batch of them; or
            a ``.safetensors`` file, or a folder of such files, with a tensor per source.
        progress: Display that is notified of every source; None shows nothing.

    Returns:
        One row per feature: ``task``, ``source_id``, ``version`` (its index in a batch), ``score``,
        ``distortion``, ``loss`` (null if the task has none), and ``mse``, ``cosine`` and ``cka``
        against the original (null if undefined).

    Raises:
        CfqaError: If there are no files, a name is not that of a source, or a feature has another
            shape than its original.
    """
    progress = progress or Silent()
    sources = {s: name for name, e in dataset.manifest.tasks.items() for s in e.sources}
    features = list(_features(path))
    if not features:
        what = "contains no .npy or .safetensors file" if path.exists() else "does not exist"
        raise CfqaError(f"{path}: {what}")
    named: dict[str, str] = {}
    for where, source, _ in features:
        check_known("source", source, sources, CfqaError, where)
        if source in named:
            raise CfqaError(f"{where}: {source!r} is in {named[source]} too; remove one of them")
        named[source] = where
    rows: list[dict[str, Any]] = []
    order = {source: index for index, source in enumerate(sources)}
    progress.start("label", len(features), "sources")
    for where, source, read in sorted(features, key=lambda each: order[each[1]]):
        original = dataset.original(source)
        try:
            for version, values in enumerate(_values(dataset, source, original, read())):
                about = {"task": sources[source], "source_id": source, "version": version}
                rows.append(about | values)
        except (CfqaError, OSError, OverflowError, ValueError) as error:
            raise CfqaError(f"{where}: {reason(error)}") from None
        progress.advance()
    progress.finish()
    return pa.Table.from_pylist(rows)


def _values(
    dataset: Dataset, source: str, original: np.ndarray, features: Any
) -> Iterator[dict[str, float | None]]:
    """Yield label and baseline metrics of a feature or batch, which is read by slicing."""
    check_shape(features, original.shape, f"{source!r}")
    count = len(features) if (several := len(features.shape) > original.ndim) else 1
    step = batch_of_levels(original.size, count)
    for first in range(0, count, step):
        part = features[first : first + step] if several else features[:]
        part, _ = as_features(part, original.shape, f"{source!r}")
        columns = label(dataset, source, part)._asdict() | baseline_values(original, part)
        for index in range(len(part)):
            row = {k: None if v is None else float(v[index]) for k, v in columns.items()}
            yield row | {name: None for name in BASELINES if np.isnan(columns[name][index])}


def _features(path: Path) -> Iterator[tuple[str, str, Any]]:
    """Yield the file, the source and a function that opens the array, for each array at a path."""
    files = [path / name for name in names_in(path)] if path.is_dir() else [path]
    for file in files:
        if file.suffix == ".npy":
            yield str(file), file.stem, partial(open_memmap, file, "r")
        elif file.suffix == ".safetensors":
            try:
                with safe_open(file, framework="numpy") as tensors:
                    names = sorted(tensors.keys())
            except (OSError, SafetensorError) as error:
                raise CfqaError(f"{file}: cannot be read ({reason(error, file)})") from None
            for name in names:
                yield str(file), name, partial(_Tensor, file, name)


class _Tensor:
    """Tensor in a safetensors file that is read in slices."""

    def __init__(self, file: Path, name: str) -> None:
        self._file, self._name = file, name
        with self._open() as tensor:
            self.shape, self.dtype = tuple(tensor.get_shape()), tensor.get_dtype()

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, part: slice) -> Any:
        with self._open() as tensor:
            return tensor[part]

    @contextmanager
    def _open(self) -> Iterator[Any]:
        try:
            with safe_open(self._file, framework="pt") as tensors:  # NumPy has no bfloat16
                yield tensors.get_slice(self._name)
        except (SafetensorError, TypeError) as error:
            raise ValueError(f"{self._name!r} cannot be read ({error})") from None
