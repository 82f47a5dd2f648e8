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
    """One item of `Pairs`; a batch of them has the same fields with a leading axis.

    Attributes:
        original: float32 (N, C, T, D); of a batch where T may vary, a list of them.
        compressed: float32 (N, C, T, D), or the codes of it; of a batch likewise.
        label: The column asked for, a tensor () of the column's dtype; or, where several columns
            were asked for, a dict of them, texts as they are.
    """

    original: Tensor
    compressed: Tensor | CodeTensors
    label: Any


class Pairs(torch.utils.data.Dataset[Pair]):
    """The rows of a dataset folder as tensors, in the order of `dataset.labels`.

    Features of different tasks have different shapes: `data_loader` batches each task by itself;
    a plain `DataLoader` takes the rows of one task. A feature has its own number of tokens, which
    may vary within a task: `data_loader` then gives lists of features, not stacks of them.

    Args:
        dataset: What `cfqa_data.load` takes; or an open `cfqa_data.Dataset`, as it is.
        task: Keep the rows of this task; all of them if None.
        label: The column of the labels to give, or several; if None, the distortion, or the label
            that a metric's training is to follow.
        codes: Give compressed features as `CodeTensors`, to be dequantised on a device.
        options: Which rows to keep (``codec``, ``level``, ``source``, and ``fold``, to train on
            some and test on the others), and how the folder is opened (``revision``, ``cache``,
            ``untrusted``, ``follow_links``, ``plugins``), as for `cfqa_data.load`.

    Raises:
        CfqaError: There is no such task, codec, level, source, fold or column, rows are chosen
            from a dataset that is open already, or codes are asked for of a codec that has none.
            (Taking a pair raises `FormatError` if its file is missing or damaged.)
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
        """Return a label as a tensor of its column's dtype, or a text as it is."""
        kind = self.dataset.labels.schema.field(column).type.to_pandas_dtype()
        value = self._value(column, index)
        if value is None:
            source, codec = (self._value(name, index) for name in ("source_id", "codec"))
            why = ": it has no bitstream" if column == "bits" else "; choose another label"
            raise CfqaError(f"{column} of {source} by {codec} is not known{why}")
        return torch.from_numpy(np.array(value, kind)) if kind is not np.object_ else value


def _check_codes(dataset: Dataset) -> None:
    """Check that all rows are of codecs that have codes.

    Raises:
        CfqaError: Some are of a codec on features or inputs, which has values.
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
