"""Entropy coding of integers with one table each, as a single ANS stream with escapes.

Asymmetric numeral systems (Duda, arXiv 1311.2540) as constriction implements them: a stack,
so what is decoded first is encoded last.  The stack starts from a 24-bit checksum of the
integers; a stack that starts empty would waste as many bits, so the check costs nothing, and
it tells a damaged or shortened stream from a sound one.

The integers that no table holds follow behind their table's escape, without a model. The models
that ship write the integer itself by Elias gamma. Models that are compared with CompressAI's coding
write, as it does, how far the integer lies beyond its table, in groups of four bits after their
number.
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
"""Integers beyond +-LARGEST cannot be coded."""

TablePart = tuple["TableCoder", np.ndarray, np.ndarray]
"""A coder, the integers (n,), and the index of each one's table (n,)."""


@extras()
def _constriction() -> ModuleType:
    import constriction

    return constriction


@cache
def _uniform(size: int) -> Any:
    """Return the coder's model of integers below a number, all alike."""
    return _constriction().stream.model.Uniform(size)


class TableCoder:
    """Codes integers by the tables of one family; all integers of a table go in one call.

    Args:
        tables: Of the family.
        beyond: Whether an escaped integer is coded as its distance beyond the table, instead of
            by itself.
    """

    def __init__(self, tables: Tables, beyond: bool = False) -> None:
        self.tables = tables
        self.beyond = beyond
        self._models: dict[int, Any] = {}

    def push(self, coder: Any, values: np.ndarray, indexes: np.ndarray) -> None:
        """Encode ``values`` onto the stack; :meth:`pop` gets them back in their order."""
        order, groups = _groups(indexes)
        values, sizes, firsts = values[order], *self._bounds(indexes[order])
        entries = values - firsts + 1
        outside = (entries < 1) | (entries >= sizes)
        escaped = values[outside]
        if self.beyond:  # odd below the table, even above
            past = entries[outside]
            escaped = np.where(past < 1, 1 - 2 * past, 2 * (past - sizes[outside]))
        for value in reversed(escaped.tolist()):
            for digit, base in reversed(self._digits(value)):
                coder.encode_reverse(np.array([digit], np.int32), _uniform(base))
        entries = np.where(outside, 0, entries).astype(np.int32)
        for index, start, end in reversed(groups):
            coder.encode_reverse(entries[start:end], self._model(index))

    def pop(self, coder: Any, indexes: np.ndarray) -> np.ndarray:
        """Decode the integers that :meth:`push` encoded with these table indexes."""
        order, groups = _groups(indexes)
        entries = np.empty(len(indexes), np.int64)
        for index, start, end in groups:
            entries[start:end] = coder.decode(self._model(index), end - start)
        sizes, firsts = self._bounds(indexes[order])
        outside = entries == 0
        escaped = np.array([self._escaped(coder) for _ in range(outside.sum())], np.int64)
        if self.beyond:
            past = np.where(escaped & 1, (1 - escaped) // 2, sizes[outside] + escaped // 2)
            escaped = past + firsts[outside] - 1
        values = entries + firsts - 1
        values[outside] = escaped
        result = np.empty_like(values)
        result[order] = values
        return result

    def _bounds(self, indexes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return sizes and first integers of tables."""
        sizes, firsts = self.tables.sizes, self.tables.firsts
        return sizes[indexes].astype(np.int64), firsts[indexes].astype(np.int64)

    def _digits(self, value: int) -> list[tuple[int, int]]:
        """Return an escaped integer as digits, each with its base, in the order of decoding."""
        if abs(value) >= (2 * LARGEST + 1 if self.beyond else LARGEST):
            value //= 2 if self.beyond else 1
            raise CodecError(f"the model gave {value}, which is too large to code")
        if self.beyond:
            groups = -(-value.bit_length() // 4)
            return [(groups, 16), *((value >> 4 * place & 15, 16) for place in range(groups))]
        magnitude = abs(value) + 1
        bits = magnitude.bit_length() - 1
        rest = [(magnitude - (1 << bits), 1 << bits)] if bits else []
        return [(bits << 1 | (value < 0), 64), *rest]

    def _escaped(self, coder: Any) -> int:
        """Decode an integer that was written as :meth:`_digits`."""

        def digit(base: int) -> int:
            return int(coder.decode(_uniform(base), 1)[0])

        head = digit(16 if self.beyond else 64)
        if (head > 6) if self.beyond else (head >> 1 > LARGEST.bit_length()):
            raise CodecError("the bitstream is damaged")
        if self.beyond:
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
    """Raise what constriction's Rust code panics with as a `CodecError`.

    A ``PanicException`` is no `Exception`: it would pass by every handler up to the user.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise CodecError(f"the entropy coder refused its input ({error})") from None


def _groups(indexes: np.ndarray) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
    """Return a stable order by table index, and (index, start, end) of each run in it."""
    order = np.argsort(indexes.astype(np.min_scalar_type(indexes.max(initial=0))), kind="stable")
    ends = np.cumsum(np.bincount(indexes, minlength=1)).tolist()
    runs = zip(range(len(ends)), [0, *ends[:-1]], ends, strict=True)
    return order, [run for run in runs if run[1] < run[2]]


def _check(arrays: Sequence[np.ndarray]) -> int:
    """Return 24 bits, the first of them set, that depend on all integers."""
    value = 0
    for array in arrays:
        value = zlib.crc32(np.ascontiguousarray(array, "<i4").tobytes(), value)
    return value >> 9 | 1 << 23


def encode_parts(parts: Sequence[TablePart]) -> bytes:
    """Return the stream of several parts; no part's tables may depend on a later part."""
    ans = _constriction().stream.stack.AnsCoder
    with _panics_as_errors():
        coder = ans(np.array([_check([values for _, values, _ in parts])], np.uint32))
        for table_coder, values, indexes in reversed(parts):
            table_coder.push(coder, values, indexes)
    # The last word is the top of the stack; its leading zero bytes say nothing.
    words: np.ndarray = coder.get_compressed()
    return words.astype("<u4").tobytes().rstrip(b"\0")


@contextmanager
def decoding(stream: bytes) -> Iterator[Callable[[TableCoder, np.ndarray], np.ndarray]]:
    """Give a function that decodes a stream part by part, as :func:`encode_parts` was given them.

    Its arguments are the coder of the part and the table index of every integer, which may depend
    on the parts before.

    Raises:
        CodecError: If the stream is damaged or cut short, or not all of it was decoded.
    """
    if not stream or stream[-1] == 0:
        raise CodecError("the bitstream is damaged")
    words = np.frombuffer(stream + bytes(-len(stream) % 4), "<u4").astype(np.uint32)
    coder = _constriction().stream.stack.AnsCoder(words)
    decoded: list[np.ndarray] = []

    def part(table_coder: TableCoder, indexes: np.ndarray) -> np.ndarray:
        decoded.append(table_coder.pop(coder, indexes))
        return decoded[-1]

    with _panics_as_errors():
        yield part
    rest = coder.get_compressed()
    if len(rest) != 1 or int(rest[0]) != _check(decoded):
        raise CodecError("the bitstream is damaged or cut short")
