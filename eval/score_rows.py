"""What names a row of labels or scores: the columns `KEYS`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfqa_data.arrow import pa
from cfqa_data.eval.features.datasets import KEYS

__all__ = ["key_columns", "named", "row_keys", "shared_rows"]


def key_columns(labels: pa.Table) -> pa.Table:
    """Return what names each row of labels, in types that a file of scores is read back with.

    Args:
        labels: Anybody's: texts may be ``large_string``, ``string_view`` or a dictionary.
    """
    keys = labels.select(KEYS)
    kinds = [getattr(kind, "value_type", kind) for kind in keys.schema.types]
    texts = [pa.types.is_large_string(kind) or pa.types.is_string_view(kind) for kind in kinds]
    kinds = [pa.string() if text else kind for kind, text in zip(kinds, texts, strict=True)]
    return keys.cast(pa.schema(list(zip(KEYS, kinds, strict=True))))


def row_keys(labels: pa.Table) -> list[tuple[Any, ...]]:
    """Return what names each row of labels: the values of `KEYS`."""
    return list(zip(*(labels[name].to_pylist() for name in KEYS), strict=True))


def named(key: Sequence[object]) -> str:
    """Return how to call a row in a message."""
    return "{} {}, {}, level {}".format(*key)


def shared_rows(one: pa.Table, other: pa.Table) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the places of the rows that two tables share, in the one and in the other."""
    places = {key: place for place, key in enumerate(row_keys(one))}
    found = np.array([places.get(key, -1) for key in row_keys(other)], dtype=np.intp)
    return found[found >= 0], np.flatnonzero(found >= 0)
