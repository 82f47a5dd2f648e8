"""A Hugging Face `datasets` feature type whose cells refer to arrays of dataset folders.

A cell is a text: the key of an array, which is read from its folder when the cell is taken; or,
where a function returned another array, that array's bytes. It is a feature type of `datasets`, as
`Image` is: every operation that carries columns along carries these, and keeps dtypes and bits.

Importing this module makes the type known to `datasets`; `attach` does.
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

__all__ = ["NEEDS", "CfqaArray", "hold", "key_of"]

NEEDS = {
    "original": ("source_id",),
    "compressed": ("source_id", "codec", "level"),
    "bitstream": ("source_id", "codec", "level"),
}
"""What can be read for a row -> the columns that say which one it is."""

HANDLES: dict[str, bytes] = {}
"""Name of a dataset that was attached here -> its pickle, compressed, which keeps no file open."""

OPEN: WeakValueDictionary[str, Dataset] = WeakValueDictionary()
"""The same, opened, as long as a column uses it."""

INLINE = "array"
"""What a cell begins with, in place of a dataset's name, if it holds the array."""


def hold(dataset: Dataset) -> str:
    """Return the name by which cells refer to an open dataset: the same in every process."""
    how = [dataset.untrusted, dataset.follow_links, *map(str, dataset.plugins)]
    what = [dataset.location, *how, dataset.manifest.to_dict()]
    name = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
    HANDLES[name] = zlib.compress(pickle.dumps(dataset[:0]))
    OPEN[name] = dataset
    return name


def key_of(dataset: str, array: str, row: Mapping[str, Any]) -> str:
    """Return the cell of a row."""
    return "/".join([dataset, *(str(row[need]) for need in NEEDS[array])])


@dataclass
class CfqaArray:
    """The type of a column of arrays.

    Attributes:
        array: "original", "compressed" or "bitstream".
        format: "numpy" or "torch".
        decode: Give arrays, not the texts that are stored (`datasets` sets this).
    """

    array: str
    format: str = "numpy"
    decode: bool = True
    dtype: ClassVar[str] = "large_string"
    pa_type: ClassVar[Any] = pa.large_string()
    _type: str = field(default="CfqaArray", init=False, repr=False)

    def __post_init__(self) -> None:
        self._used: dict[str, Dataset] = {}

    def __getstate__(self) -> dict[str, Any]:
        # All: `datasets` may have put rows of several folders under the type of one.
        return {**self.__dict__, "_used": {}, "handles": dict(HANDLES)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        HANDLES.update(state.pop("handles"))
        self.__dict__.update(state)

    def __call__(self) -> pa.DataType:
        """Return how cells are stored."""
        return self.pa_type

    def encode_example(self, value: Any) -> str:
        """Return the cell of an array; a cell as it is."""
        return value if isinstance(value, str) else _inline(value)

    def decode_example(self, value: str, token_per_repo_id: Any = None) -> Any:
        """Return the array, or the bitstream, that a cell stands for.

        Raises:
            FormatError: Its file is missing or damaged, the folder has no such array, nothing in
                this process says where the folder is, or the cell is none of this type.
        """
        name, _, key = value.partition("/")
        try:
            inline = _read_inline(key) if name == INLINE else None
            which = () if name == INLINE else _parts(self.array, key)
        except (ValueError, TypeError):
            raise FormatError(
                f"a cell of CfqaArray({self.array!r}) holds {value[:60]!r}, which is not the name "
                "of an array"
            ) from None
        found = getattr(self._dataset(name), self.array)(*which) if which else inline
        if self.format == "numpy" or isinstance(found, bytes):
            return found
        import torch

        return torch.from_numpy(found)

    def cast_storage(self, storage: pa.Array) -> pa.Array:
        """Return a column of this type: of cells, or of arrays that a function returned.

        Raises:
            ArrowInvalid: It is neither.
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
        if name not in self._used:
            dataset = OPEN.get(name)
            if dataset is None:
                if name not in HANDLES:
                    raise FormatError(
                        "these rows do not know their dataset folder: use attach(rows, 'folder')"
                    )
                dataset = OPEN.setdefault(name, pickle.loads(zlib.decompress(HANDLES[name])))
            self._used[name] = dataset
        return self._used[name]


def _parts(array: str, key: str) -> tuple[Any, ...]:
    """Return what a key says of an array: its source, or source, codec and level."""
    if not key:
        raise ValueError
    if array == "original":
        return (key,)
    source, codec, level = key.rsplit("/", 2)
    return source, codec, int(level)


def _inline(value: Any) -> str:
    """Return a cell that holds an array, or bytes."""
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
    """Return nested lists as an array.

    Raises:
        ArrowInvalid: They are ragged.
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
    """Pickle a type where `datasets` hashes it: cells name their datasets, handles say no more."""
    pickler.save_reduce(CfqaArray, (column.array, column.format, column.decode), obj=column)


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # `datasets` may change how types are made known
    register_feature(CfqaArray, "CfqaArray")
