"""Tensors by key in a safetensors file or a set of shards: mapped from disk, or read in ranges.

On disk every shard is opened by the format's own library. Over the net a shard's header is read
when it is needed, the likely one first, and then the bytes of what is asked for and no others.
A header is checked in full before a byte that it points to is read: it may come from anywhere.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from cfqa_data.access.files import MISSING, Files
from cfqa_data.access.selection import Selection
from cfqa_data.errors import FormatError
from cfqa_data.format.limits import LARGEST_HEADER, parse_json

__all__ = ["TensorSet"]

SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.safetensors$")

DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "|u1",
    "BOOL": "|b1",
}

MOST_AXES = 8
"""Of a tensor; NumPy takes 64, and a dataset's have four."""

FIRST_READ = 16 << 10
"""Bytes of a remote file that are read first: most headers are within."""

AGAIN = "build or fetch it again"


class TensorSet:
    """The tensors under one stem, whichever shard they lie in.

    Args:
        files: the folder.
        stem: name without number and suffix, as "originals/cls".
        sharded: whether there are numbered shards, not one file.

    Raises:
        FormatError: a shard is missing or (on this machine) not a safetensors file.
    """

    def __init__(self, files: Files, stem: str, *, sharded: bool) -> None:
        self.files = files
        self.where = files.where(stem)
        self.names = _all_shards(files, stem) if sharded else [f"{stem}.safetensors"]
        self._opened: dict[str, _Mapped | _Remote] = {}
        if files.root is not None:
            for name in self.names:
                self._open(name)

    def read(self, key: str, part: Selection | None = None, *, likely: int = 0) -> np.ndarray:
        """Return a tensor, or a part of one of four axes.

        Args:
            key: its name.
            part: what to read of it; it must then have that full shape and be float32.
            likely: number of the shard to look into first.

        Raises:
            FormatError: it is not there, is damaged, or is not of that shape.
        """
        start = likely if likely < len(self.names) else 0
        for name in [self.names[start], *self.names[:start], *self.names[start + 1 :]]:
            file = self._open(name)
            if key in file.keys:
                return file.read(key, part)
        raise FormatError(f"{self.where}: {key!r} is in none of its files")

    def _open(self, name: str) -> _Mapped | _Remote:
        if name not in self._opened:
            try:
                path = self.files.path(name)
                self._opened[name] = (
                    _Remote(self.files, name, self.where)
                    if path is None
                    else _Mapped(path, self.files.where(name), self.where)
                )
            except FileNotFoundError:
                raise FormatError(f"{self.files.where(name)}: {MISSING}") from None
        return self._opened[name]


def _expect(
    where: str, key: str, dtype: np.dtype[Any], shape: tuple[int, ...], part: Selection | None
) -> None:
    if part is not None and (shape != part.full or dtype != np.float32):
        raise FormatError(f"{where}: {key!r} is {dtype} {shape}, not float32 {part.full}")


def _known(where: str, key: str, kind: str) -> np.dtype[Any]:
    if kind not in DTYPES:  # bfloat16 and float8, which NumPy does not have
        raise FormatError(f"{where}: {key!r} is {kind}, which a dataset does not hold; {AGAIN}")
    return np.dtype(DTYPES[kind])


class _Mapped:
    """A file on this machine, mapped into memory."""

    def __init__(self, path: Path, named: str, where: str) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            self.file: Any = safe_open(path, framework="numpy")
            self.keys = set(self.file.keys())
        except FileNotFoundError:
            raise
        except (SafetensorError, OSError) as error:
            raise FormatError(f"{named}: not a safetensors file: {error}") from None
        self.where = where

    def read(self, key: str, part: Selection | None) -> np.ndarray:
        from safetensors import SafetensorError

        try:
            if part is None or part.whole:
                tensor: np.ndarray = self.file.get_tensor(key)
                _expect(self.where, key, tensor.dtype, tensor.shape, part)
                return tensor
            found = self.file.get_slice(key)
            dtype = _known(self.where, key, found.get_dtype())
            _expect(self.where, key, dtype, tuple(found.get_shape()), part)
            t = part.span
            blocks = (found[n : n + 1, c : c + 1, t.start : t.stop][0, 0] for n, c in part.slices)
            return part.gather(blocks, t.start)
        except (SafetensorError, OSError, ValueError) as error:
            raise FormatError(f"{self.where}: {key!r} is damaged: {error}") from None
        except (TypeError, AttributeError):  # what safetensors says to bfloat16, and to float8
            _known(self.where, key, self.file.get_slice(key).get_dtype())
            raise


