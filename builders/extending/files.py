"""Labels of reconstructions in files that are named by their sources."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cfqa_data.access.dataset import Dataset
from cfqa_data.builders.extending.labelling import as_features, label
from cfqa_data.builders.pipeline.label import BASELINES, baseline_values
from cfqa_data.builders.sources.files import names_in, reason
from cfqa_data.console.progress import Progress, Silent
from cfqa_data.errors import CfqaError, unknown_name

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["label_files"]


def label_files(dataset: Dataset, path: Path, *, progress: Progress | None = None) -> pa.Table:
    """Score reconstructions in files with the dataset's own heads; one file is read at a time.

    Args:
        dataset: whose originals they reconstruct.
        path: a folder of ``SOURCE.npy`` files, each one feature (N, C, T, D) or a batch of them; or
            a ``.safetensors`` file, or a folder of some, with a tensor per source.
        progress: notified of every source; optional.

    Returns:
        One row per feature: ``task``, ``source_id``, ``version`` (its place in a batch), ``score``,
        ``distortion``, ``loss`` (null where the task has none), and ``mse``, ``cosine`` and ``cka``
        against the original (null where one is undefined).

    Raises:
        CfqaError: there are none, a name is no source's, or a feature is none of its original's
            shape.
    """
    import pyarrow as pa

    progress = progress or Silent()
    sources = {s: name for name, e in dataset.manifest.tasks.items() for s in e.sources}
    found = list(_features(path))
    if not found:
        raise CfqaError(f"{path}: holds no .npy or .safetensors file")
    named: dict[str, str] = {}
    for where, source, _ in found:
        if source not in sources:
            raise CfqaError(f"{where}: {unknown_name('source', source, sources)}")
        if source in named:
            raise CfqaError(f"{where}: {source!r} is in {named[source]} too; keep one of them")
        named[source] = where
    rows: list[dict[str, Any]] = []
    order = {source: place for place, source in enumerate(sources)}
    progress.start("label", len(found), "sources")
    for where, source, read in sorted(found, key=lambda each: order[each[1]]):
        original = dataset.original(source)
        try:
            batch = as_features(read(), original.shape, f"{source!r}")
            values = label(dataset, source, batch)
        except (CfqaError, OSError, ValueError) as error:
            raise CfqaError(f"{where}: {reason(error)}") from None
        columns = values._asdict() | baseline_values(original, batch)
        for version in range(len(batch)):
            known = {k: None if v is None else float(v[version]) for k, v in columns.items()}
            known |= {n: None for n in BASELINES if np.isnan(columns[n][version])}
            rows.append({"task": sources[source], "source_id": source, "version": version, **known})
        progress.advance()
    progress.finish()
    return pa.Table.from_pylist(rows)


def _features(path: Path) -> Iterator[tuple[str, str, Any]]:
    """Yield file, source and a function that reads each array below a path.

    Raises:
        CfqaError: a file cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    files = [path / name for name in names_in(path)] if path.is_dir() else [path]
    for file in files:
        if file.suffix == ".npy":
            yield str(file), file.stem, lambda file=file: np.load(file, allow_pickle=False)
        elif file.suffix == ".safetensors":
            try:
                with safe_open(file, framework="numpy") as tensors:
                    names = sorted(tensors.keys())
            except (OSError, SafetensorError) as error:
                raise CfqaError(f"{file}: cannot be read ({reason(error, file)})") from None
            for name in names:
                yield str(file), name, lambda file=file, name=name: _tensor(file, name)


def _tensor(file: Path, name: str) -> np.ndarray:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as tensors:
            found: np.ndarray = tensors.get_tensor(name)
            return found
    except (SafetensorError, TypeError) as error:
        raise ValueError(f"{name!r} cannot be read ({error})") from None
