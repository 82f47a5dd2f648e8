"""Group the rows of a map-style dataset by shape and shard."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch.utils.data import ConcatDataset, Subset

from cfqa_data.loaders.torch.pairs import Pairs

__all__ = ["Row", "find_rows"]


VARYING = 0
"""Value of T in the shape of features with different numbers of tokens."""


class Row(NamedTuple):
    """The properties of a row that batches depend on.

    Attributes:
        kind: Key that is equal for rows of one batch: task, shape, bits of the codes and label.
        source: Location of the folder and source id.
        codec: Codec; together with the source it identifies the shard.
    """

    kind: tuple[Any, ...]
    source: tuple[str, str]
    codec: str

    @property
    def varies(self) -> bool:
        """Whether the number of tokens varies, so that features cannot be stacked."""
        return VARYING in self.kind[1]


def find_rows(dataset: Any) -> list[Row] | None:
    """Return the rows of `Pairs`, also nested in `Subset` and `ConcatDataset`.

    Args:
        dataset: Any map-style dataset.

    Returns:
        One row per item; None for any other dataset.
    """
    if isinstance(dataset, Pairs):
        return _rows_of_pairs(dataset)
    if isinstance(dataset, Subset):
        rows = find_rows(dataset.dataset)
        return rows and [rows[int(index)] for index in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        parts = [find_rows(part) for part in dataset.datasets]
        return None if None in parts else [row for part in parts if part for row in part]
    return None


def _rows_of_pairs(pairs: Pairs) -> list[Row]:
    manifest, location = pairs.dataset.manifest, pairs.dataset.location
    columns = [pairs.dataset.labels[name].to_pylist() for name in ("task", "source_id", "codec")]
    kinds: dict[tuple[str, str], tuple[Any, ...]] = {}
    rows = []
    for task, source, codec in zip(*columns, strict=True):
        if (task, codec) not in kinds:
            entry = manifest.tasks[task]
            quantizer = entry.codecs[codec].quantizer
            bits = quantizer.bits if pairs.codes and quantizer else 0
            n, c, t, d = entry.shape
            shape = (n, c, VARYING if entry.varying_tokens else t, d)
            kinds[task, codec] = (task, shape, bits, pairs.label)
        rows.append(Row(kinds[task, codec], (location, source), codec))
    return rows