@dataclass(frozen=True)
class _Entry:
    kind: str
    shape: tuple[int, ...]
    start: int
    stop: int


class _Remote:
    """A file of which ranges are read."""

    def __init__(self, files: Files, name: str, where: str) -> None:
        self.files = files
        self.name = name
        self.where = where
        try:
            self.keys = self._read_header()
        except ValueError as error:
            raise FormatError(f"{files.where(name)}: not a safetensors file: {error}") from None

    def _read_header(self) -> dict[str, _Entry]:
        with self.files.open(self.name) as blob:
            (head,) = blob.read([(0, min(blob.size, FIRST_READ))])
            if len(head) < 8:
                raise ValueError("shorter than the length of a header")
            length = int.from_bytes(head[:8], "little")
            if length > min(LARGEST_HEADER, blob.size - 8):
                raise ValueError(f"its header says that it has {length} bytes")
            rest = 8 + length - len(head)
            if rest > 0:
                head += blob.read([(len(head), rest)])[0]
            size = blob.size
        facts = parse_json(head[8 : 8 + length])
        if not isinstance(facts, dict):
            raise ValueError("its header is not a table")
        facts.pop("__metadata__", None)
        return {key: _entry(key, entry, 8 + length, size) for key, entry in facts.items()}

    def read(self, key: str, part: Selection | None) -> np.ndarray:
        entry = self.keys[key]
        dtype = _known(self.where, key, entry.kind)
        _expect(self.where, key, dtype, entry.shape, part)
        if part is None or part.whole:
            (data,) = self._read(key, [(entry.start, entry.stop - entry.start)])
            try:
                return np.frombuffer(bytearray(data), dtype).reshape(entry.shape)
            except ValueError as error:  # no elements, by axes that no array has
                raise FormatError(f"{self.where}: {key!r} is damaged: {error}") from None
        _, layers, tokens, channels = part.full
        row, span = channels * dtype.itemsize, part.span
        ranges = [
            (entry.start + ((n * layers + c) * tokens + span.start) * row, len(span) * row)
            for n, c in part.slices
        ]
        blocks = (
            np.frombuffer(data, dtype).reshape(-1, channels) for data in self._read(key, ranges)
        )
        return part.gather(blocks, span.start)

    def _read(self, key: str, ranges: list[tuple[int, int]]) -> list[bytes]:
        try:
            with self.files.open(self.name) as blob:
                return blob.read(ranges)
        except (OSError, ValueError) as error:
            raise FormatError(f"{self.where}: {key!r} is damaged: {error}") from None


def _entry(key: str, entry: Any, base: int, size: int) -> _Entry:
    """Return what a header says of a tensor, with its place in the file of ``size`` bytes."""
    if not isinstance(entry, dict):
        raise ValueError(f"{key!r} is not a table")
    kind, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not (isinstance(kind, str) and _counts(shape) and _counts(offsets) and len(offsets) == 2):
        raise ValueError(f"dtype, shape or offsets of {key!r} are not what they must be")
    start, stop = base + offsets[0], base + offsets[1]
    if len(shape) > MOST_AXES:
        raise ValueError(f"{key!r} has {len(shape)} axes")
    if not start <= stop <= size:
        raise ValueError(f"{key!r} ends at byte {stop} of {size}")
    if kind in DTYPES and math.prod(shape) * np.dtype(DTYPES[kind]).itemsize != stop - start:
        raise ValueError(f"{key!r} does not fill its place")
    return _Entry(kind, tuple(shape), start, stop)


def _counts(numbers: object) -> TypeGuard[list[int]]:
    return isinstance(numbers, list) and all(type(n) is int and n >= 0 for n in numbers)


def _all_shards(files: Files, stem: str) -> list[str]:
    """Return the shards "stem-0000I-of-0000K.safetensors", all K of them."""
    shards = {}
    for name in files.beside(f"{stem}-"):
        if match := SHARD.fullmatch(name[len(stem) :]):
            shards[int(match[1]), int(match[2])] = name
    if not shards:
        raise FormatError(f"{files.where(stem)}-*.safetensors: {MISSING}")
    total = max(count for _, count in shards)
    names = []
    for number in range(total):
        if (number, total) not in shards:
            raise FormatError(
                f"{files.where(stem)}-{number:05d}-of-{total:05d}.safetensors: missing shard"
            )
        names.append(shards[number, total])
    return names
