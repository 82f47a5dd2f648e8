"""Labels of reconstructions in files that are named by their sources."""

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

    Of a batch, as many features are read at once as a build labels at once.

    Args:
        dataset: Whose originals they reconstruct.
        path: A folder of ``SOURCE.npy`` files, each one feature (N, C, T, D) or a batch of them; or
            a ``.safetensors`` file, or a folder of some, with a tensor per source.
        progress: Notified of every source; optional.

    Returns:
        One row per feature: ``task``, ``source_id``, ``version`` (its place in a batch), ``score``,
        ``distortion``, ``loss`` (null where the task has none), and ``mse``, ``cosine`` and ``cka``
        against the original (null where one is undefined).

    Raises:
        CfqaError: There are none, a name is no source's, or a feature is none of its original's
            shape.
    """
    progress = progress or Silent()
    sources = {s: name for name, e in dataset.manifest.tasks.items() for s in e.sources}
    found = list(_features(path))
    if not found:
        what = "contains no .npy or .safetensors file" if path.exists() else "does not exist"
        raise CfqaError(f"{path}: {what}")
    named: dict[str, str] = {}
    for where, source, _ in found:
        check_known("source", source, sources, CfqaError, where)
        if source in named:
            raise CfqaError(f"{where}: {source!r} is in {named[source]} too; remove one of them")
        named[source] = where
    rows: list[dict[str, Any]] = []
    order = {source: place for place, source in enumerate(sources)}
    progress.start("label", len(found), "sources")
    for where, source, read in sorted(found, key=lambda each: order[each[1]]):
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
    """Yield label and metrics of a feature, or of each of a batch, of which a part is read at once.

    Args:
        dataset: Whose heads score.
        source: That they reconstruct.
        original: Of the source.
        features: One, or a batch; slices of it are arrays.
    """
    check_shape(features, original.shape, f"{source!r}")
    count = len(features) if (several := len(features.shape) > original.ndim) else 1
    step = batch_of_levels(original.size, count)
    for first in range(0, count, step):
        part = features[first : first + step] if several else features[:]
        part, _ = as_features(part, original.shape, f"{source!r}")
        columns = label(dataset, source, part)._asdict() | baseline_values(original, part)
        for at in range(len(part)):
            known = {k: None if v is None else float(v[at]) for k, v in columns.items()}
            yield known | {name: None for name in BASELINES if np.isnan(columns[name][at])}


def _features(path: Path) -> Iterator[tuple[str, str, Any]]:
    """Yield file, source and a function that reads each array below a path.

    Raises:
        CfqaError: A file cannot be read.
    """
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
    """A tensor of a safetensors file, of which slices are read."""

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
