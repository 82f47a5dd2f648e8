"""Rows of labels and scores, identified by the columns `KEYS`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfqa_data.arrow import pa
from cfqa_data.eval.features.datasets import KEYS

__all__ = ["key_columns", "row_keys", "row_name", "shared_rows"]


def key_columns(labels: pa.Table) -> pa.Table:
    """Return the key columns of labels, in the types of a score file.

    Args:
        labels: Labels, in which texts may be ``large_string``, ``string_view`` or dictionaries.
    """
    keys = labels.select(KEYS)
    kinds = [getattr(kind, "value_type", kind) for kind in keys.schema.types]
    texts = [pa.types.is_large_string(kind) or pa.types.is_string_view(kind) for kind in kinds]
    kinds = [pa.string() if text else kind for kind, text in zip(kinds, texts, strict=True)]
    return keys.cast(pa.schema(list(zip(KEYS, kinds, strict=True))))


def row_keys(labels: pa.Table) -> list[tuple[Any, ...]]:
    """Return the key of each row of labels: its values of `KEYS`."""
    return list(zip(*(labels[name].to_pylist() for name in KEYS), strict=True))


def row_name(key: Sequence[object]) -> str:
    """Return the name of a row in messages, by its key."""
    return "{} {}, {}, level {}".format(*key)


def shared_rows(one: pa.Table, other: pa.Table) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the numbers of the rows that two tables share, in the first and in the second."""
    row_of_key = {key: row for row, key in enumerate(row_keys(one))}
    rows = np.array([row_of_key.get(key, -1) for key in row_keys(other)], dtype=np.intp)
    return rows[rows >= 0], np.flatnonzero(rows >= 0)
