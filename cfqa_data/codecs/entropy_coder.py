"""One ANS stream for integers that each have a table, escapes included.

Asymmetric numeral systems (Duda, arXiv 1311.2540) as constriction implements them: a stack,
so what is decoded first is encoded last.  The stack starts from a 24-bit checksum of the
integers; a stack that starts empty would waste as many bits, so the check costs nothing, and
it tells a damaged or shortened stream from a sound one.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from cfqa_data.codecs.entropy_tables import PRECISION, Tables
from cfqa_data.errors import CodecError, MissingDependencyError

__all__ = ["Part", "TableCoder", "decode_parts", "encode_parts"]

LARGEST = 1 << 20
"""Integers beyond +-LARGEST cannot be coded."""

Part = tuple["TableCoder", np.ndarray, np.ndarray]
"""A coder, the integers (n,), and the index of each one's table (n,)."""


def _constriction() -> ModuleType:
    try:
        import constriction
    except ImportError:
        raise MissingDependencyError(
            "the hyperprior codecs need constriction: pip install 'cfqa-data[codecs]'"
        ) from None
    return constriction


class TableCoder:
    """Codes integers by the tables of one family; all integers of a table go in one call."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self._models: dict[int, Any] = {}

    def push(self, coder: Any, values: np.ndarray, indexes: np.ndarray) -> None:
        """Encode ``values`` onto the stack; :meth:`pop` gets them back in their order."""
        order, groups = _groups(indexes)
        values = values[order]
        coded = []
        escaped = np.zeros(len(values), bool)
        for index, start, end in groups:
            size, first = int(self.tables.sizes[index]), int(self.tables.firsts[index])
            entries = values[start:end] - (first - 1)
            outside = (entries < 1) | (entries >= size)
            entries[outside] = 0
            escaped[start:end] = outside
            coded.append((self._model(index), entries.astype(np.int32)))
        _push_escapes(coder, values[escaped])
        for model, entries in reversed(coded):
            coder.encode_reverse(entries, model)

    def pop(self, coder: Any, indexes: np.ndarray) -> np.ndarray:
        """Decode the integers that :meth:`push` encoded with these table indexes."""
        order, groups = _groups(indexes)
        values = np.empty(len(indexes), np.int64)
        escaped = np.zeros(len(indexes), bool)
        for index, start, end in groups:
            entries = coder.decode(self._model(index), end - start)
            escaped[start:end] = entries == 0
            values[start:end] = entries.astype(np.int64) + (int(self.tables.firsts[index]) - 1)
        values[escaped] = _pop_escapes(coder, int(escaped.sum()))
        result = np.empty_like(values)
        result[order] = values
        return result

    def bits(self, values: np.ndarray, indexes: np.ndarray) -> float:
        """Return the ideal code length of the integers, escapes included."""
        total = 0.0
        for index in np.unique(indexes):
            counts, first = self.tables.table(int(index))
            chosen = values[indexes == index]
            entries = chosen - (first - 1)
            outside = (entries < 1) | (entries >= len(counts))
            entries[outside] = 0
            total += float((PRECISION - np.log2(counts[entries] + 1.0)).sum())
            total += float((6 + np.floor(np.log2(np.abs(chosen[outside]) + 1.0))).sum())
        return total

    def _model(self, index: int) -> Any:
        if index not in self._models:
            counts = self.tables.table(index)[0].astype(np.float64)
            family = _constriction().stream.model.Categorical
            self._models[index] = family(counts, perfect=False)
        return self._models[index]


def _groups(indexes: np.ndarray) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
    """Return a stable order by table index, and (index, start, end) of each run in it."""
    order = np.argsort(indexes, kind="stable")
    ends = np.cumsum(np.bincount(indexes, minlength=1)).tolist()
    runs = zip(range(len(ends)), [0, *ends[:-1]], ends, strict=True)
    return order, [run for run in runs if run[1] < run[2]]


def _push_escapes(coder: Any, values: np.ndarray) -> None:
    """Encode integers by Elias gamma: the sign, the number of bits, the bits."""
    uniform = _constriction().stream.model.Uniform
    for value in reversed(values.tolist()):
        magnitude = abs(value) + 1
        bits = magnitude.bit_length() - 1
        if magnitude > LARGEST:
            raise CodecError(f"the model gave {value}, which is beyond what can be coded")
        if bits:
            coder.encode_reverse(np.array([magnitude - (1 << bits)], np.int32), uniform(1 << bits))
        coder.encode_reverse(np.array([bits << 1 | (value < 0)], np.int32), uniform(64))


def _pop_escapes(coder: Any, count: int) -> np.ndarray:
    uniform = _constriction().stream.model.Uniform
    values = np.empty(count, np.int64)
    for position in range(count):
        head = int(coder.decode(uniform(64), 1)[0])
        bits = head >> 1
        if bits > LARGEST.bit_length():
            raise CodecError("the bitstream is damaged")
        rest = int(coder.decode(uniform(1 << bits), 1)[0]) if bits else 0
        magnitude = (1 << bits) + rest - 1
        values[position] = -magnitude if head & 1 else magnitude
    return values


def _check(arrays: Sequence[np.ndarray]) -> int:
    """Return 24 bits, the first of them set, that depend on all integers."""
    value = 0
    for array in arrays:
        value = zlib.crc32(np.ascontiguousarray(array, "<i4").tobytes(), value)
    return value >> 9 | 1 << 23


def encode_parts(parts: Sequence[Part]) -> bytes:
    """Return the stream of several parts; no part's tables may depend on a later part."""
    ans = _constriction().stream.stack.AnsCoder
    coder = ans(np.array([_check([values for _, values, _ in parts])], np.uint32))
    for table_coder, values, indexes in reversed(parts):
        table_coder.push(coder, values, indexes)
    # The last word is the top of the stack; its leading zero bytes say nothing.
    words: np.ndarray = coder.get_compressed()
    return words.astype("<u4").tobytes().rstrip(b"\0")


def decode_parts(
    stream: bytes, parts: Sequence[Callable[[list[np.ndarray]], tuple[TableCoder, np.ndarray]]]
) -> list[np.ndarray]:
    """Return the integers of every part of a stream.

    Args:
        stream: what :func:`encode_parts` returned.
        parts: per part a function that gets the parts decoded so far and returns the coder and
            the table index of every integer.

    Raises:
        CodecError: the stream is damaged or cut short.
    """
    if not stream or stream[-1] == 0:
        raise CodecError("the bitstream is damaged")
    words = np.frombuffer(stream + bytes(-len(stream) % 4), "<u4").astype(np.uint32)
    coder = _constriction().stream.stack.AnsCoder(words)
    decoded: list[np.ndarray] = []
    for part in parts:
        table_coder, indexes = part(decoded)
        decoded.append(table_coder.pop(coder, indexes))
    rest = coder.get_compressed()
    if len(rest) != 1 or int(rest[0]) != _check(decoded):
        raise CodecError("the bitstream is damaged or cut short")
    return decoded
