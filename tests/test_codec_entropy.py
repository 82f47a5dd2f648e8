"""The hyperprior's entropy coder, against a coder in exact integers, and on malformed input."""

from __future__ import annotations

import math
import zlib

import numpy as np
import pytest
from codec_samples import ideal_bits
from hypothesis import given, settings
from hypothesis import strategies as st

from cfqa_data.codecs.hyperprior.entropy_coder import TableCoder, decoding, encode_parts
from cfqa_data.codecs.hyperprior.entropy_tables import (
    PRECISION,
    Density,
    Tables,
    bottleneck_tables,
    gaussian_tables,
    scale_table,
)
from cfqa_data.errors import CodecError

GAUSSIANS = gaussian_tables(scale_table())
CODER = TableCoder(GAUSSIANS)


def decode(stream: bytes, indexes: np.ndarray) -> np.ndarray:
    with decoding(stream) as part:
        return part(CODER, indexes)


def reference_push(state: int, tables: Tables, values: np.ndarray, indexes: np.ndarray) -> int:
    """Push integers onto an ANS state that is one integer, without words or floats.

    Its low 32 bits are what a word would take when the state outgrows 64 bits, as in
    constriction's published layout; a word is only ever written, so one integer will do.
    """
    words: list[int] = []
    for value, index in reversed(list(zip(values.tolist(), indexes.tolist(), strict=True))):
        counts, first = tables.table(index)
        entry = value - first + 1
        frequency = int(counts[entry]) + 1
        start = int(counts[:entry].astype(np.int64).sum()) + entry
        if state >> (64 - PRECISION) >= frequency:
            words.append(state & 0xFFFFFFFF)
            state >>= 32
        state = (state // frequency << PRECISION) + state % frequency + start
    for word in reversed(words):
        state = state << 32 | word
    return state


def test_the_stored_counts_are_the_coders_probabilities() -> None:
    generator = np.random.default_rng(0)
    indexes = np.sort(generator.integers(0, 64, 400))
    values = np.rint(generator.normal(size=400) * scale_table()[indexes] * 0.5).astype(np.int64)
    stream = encode_parts([(CODER, values, indexes)])
    # The first thing on the stack is the check: 24 bits, the first of them set.
    check = zlib.crc32(values.astype("<i4").tobytes()) >> 9 | 1 << 23
    found = int.from_bytes(stream, "little")
    assert found == reference_push(check, GAUSSIANS, values, indexes)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_integers_survive(data: st.DataObject) -> None:
    size = data.draw(st.integers(0, 40))
    integers = st.one_of(st.integers(-3, 3), st.integers(-(2**20) + 1, 2**20 - 1))
    values = np.array(data.draw(st.lists(integers, min_size=size, max_size=size)), np.int64)
    choices = data.draw(st.lists(st.integers(0, 63), min_size=size, max_size=size))
    indexes = np.array(choices, np.int64)
    assert np.array_equal(decode(encode_parts([(CODER, values, indexes)]), indexes), values)


def test_the_stream_is_as_long_as_the_tables_say() -> None:
    generator = np.random.default_rng(1)
    indexes = generator.integers(0, 64, 20000)
    values = np.rint(generator.normal(size=20000) * scale_table()[indexes]).astype(np.int64)
    actual, ideal = (
        len(encode_parts([(CODER, values, indexes)])),
        ideal_bits(CODER, values, indexes) / 8,
    )
    assert ideal <= actual <= ideal * 1.005 + 4


class PanicException(BaseException):
    """The exception that constriction raises when its Rust code panics."""


def test_a_panic_of_the_coders_library_is_an_error_like_any_other() -> None:
    def panics(*_: object) -> None:
        raise PanicException("assertion failed: range > 1")

    class Panicking(TableCoder):
        push = pop = panics  # type: ignore[assignment]

    nothing = np.zeros(0, np.int64)
    coder = Panicking(GAUSSIANS)
    with pytest.raises(CodecError, match="refused its input"):
        encode_parts([(coder, nothing, nothing)])
    with pytest.raises(CodecError, match="refused its input"), decoding(b"\1") as part:
        part(coder, nothing)


def test_nothing_costs_three_bytes() -> None:
    assert len(encode_parts([(CODER, np.zeros(0, np.int64), np.zeros(0, np.int64))])) == 3


def test_later_parts_see_earlier_ones() -> None:
    first, second = np.array([1, 0, 2]), np.array([5, -7, 30])
    parts = [(CODER, first, np.array([5, 5, 5])), (CODER, second, first + 30)]
    with decoding(encode_parts(parts)) as part:
        decoded = part(CODER, np.array([5, 5, 5]))
        assert np.array_equal(decoded, first)
        assert np.array_equal(part(CODER, decoded + 30), second)


def test_cut_and_damaged_streams_are_refused() -> None:
    generator = np.random.default_rng(2)
    indexes = generator.integers(0, 40, 300)
    values = np.rint(generator.normal(size=300) * scale_table()[indexes]).astype(np.int64)
    stream = encode_parts([(CODER, values, indexes)])
    broken = [stream[:length] for length in range(len(stream))]
    for place in range(len(stream)):
        damaged = bytearray(stream)
        damaged[place] ^= 1 << generator.integers(8)
        broken.append(bytes(damaged))
    broken += [stream + b"\1", stream + b"\0", generator.bytes(500), b"\0" * 8]
    for candidate in broken:
        with pytest.raises(CodecError):
            decode(candidate, indexes)


def test_integers_too_large_to_code_are_refused() -> None:
    with pytest.raises(CodecError, match="too large to code"):
        encode_parts([(CODER, np.array([1 << 21]), np.array([0]))])


def test_gaussian_tables_hold_gaussians() -> None:
    for index in (0, 20, 63):
        counts, first = GAUSSIANS.table(index)
        scale = scale_table()[index]
        masses = (counts[1:] + 1.0) / 2**PRECISION
        points = first + np.arange(len(masses))
        assert math.isclose(counts.sum() + len(counts), 2**PRECISION)
        assert np.allclose(masses, masses[::-1], atol=1e-6)
        variance = (masses * points**2).sum()
        assert math.isclose(variance, scale**2 + 1 / 12, rel_tol=0.01) or scale < 0.3


def test_bottleneck_tables_integrate_the_density() -> None:
    # One layer without hidden units: the logistic distribution of location -b/a and scale 1/a.
    a, b = 0.7, 1.3
    matrix = np.full((1, 1, 1), math.log(math.expm1(a)))
    prefix = "entropy_bottleneck._"
    density = Density({f"{prefix}matrix0": matrix, f"{prefix}bias0": np.full((1, 1, 1), b)})
    tables, medians = bottleneck_tables(density)
    assert math.isclose(medians[0], -b / a, abs_tol=1e-9)
    counts, first = tables.table(0)
    points = first + np.arange(len(counts) - 1)
    edges = [1 / (1 + np.exp(-a * (points + side))) for side in (-0.5, 0.5)]
    assert np.allclose((counts[1:] + 1.0) / 2**PRECISION, edges[1] - edges[0], atol=1e-5)
    assert counts[0] / 2**PRECISION < 2e-6


@pytest.mark.parametrize(
    ("counts", "sizes"), [([1, 2], [2]), ([2**24 - 2, 0, 5], [2]), ([2**24 - 1], [1]), ([], [])]
)
def test_tables_that_are_none_are_refused(counts: list[int], sizes: list[int]) -> None:
    with pytest.raises(CodecError):
        Tables(
            np.array(counts, np.uint32), np.array(sizes, np.int32), np.zeros(len(sizes), np.int32)
        )
