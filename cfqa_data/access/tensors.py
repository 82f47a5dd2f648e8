"""Tensors by key in a safetensors file, on this machine or on the Hub.

The file's header is read and checked in full before a byte that it points to is read: it may come
from anyone. Its tensors fill the file without overlaps and holes, so together they are no larger
than it. Then the bytes of what is asked for are read, and no others.
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
"""Of a tensor; NumPy takes 64, and a dataset's have four."""

FIRST_READ = 16 << 10
"""Bytes of a file that are read first: most headers are within."""


@dataclass(frozen=True)
class Tensor:
    """What a header says of a tensor.

    Attributes:
        dtype: its dtype; the format's own name of it where NumPy has none, as of bfloat16.
        shape: its shape.
        start: of its bytes in the file.
        stop: of its bytes.
    """

    dtype: np.dtype[Any] | str
    shape: tuple[int, ...]
    start: int
    stop: int


class TensorFile:
    """The tensors of a file.

    Args:
        files: the folder.
        name: the file.

    Attributes:
        tensors: what it holds, by key.

    Raises:
        FormatError: it is missing or not a safetensors file.
    """

    def __init__(self, files: Files, name: str) -> None:
        self.files, self.name, self.where = files, name, files.where(name)
        with files.errors(name, "not a safetensors file"), files.open(name) as blob:
            self.tensors = _read_header(blob)

    def tensor(self, key: str) -> Tensor:
        """Return what is known of a tensor.

        Raises:
            FormatError: there is none of that key.
        """
        if key not in self.tensors:
            raise FormatError(f"{self.where}: lacks {key!r}; build or fetch it again")
        return self.tensors[key]

    def read(self, key: str, part: Selection | None = None) -> np.ndarray:
        """Return a tensor, or a part of one of four axes.

        Args:
            key: its name.
            part: what to read of it; it must then have that full shape and be float32.

        Raises:
            FormatError: it is not there, is damaged, or is not of that shape.
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
            found = [np.frombuffer(data, dtype) for data in blob.read(ranges)]
            if part is None or part.whole:
                return found[0].reshape(tensor.shape)
        slices = np.stack(found).reshape(len(part.views), len(part.layers), -1, channels)
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
    """Return what a header says of a tensor, with its place in the file of ``size`` bytes."""
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
