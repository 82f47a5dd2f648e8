"""A map-style PyTorch dataset of original and compressed features with labels."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import numpy as np
import torch
import torch.utils.data
from torch import Tensor

from cfqa_data.access.dataset import Dataset, LoadOptions, opened
from cfqa_data.errors import CfqaError, unknown_name
from cfqa_data.loaders.torch.codes import CodeTensors

__all__ = ["Pair", "Pairs"]


class Pair(NamedTuple):
    """An item of `Pairs`, or a batch of items with a leading batch axis.

    Attributes:
        original: Original feature, float32 (N, C, T, D). In a batch of features with different
            numbers of tokens, a list of them.
        compressed: Compressed feature, float32 (N, C, T, D), or its codes. Batched like `original`.
        label: Value of the label column, a scalar tensor of the column's dtype; for several
            columns, a dict of them. Strings are not converted.
    """

    original: Tensor
    compressed: Tensor | CodeTensors
    label: Any


class Pairs(torch.utils.data.Dataset[Pair]):
    """Map-style dataset of the rows of a dataset folder, in the order of `dataset.labels`.

    Features of different tasks have different shapes, and within a task their numbers of tokens may
    differ. `data_loader` forms batches of one task, with lists of features where they cannot be
    stacked. A plain `DataLoader` requires the rows of one task with a fixed number of tokens.

    Args:
        dataset: An argument of `cfqa_data.load`, or an open `cfqa_data.Dataset`.
        task: Select the rows of this task; all tasks if None.
        label: Label column or columns to return. None means the distortion, or, while a metric is
            trained, the label to predict.
        codes: Return compressed features as `CodeTensors`, to be dequantised on a device.
        options: Arguments of `cfqa_data.load` that select rows (``codec``, ``level``, ``source``,
            ``fold``) or state how to open the folder (``revision``, ``cache``, ``untrusted``,
            ``follow_links``, ``plugins``).

    Raises:
        CfqaError: If a task, codec, level, source, fold or column does not exist, rows are selected
            from a dataset that is already open, or codes are requested of a codec without codes.
            Reading an item raises `FormatError` if its file is missing or damaged.
    """

    def __init__(
        self,
        dataset: str | Path | Dataset,
        task: str | None = None,
        *,
        label: str | Sequence[str] | None = None,
        codes: bool = False,
        **options: Unpack[LoadOptions],
    ) -> None:
        dataset = opened(dataset, task=task, **options)
        label = label or str(getattr(dataset, "target", "distortion"))
        if codes:
            _check_codes(dataset)
        self.dataset = dataset
        self.label = label if isinstance(label, str) else tuple(label)
        self.codes = codes
        known = dataset.labels.column_names
        for name in (label,) if isinstance(label, str) else label:
            if name not in known:
                raise CfqaError(unknown_name("label column", name, known))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Pair:
        rows, index = len(self), operator.index(index)
        if not -rows <= index < rows:
            raise IndexError(f"pair {index} of {rows}")
        index %= rows
        source, codec, level = (
            self._value(name, index) for name in ("source_id", "codec", "level")
        )
        compressed: Tensor | CodeTensors
        if self.codes:
            compressed = CodeTensors.of(self.dataset.codes(source, codec, level))
        else:
            compressed = torch.from_numpy(self.dataset.compressed(source, codec, level))
        original = torch.from_numpy(self.dataset.original(source))
        if isinstance(self.label, str):
            return Pair(original, compressed, self._tensor(self.label, index))
        return Pair(original, compressed, {name: self._tensor(name, index) for name in self.label})

    def _value(self, column: str, index: int) -> Any:
        return self.dataset.labels[column][index].as_py()

    def _tensor(self, column: str, index: int) -> Any:
        """Return a label as a tensor of its column's dtype; a string is not converted."""
        kind = self.dataset.labels.schema.field(column).type.to_pandas_dtype()
        value = self._value(column, index)
        if value is None:
            source, codec = (self._value(name, index) for name in ("source_id", "codec"))
            why = ": it has no bitstream" if column == "bits" else "; choose another label"
            raise CfqaError(f"{column} of {source} by {codec} is not known{why}")
        return torch.from_numpy(np.array(value, kind)) if kind is not np.object_ else value


def _check_codes(dataset: Dataset) -> None:
    """Check that all codecs have codes.

    Raises:
        CfqaError: If a codec works on features or inputs and so has values instead of codes.
    """
    rows = dataset.labels.group_by(["task", "codec"], use_threads=False).aggregate([]).to_pylist()
    tasks = dataset.manifest.tasks
    values = {r["codec"] for r in rows if tasks[r["task"]].codecs[r["codec"]].quantizer is None}
    if values:
        known = dict.fromkeys(row["codec"] for row in rows)
        others = [codec for codec in known if codec not in values]
        choice = f"choose others, codec={others}, or " if others else ""
        names = ", ".join(codec for codec in known if codec in values)
        raise CfqaError(
            f"codes=True: {names} has values and no codes; {choice}leave codes=True out"
        )
