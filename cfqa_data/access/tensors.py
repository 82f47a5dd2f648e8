"""Read tensors by key from a safetensors file, local or on the Hub.

Files may be untrusted, so the header is checked completely before any tensor is read: the tensors
must fill the file without overlaps and gaps, so that they cannot be larger than it. After that,
only the bytes of the requested tensors are read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np

from cfqa_data.access.files import Blob, Files
from cfqa_data.access.selection import Selection
from cfqa_data.errors import FormatError
from cfqa_data.format.limits import LARGEST_HEADER, parse_json

__all__ = ["Tensor", "TensorFile"]

DTYPES = {
    f"{name}{8 * size}": np.dtype(f"<{kind}{size}")
    for name, kind, sizes in (
        ("F", "f", (2, 4, 8)),
        ("I", "i", (1, 2, 4, 8)),
        ("U", "u", (1, 2, 4, 8)),
    )
    for size in sizes
} | {"BOOL": np.dtype(np.bool_)}

MOST_AXES = 8
"""Largest number of axes of a tensor; NumPy allows 64, and features have four."""

FIRST_READ = 16 << 10
"""Number of bytes to read first, which contain the whole header of most files."""


@dataclass(frozen=True)
class Tensor:
    """A tensor as described by the header.

    Attributes:
        dtype: Dtype; the name in the header if NumPy has no such dtype, such as "BF16".
        shape: Shape.
        start: Offset of its first byte in the file.
        stop: Offset after its last byte.
    """

    dtype: np.dtype[Any] | str
    shape: tuple[int, ...]
    start: int
    stop: int


class TensorFile:
    """The tensors of a safetensors file.

    Args:
        files: Files of the dataset.
        name: Name of the file.

    Attributes:
        tensors: Tensors of the file by key.

    Raises:
        FormatError: If the file is missing or is not a safetensors file.
    """

    def __init__(self, files: Files, name: str) -> None:
        self.files, self.name, self.where = files, name, files.where(name)
        with files.errors(name, "not a safetensors file"), files.open(name) as blob:
            self.tensors = _read_header(blob)

    def tensor(self, key: str) -> Tensor:
        """Return the dtype, shape and offsets of a tensor.

        Raises:
            FormatError: If the file has no tensor of that key.
        """
        if key not in self.tensors:
            raise FormatError(f"{self.where}: lacks {key!r}; build or fetch it again")
        return self.tensors[key]

    def read(self, key: str, part: Selection | None = None) -> np.ndarray:
        """Return a tensor, or a part of a feature.

        Args:
            key: Name of the tensor.
            part: Part to read; the tensor must then be float32 of the selection's full shape.

        Raises:
            FormatError: If the tensor does not exist, is damaged, or has another dtype or shape.
        """
        tensor = self.tensor(key)
        dtype = tensor.dtype
        if isinstance(dtype, str):
            reason = "not used by datasets; build or fetch it again"
            raise FormatError(f"{self.where}: {key!r} is {dtype}, {reason}")
        if part is not None and (dtype, tensor.shape) != (np.float32, part.full):
            raise FormatError(
                f"{self.where}: {key!r} is {dtype} {tensor.shape}, not float32 {part.full}"
            )
        ranges = [(tensor.start, tensor.stop - tensor.start)]
        if part is not None and not part.whole:
            _, layers, tokens, channels = part.full
            row, span = channels * dtype.itemsize, part.span
            ranges = [
                (tensor.start + ((n * layers + c) * tokens + span.start) * row, len(span) * row)
                for n, c in part.slices
            ]
        files = self.files
        with files.errors(self.name, f"{key!r} is damaged"), files.open(self.name) as blob:
            arrays = [np.frombuffer(data, dtype) for data in blob.read(ranges)]
            if part is None or part.whole:
                return arrays[0].reshape(tensor.shape)
        slices = np.stack(arrays).reshape(len(part.views), len(part.layers), -1, channels)
        return part.take_tokens(slices, span.start)


def _read_header(blob: Blob) -> dict[str, Tensor]:
    size = blob.size
    (head,) = blob.read([(0, min(size, FIRST_READ))])
    if len(head) < 8:
        raise ValueError("shorter than the length of a header")
    length = int.from_bytes(head[:8], "little")
    if length > min(LARGEST_HEADER, size - 8):
        raise ValueError(f"its header claims {length} bytes")
    if (rest := 8 + length - len(head)) > 0:
        head += blob.read([(len(head), rest)])[0]
    facts = parse_json(bytes(head[8 : 8 + length]))
    if not isinstance(facts, dict):
        raise ValueError("its header is not an object")
    facts.pop("__metadata__", None)
    base = 8 + length
    tensors = {key: _tensor(key, entry, base, size) for key, entry in facts.items()}
    for key, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if tensor.start != base:
            raise ValueError(f"{key!r} begins at byte {tensor.start}, not at {base}")
        base = tensor.stop
    if base != size:
        raise ValueError(f"its tensors end at byte {base} of {size}")
    return tensors


def _tensor(key: str, entry: Any, base: int, size: int) -> Tensor:
    """Return the tensor of a header entry, checked against the file size.

    Args:
        key: Key of the entry.
        entry: JSON value of the entry.
        base: Offset of the data in the file.
        size: Size of the file in bytes.
    """
    if not isinstance(entry, dict):
        raise ValueError(f"{key!r} is not a table")
    kind, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not (isinstance(kind, str) and _counts(shape) and _counts(offsets) and len(offsets) == 2):
        raise ValueError(f"dtype, shape or offsets of {key!r} are invalid")
    start, stop = base + offsets[0], base + offsets[1]
    if len(shape) > MOST_AXES:
        raise ValueError(f"{key!r} has {len(shape)} axes")
    if not start <= stop <= size:
        raise ValueError(f"{key!r} ends at byte {stop} of {size}")
    dtype = DTYPES.get(kind)
    if dtype and math.prod(shape) * dtype.itemsize != stop - start:
        raise ValueError(f"{key!r} does not fill its range")
    return Tensor(dtype or kind, tuple(shape), start, stop)


def _counts(numbers: object) -> TypeGuard[list[int]]:
    return isinstance(numbers, list) and all(type(n) is int and n >= 0 for n in numbers)
