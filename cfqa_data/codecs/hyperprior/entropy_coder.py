"""Entropy coding of integers with one table each, as a single ANS stream with escapes.

Asymmetric numeral systems (Duda, arXiv 1311.2540) in the implementation of constriction work as a
stack: what is decoded first is encoded last. The stack starts with a 24-bit checksum of the
integers, which detects damaged or truncated streams. It costs nothing, because a stack that starts
empty would waste as many bits.

Integers outside their table are coded after an escape symbol, without a model. The models that ship
write the integer itself by Elias gamma. Models for comparison with CompressAI write its distance
from the table, as CompressAI does: the number of 4-bit groups, then the groups.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from cfqa_data.codecs.hyperprior.entropy_tables import Tables
from cfqa_data.errors import CodecError
from cfqa_data.extras import extras

__all__ = ["LARGEST", "TableCoder", "TablePart", "decoding", "encode_parts"]

LARGEST = 1 << 20
"""Limit of the magnitude of integers that can be coded."""

TablePart = tuple["TableCoder", np.ndarray, np.ndarray]
"""A coder, the integers (n,), and the table index of each (n,)."""


@extras()
def _constriction() -> ModuleType:
    import constriction

    return constriction


@cache
def _uniform(size: int) -> Any:
    """Return the uniform model of the integers below ``size``."""
    return _constriction().stream.model.Uniform(size)


class TableCoder:
    """Codes integers with a family of tables; all integers of one table are coded in one call.

    Args:
        tables: The family of tables.
        by_distance: Whether an escaped integer is coded as its distance from the table instead of
            its value.
    """

    def __init__(self, tables: Tables, by_distance: bool = False) -> None:
        self.tables = tables
        self.by_distance = by_distance
        self._models: dict[int, Any] = {}

    def push(self, coder: Any, values: np.ndarray, indexes: np.ndarray) -> None:
        """Encode ``values`` onto the stack; :meth:`pop` returns them in the same order."""
        order, groups = _group_by_table(indexes)
        values, sizes, firsts = values[order], *self._bounds(indexes[order])
        entries = values - firsts + 1
        outside = (entries < 1) | (entries >= sizes)
        escaped = values[outside]
        if self.by_distance:  # odd numbers are below the table, even ones above
            positions = entries[outside]
            escaped = np.where(positions < 1, 1 - 2 * positions, 2 * (positions - sizes[outside]))
        for value in reversed(escaped.tolist()):
            for digit, base in reversed(self._digits(value)):
                coder.encode_reverse(np.array([digit], np.int32), _uniform(base))
        entries = np.where(outside, 0, entries).astype(np.int32)
        for index, start, end in reversed(groups):
            coder.encode_reverse(entries[start:end], self._model(index))

    def pop(self, coder: Any, indexes: np.ndarray) -> np.ndarray:
        """Decode the integers that :meth:`push` encoded with these table indexes."""
        order, groups = _group_by_table(indexes)
        entries = np.empty(len(indexes), np.int64)
        for index, start, end in groups:
            entries[start:end] = coder.decode(self._model(index), end - start)
        sizes, firsts = self._bounds(indexes[order])
        outside = entries == 0
        escaped = np.array([self._decode_escaped(coder) for _ in range(outside.sum())], np.int64)
        if self.by_distance:
            positions = np.where(escaped & 1, (1 - escaped) // 2, sizes[outside] + escaped // 2)
            escaped = positions + firsts[outside] - 1
        values = entries + firsts - 1
        values[outside] = escaped
        result = np.empty_like(values)
        result[order] = values
        return result

    def _bounds(self, indexes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the sizes and the first integers of tables."""
        sizes, firsts = self.tables.sizes, self.tables.firsts
        return sizes[indexes].astype(np.int64), firsts[indexes].astype(np.int64)

    def _digits(self, value: int) -> list[tuple[int, int]]:
        """Return the digits of an escaped integer, each with its base, in decoding order."""
        if abs(value) >= (2 * LARGEST + 1 if self.by_distance else LARGEST):
            value //= 2 if self.by_distance else 1
            raise CodecError(f"the model gave {value}, which is too large to code")
        if self.by_distance:
            groups = -(-value.bit_length() // 4)
            return [(groups, 16), *((value >> 4 * place & 15, 16) for place in range(groups))]
        magnitude = abs(value) + 1
        bits = magnitude.bit_length() - 1
        rest = [(magnitude - (1 << bits), 1 << bits)] if bits else []
        return [(bits << 1 | (value < 0), 64), *rest]

    def _decode_escaped(self, coder: Any) -> int:
        """Decode an integer that was written as :meth:`_digits`."""

        def digit(base: int) -> int:
            return int(coder.decode(_uniform(base), 1)[0])

        head = digit(16 if self.by_distance else 64)
        if (head > 6) if self.by_distance else (head >> 1 > LARGEST.bit_length()):
            raise CodecError("the bitstream is damaged")
        if self.by_distance:
            return sum(digit(16) << 4 * place for place in range(head))
        bits = head >> 1
        magnitude = (1 << bits) + (digit(1 << bits) if bits else 0) - 1
        return -magnitude if head & 1 else magnitude

    def _model(self, index: int) -> Any:
        if index not in self._models:
            counts = self.tables.table(index)[0].astype(np.float64)
            family = _constriction().stream.model.Categorical
            self._models[index] = family(counts, perfect=False)
        return self._models[index]


@contextmanager
def _panics_as_errors() -> Iterator[None]:
    """Convert panics of constriction's Rust code to `CodecError`.

    A ``PanicException`` is no `Exception`, so ordinary handlers would not catch it.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise CodecError(f"the entropy coder refused its input ({error})") from None


def _group_by_table(indexes: np.ndarray) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
    """Return a stable order by table index, and (index, start, end) of each run in it."""
    order = np.argsort(indexes.astype(np.min_scalar_type(indexes.max(initial=0))), kind="stable")
    ends = np.cumsum(np.bincount(indexes, minlength=1)).tolist()
    runs = zip(range(len(ends)), [0, *ends[:-1]], ends, strict=True)
    return order, [run for run in runs if run[1] < run[2]]


def _checksum(arrays: Sequence[np.ndarray]) -> int:
    """Return a 24-bit checksum of all integers, with its top bit set."""
    value = 0
    for array in arrays:
        value = zlib.crc32(np.ascontiguousarray(array, "<i4").tobytes(), value)
    return value >> 9 | 1 << 23


def encode_parts(parts: Sequence[TablePart]) -> bytes:
    """Return the stream of several parts; the tables of a part may depend only on earlier parts."""
    ans = _constriction().stream.stack.AnsCoder
    with _panics_as_errors():
        coder = ans(np.array([_checksum([values for _, values, _ in parts])], np.uint32))
        for table_coder, values, indexes in reversed(parts):
            table_coder.push(coder, values, indexes)
    # The last word is the top of the stack; its leading zero bytes are redundant.
    words: np.ndarray = coder.get_compressed()
    return words.astype("<u4").tobytes().rstrip(b"\0")


@contextmanager
def decoding(stream: bytes) -> Iterator[Callable[[TableCoder, np.ndarray], np.ndarray]]:
    """Yield a function that decodes the parts of a stream of :func:`encode_parts` in order.

    Its arguments are the coder of the part and the table index of every integer, which may depend
    on earlier parts.

    Raises:
        CodecError: If the stream is damaged or truncated, or not all of it was decoded.
    """
    if not stream or stream[-1] == 0:
        raise CodecError("the bitstream is damaged")
    words = np.frombuffer(stream + bytes(-len(stream) % 4), "<u4").astype(np.uint32)
    coder = _constriction().stream.stack.AnsCoder(words)
    decoded: list[np.ndarray] = []

    def decode(table_coder: TableCoder, indexes: np.ndarray) -> np.ndarray:
        decoded.append(table_coder.pop(coder, indexes))
        return decoded[-1]

    with _panics_as_errors():
        yield decode
    rest = coder.get_compressed()
    if len(rest) != 1 or int(rest[0]) != _checksum(decoded):
        raise CodecError("the bitstream is damaged or cut short")
