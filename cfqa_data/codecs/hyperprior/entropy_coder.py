"""One ANS stream for integers that each have a table, escapes included.

Asymmetric numeral systems (Duda, arXiv 1311.2540) as constriction implements them: a stack,
so what is decoded first is encoded last.  The stack starts from a 24-bit checksum of the
integers; a stack that starts empty would waste as many bits, so the check costs nothing, and
it tells a damaged or shortened stream from a sound one.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np

from cfqa_data.codecs.hyperprior.entropy_escapes import (
    pop_gamma,
    pop_nibbles,
    push_gamma,
    push_nibbles,
    unzigzag,
    zigzag,
)
from cfqa_data.codecs.hyperprior.entropy_tables import PRECISION, Tables
from cfqa_data.errors import CodecError
from cfqa_data.extras import extras

__all__ = ["Part", "TableCoder", "decode_parts", "encode_parts"]

Part = tuple["TableCoder", np.ndarray, np.ndarray]
"""A coder, the integers (n,), and the index of each one's table (n,)."""


@extras()
def _constriction() -> ModuleType:
    import constriction

    return constriction


class TableCoder:
    """Codes integers by the tables of one family; all integers of a table go in one call.

    Args:
        tables: of the family.
        beyond: whether an escaped integer is told by how far it lies beyond its table, instead of
            by itself.
    """

    def __init__(self, tables: Tables, beyond: bool = False) -> None:
        self.tables = tables
        self.beyond = beyond
        self._models: dict[int, Any] = {}

    def push(self, coder: Any, values: np.ndarray, indexes: np.ndarray) -> None:
        """Encode ``values`` onto the stack; :meth:`pop` gets them back in their order."""
        order, groups = _groups(indexes)
        values = values[order]
        coded = []
        escaped = [values[:0]]
        for index, start, end in groups:
            size, first = int(self.tables.sizes[index]), int(self.tables.firsts[index])
            entries = values[start:end] - (first - 1)
            outside = (entries < 1) | (entries >= size)
            if self.beyond:
                escaped.append(zigzag(entries[outside], size))
            else:
                escaped.append(values[start:end][outside])
            entries[outside] = 0
            coded.append((self._model(index), entries.astype(np.int32)))
        push = push_nibbles if self.beyond else push_gamma
        push(coder, _constriction().stream.model.Uniform, np.concatenate(escaped))
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
        pop = pop_nibbles if self.beyond else pop_gamma
        told = pop(coder, _constriction().stream.model.Uniform, int(escaped.sum()))
        if self.beyond:
            tables = indexes[order][escaped]
            firsts = self.tables.firsts[tables].astype(np.int64)
            told = unzigzag(told, self.tables.sizes[tables].astype(np.int64)) + firsts - 1
        values[escaped] = told
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
            if self.beyond:
                excess = zigzag(entries[outside], len(counts))
                total += float((4 + 4 * np.ceil(np.log2(excess + 1.0) / 4)).sum())
            else:
                total += float((6 + np.floor(np.log2(np.abs(chosen[outside]) + 1.0))).sum())
            entries[outside] = 0
            total += float((PRECISION - np.log2(counts[entries] + 1.0)).sum())
        return total

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
    order = np.argsort(indexes, kind="stable")
    ends = np.cumsum(np.bincount(indexes, minlength=1)).tolist()
    runs = zip(range(len(ends)), [0, *ends[:-1]], ends, strict=True)
    return order, [run for run in runs if run[1] < run[2]]


def _check(arrays: Sequence[np.ndarray]) -> int:
    """Return 24 bits, the first of them set, that depend on all integers."""
    value = 0
    for array in arrays:
        value = zlib.crc32(np.ascontiguousarray(array, "<i4").tobytes(), value)
    return value >> 9 | 1 << 23


def encode_parts(parts: Sequence[Part]) -> bytes:
    """Return the stream of several parts; no part's tables may depend on a later part."""
    ans = _constriction().stream.stack.AnsCoder
    with _panics_as_errors():
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
    with _panics_as_errors():
        for part in parts:
            table_coder, indexes = part(decoded)
            decoded.append(table_coder.pop(coder, indexes))
    rest = coder.get_compressed()
    if len(rest) != 1 or int(rest[0]) != _check(decoded):
        raise CodecError("the bitstream is damaged or cut short")
    return decoded
