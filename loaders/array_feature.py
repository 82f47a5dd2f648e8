"""A Hugging Face `datasets` feature type whose cells refer to arrays of dataset folders.

A cell is a string: the key of an array, which is read from its folder on access; or, for an array
that a user's function returned, the array's own bytes. Like `Image`, it is a feature type of
`datasets`, so all operations on columns support it and preserve dtypes and values.

Importing this module registers the type with `datasets`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import pickle
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import numpy as np
import pyarrow as pa
from datasets.features.features import register_feature
from datasets.utils._dill import pklregister

from cfqa_data.access.dataset import Dataset
from cfqa_data.errors import FormatError

__all__ = ["NEEDS", "CfqaArray", "key_of", "register"]

NEEDS = {
    "original": ("source_id",),
    "compressed": ("source_id", "codec", "level"),
    "bitstream": ("source_id", "codec", "level"),
}
"""Kind of array -> the columns that identify it."""

HANDLES: dict[str, bytes] = {}
"""Name of an attached dataset -> its compressed pickle, which keeps no file open."""

OPEN: WeakValueDictionary[str, Dataset] = WeakValueDictionary()
"""Name of an attached dataset -> the open dataset, while a column uses it."""

INLINE = "array"
"""First part of a cell that contains its array, instead of the name of a dataset."""


def register(dataset: Dataset) -> str:
    """Return the name by which cells refer to a dataset. It is the same in every process."""
    options = [dataset.untrusted, dataset.follow_links, *map(str, dataset.plugins)]
    identity = [dataset.location, *options, dataset.manifest.to_dict()]
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    HANDLES[name] = zlib.compress(pickle.dumps(dataset[:0]))
    OPEN[name] = dataset
    return name


def key_of(dataset: str, array: str, row: Mapping[str, Any]) -> str:
    """Return the cell of an array of a row."""
    return "/".join([dataset, *(str(row[column]) for column in NEEDS[array])])


@dataclass
class CfqaArray:
    """The type of a column of arrays.

    Attributes:
        array: "original", "compressed" or "bitstream".
        format: "numpy" or "torch".
        decode: Whether to return arrays instead of the stored strings; set by `datasets`.
    """

    array: str
    format: str = "numpy"
    decode: bool = True
    dtype: ClassVar[str] = "large_string"
    pa_type: ClassVar[Any] = pa.large_string()
    _type: str = field(default="CfqaArray", init=False, repr=False)

    def __post_init__(self) -> None:
        self._datasets: dict[str, Dataset] = {}

    def __getstate__(self) -> dict[str, Any]:
        # All handles, since `datasets` may have concatenated rows of several folders.
        return {**self.__dict__, "_datasets": {}, "handles": dict(HANDLES)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        HANDLES.update(state.pop("handles"))
        self.__dict__.update(state)

    def __call__(self) -> pa.DataType:
        """Return the Arrow type of the cells."""
        return self.pa_type

    def encode_example(self, value: Any) -> str:
        """Return the cell that contains an array; a cell is returned unchanged."""
        return value if isinstance(value, str) else _inline(value)

    def decode_example(self, value: str, token_per_repo_id: Any = None) -> Any:
        """Return the array or bitstream that a cell refers to.

        Raises:
            FormatError: If the file is missing or damaged, the folder has no such array or is not
                known in this process, or the cell is malformed.
        """
        name, _, key = value.partition("/")
        try:
            inline = _read_inline(key) if name == INLINE else None
            position = () if name == INLINE else _parse_key(self.array, key)
        except (ValueError, TypeError):
            raise FormatError(
                f"a cell of CfqaArray({self.array!r}) holds {value[:60]!r}, which is not the name "
                "of an array"
            ) from None
        array = getattr(self._dataset(name), self.array)(*position) if position else inline
        if self.format == "numpy" or isinstance(array, bytes):
            return array
        import torch

        return torch.from_numpy(array)

    def cast_storage(self, storage: pa.Array) -> pa.Array:
        """Convert a column to this type, from cells or from arrays that a function returned.

        Raises:
            ArrowInvalid: If the column has another type.
        """
        kind = storage.type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind):
            return storage.cast(self.pa_type)
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            values = [None if cell.values is None else _dense(cell) for cell in storage]
        elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            values = storage.to_pylist()
        else:
            raise pa.ArrowInvalid(f"{kind} is not an array")
        return pa.array([None if v is None else _inline(v) for v in values], self.pa_type)

    def _dataset(self, name: str) -> Dataset:
        if name not in self._datasets:
            dataset = OPEN.get(name)
            if dataset is None:
                if name not in HANDLES:
                    raise FormatError(
                        "these rows do not know their dataset folder: use attach(rows, 'folder')"
                    )
                dataset = OPEN.setdefault(name, pickle.loads(zlib.decompress(HANDLES[name])))
            self._datasets[name] = dataset
        return self._datasets[name]


def _parse_key(array: str, key: str) -> tuple[Any, ...]:
    """Return the source id, or source id, codec and level, in a key."""
    if not key:
        raise ValueError
    if array == "original":
        return (key,)
    source, codec, level = key.rsplit("/", 2)
    return source, codec, int(level)


def _inline(value: Any) -> str:
    """Return a cell that contains an array or bytes."""
    if isinstance(value, bytes):
        return f"{INLINE}///{base64.b64encode(value).decode()}"
    array = np.ascontiguousarray(value)
    shape = ",".join(map(str, np.shape(value)))
    return f"{INLINE}/{array.dtype.str}/{shape}/{base64.b64encode(array.tobytes()).decode()}"


def _read_inline(text: str) -> np.ndarray | bytes:
    dtype, shape, encoded = text.split("/", 2)
    data = base64.b64decode(encoded)
    if not dtype:
        return data
    sizes = [int(size) for size in shape.split(",") if size]
    return np.frombuffer(bytearray(data), dtype).reshape(sizes)


def _dense(cell: Any) -> np.ndarray:
    """Convert nested lists to an array.

    Raises:
        ArrowInvalid: If the lists are ragged or have missing values.
    """
    values, sizes = cell.values, [len(cell.values)]
    while not pa.types.is_primitive(values.type):
        lengths = set(values.value_lengths().to_pylist())
        if len(lengths) != 1:
            raise pa.ArrowInvalid("lists of different lengths are not an array")
        sizes.append(lengths.pop())
        values = values.flatten()
    if values.null_count or len(values) != math.prod(sizes):
        raise pa.ArrowInvalid("lists with missing values are not an array")
    return values.to_numpy(zero_copy_only=False).reshape(sizes)


@pklregister(CfqaArray)
def _save(pickler: Any, column: CfqaArray) -> None:
    """Pickle the type for the hashes of `datasets`, without handles, which cells already name."""
    pickler.save_reduce(CfqaArray, (column.array, column.format, column.decode), obj=column)


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # `datasets` warns that its registration may change
    register_feature(CfqaArray, "CfqaArray")
