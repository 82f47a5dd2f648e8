"""Conformance suites of codecs: `PlaneCodecSuite`, `FeatureCodecSuite`, `InputCodecSuite`.

    class TestMine(FeatureCodecSuite):
        codec = Mine
        parameters = (64, 16, 4)

Override `items` and `parameters` where the defaults do not suit.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from typing import Any, ClassVar

import numpy as np
import pytest

from cfqa_data.codecs.base import AnyCodec, Codec
from cfqa_data.errors import CodecError
from cfqa_data.registry import bind_options
from cfqa_data.testing import required

__all__ = ["FeatureCodecSuite", "InputCodecSuite", "PlaneCodecSuite", "feature_plane"]

Case = tuple[Any, float, bytes]
"""An item, a parameter, and the bitstream of both."""


def feature_plane(rows: int, cols: int, peak: int, seed: int = 0) -> np.ndarray:
    """Return a plane like those of features.

    Adjacent rows are similar, and each column has its own mean and spread.
    """
    generator = np.random.default_rng(seed)
    columns = np.random.default_rng(7)
    level = columns.normal(0.5, 0.06, cols)
    spread = 0.02 * np.exp(columns.normal(0, 0.5, cols))
    rough = generator.standard_normal((rows + 4, cols))
    smooth = sum(rough[shift : shift + rows] for shift in range(5)) / np.sqrt(5)
    values = level + spread * (smooth + 0.4 * generator.standard_t(4, (rows, cols)))
    dtype = np.uint8 if peak < 256 else np.uint16
    return np.clip(np.rint(values * (peak + 1)), 0, peak).astype(dtype)


class CodecSuite:
    """Base class of the three suites.

    Attributes:
        codec: The class.
        options: Keyword arguments of the class.
        parameters: Some valid parameters, best quality first; by default from its grid.
    """

    codec: ClassVar[type[AnyCodec]] = required("the class of the codec")
    options: ClassVar[Mapping[str, Any]] = {}
    parameters: ClassVar[Sequence[float]] = ()

    @classmethod
    def items(cls) -> list[Any]:
        """Return typical items to encode, the first two of the same shape."""
        pytest.fail(
            f"{cls.__name__} lacks `items`: give it a classmethod `items` that returns inputs as "
            "the source returns them, the first two of the same shape",
            pytrace=False,
        )

    @classmethod
    def wrong_items(cls) -> list[Any]:
        """Return invalid items."""
        return []

    @classmethod
    def make(cls) -> Any:
        """Return a new codec, constructed as for a decoder."""
        return _make(cls.codec, dict(cls.options), _tables(cls))

    @classmethod
    def tried(cls) -> Sequence[float]:
        """Return the parameters to test, best quality first."""
        grid = cls.codec.grid() or ()
        if not cls.parameters and not grid:
            pytest.fail(
                f"{cls.__name__} lacks `parameters`: set it to several, best first: the codec's "
                "parameter has no lowest and highest value",
                pytrace=False,
            )
        return cls.parameters or grid[1 :: max(1, len(grid) // 3)]

    @classmethod
    def what(cls, item: Any) -> tuple[Any, ...]:
        """Return the decoder's arguments after the bitstream: the shape, for arrays."""
        return (item.shape,)

    @classmethod
    def check(cls, decoded: Any, item: Any) -> None:
        """Check that a decoded item has the same kind as the encoded one."""
        assert isinstance(decoded, np.ndarray)
        assert decoded.shape == item.shape
        assert np.isfinite(decoded).all()

    def decoded(self, codec: Any, case: Case) -> Any:
        """Return the decoded bitstream of a case."""
        return codec.decode(case[2], *self.what(case[0]))

    # The tests.

    def test_it_states_its_facts(self) -> None:
        facts = self.codec.facts()
        assert facts.parameter.check_levels(tuple(self.tried()))
        grid = self.codec.grid()
        assert grid is None or facts.parameter.check_levels(tuple(map(float, grid)))
        assert self.codec.cost > 0
        assert all(isinstance(uri, str) for uri in self.codec.weights(dict(self.options)))

    def test_it_tells_its_version(self) -> None:
        version = self.make().version()
        assert version
        for key, value in version.items():
            assert isinstance(key, str)
            assert isinstance(value, str)
            assert value

    def test_what_is_decoded_is_of_the_kind_of_what_was_encoded(self) -> None:
        codec = self.make()
        for case in _cases(type(self)):
            assert isinstance(case[2], bytes)
            self.check(self.decoded(codec, case), case[0])

    def test_another_process_makes_the_same_of_it(self) -> None:
        cases = _cases(type(self))
        results = _in_other_process(
            _recode,
            self.codec,
            dict(self.options),
            _tables(type(self)),
            [(item, parameter, bitstream, self.what(item)) for item, parameter, bitstream in cases],
        )
        codec = self.make()
        for case, (bitstream, decoded) in zip(cases, results, strict=True):
            assert bitstream == case[2]
            assert _same(decoded, self.decoded(codec, case))

    def test_what_was_coded_before_changes_nothing(self) -> None:
        codec = pickle.loads(pickle.dumps(self.make()))
        for item, parameter, bitstream in reversed(_cases(type(self))):
            assert codec.encode(item, parameter) == bitstream

    def test_a_bitstream_is_any_buffer_of_bytes(self) -> None:
        codec, case = self.make(), _cases(type(self))[-1]
        expected = self.decoded(codec, case)
        array = np.frombuffer(case[2], np.uint8)
        for buffer in (bytearray(case[2]), memoryview(case[2]), array):
            assert _same(codec.decode(buffer, *self.what(case[0])), expected)

    def test_cut_and_damaged_bitstreams_are_refused_or_of_the_right_kind(self) -> None:
        codec, (item, _, stream) = self.make(), _cases(type(self))[-1]
        for cut in (b"", stream[:1], stream[: len(stream) // 2]):
            with pytest.raises(CodecError):
                codec.decode(cut, *self.what(item))
        for damaged in _damaged(stream):
            try:
                decoded = codec.decode(damaged, *self.what(item))
            except CodecError:
                continue
            self.check(decoded, item)

    def test_impossible_parameters_are_refused(self) -> None:
        codec, parameter = self.make(), self.codec.parameter
        wrong = [float("nan"), float("inf"), "high", None, True]
        wrong += [] if parameter.lowest is None else [parameter.lowest - 1]
        wrong += [] if parameter.highest is None else [parameter.highest + 1]
        wrong += [self.tried()[0] + 0.5] if parameter.whole else []
        for value in wrong:
            with pytest.raises(CodecError):
                codec.encode(self.items()[0], value)

    def test_wrong_items_are_refused(self) -> None:
        codec = self.make()
        for item in self.wrong_items():
            with pytest.raises(CodecError):
                codec.encode(item, self.tried()[0])

    def test_rate_falls_from_the_best_level_to_the_worst(self) -> None:
        codec = self.make()
        cases = _cases(type(self))
        rates = []
        for level in self.tried():
            bits = [
                codec.rate(stream, item if codec.on == "inputs" else item.shape)
                for item, parameter, stream in cases
                if parameter == level
            ]
            assert all(isinstance(n, int) and n > 0 for n in bits) or codec.bits == "unknown"
            rates.append(bits)
        if codec.bits != "unknown":
            totals = [sum(bits) for bits in rates]
            assert totals == sorted(totals, reverse=True)
            assert totals[0] > totals[-1]


class ArrayCodecSuite(CodecSuite):
    """Base class of the suites of codecs on planes and on features."""

    def test_many_are_as_one_by_one(self) -> None:
        codec, parameter = self.make(), self.tried()[-1]
        items = [*self.items()[:2], self.items()[0]]
        streams = codec.encode_many(items, parameter)
        assert streams == [codec.encode(item, parameter) for item in items]
        decoded = codec.decode_many(streams, items[0].shape)
        for array, stream in zip(decoded, streams, strict=True):
            assert _same(array, codec.decode(stream, items[0].shape))
        assert codec.encode_many([], parameter) == []

    def test_another_shape_is_refused_or_given(self) -> None:
        codec, (item, _, stream) = self.make(), _cases(type(self))[-1]
        shape = item.shape
        for other in ((*shape[:-1], shape[-1] + 1), (*shape[:-2], shape[-2] + 1, shape[-1])):
            try:
                decoded = codec.decode(stream, other)
            except CodecError:
                continue
            assert decoded.shape == other

    def test_error_rises_from_the_best_level_to_the_worst(self) -> None:
        codec, errors = self.make(), []
        for level in self.tried():
            cases = [case for case in _cases(type(self)) if case[1] == level]
            errors.append(sum(_error(self.decoded(codec, case), case[0]) for case in cases))
        assert errors == sorted(errors)


class PlaneCodecSuite(ArrayCodecSuite):
    """Tests of a codec on planes."""

    codec: ClassVar[type[Codec]] = required("the class of the codec")

    @classmethod
    def items(cls) -> list[np.ndarray]:
        """Return planes like those of features."""
        peak = cls.codec.peak
        return [
            feature_plane(*shape, peak, n) for n, shape in enumerate([(33, 64)] * 2 + [(17, 31)])
        ]

    @classmethod
    def wrong_items(cls) -> list[Any]:
        """Return arrays that are not planes of codes."""
        peak = cls.codec.peak
        return [
            np.zeros((33, 64), np.float32),
            np.full((33, 64), peak + 1, np.int32),
            np.full((33, 64), -1, np.int32),
            np.zeros((2, 33, 64), np.uint8),
            np.zeros((0, 64), np.uint8),
        ]

    @classmethod
    def check(cls, decoded: Any, item: Any) -> None:
        """Check that a decoded item is a plane of codes."""
        super().check(decoded, item)
        assert decoded.dtype == cls.codec.dtype
        assert decoded.min() >= 0
        assert decoded.max() <= cls.codec.peak


class FeatureCodecSuite(ArrayCodecSuite):
    """Tests of a codec on features."""

    @classmethod
    def items(cls) -> list[np.ndarray]:
        """Return features of several shapes, some with a single token."""
        generator = np.random.default_rng(0)
        shapes = [(2, 3, 17, 24)] * 2 + [(1, 1, 1, 24), (1, 2, 5, 24)]
        return [(3 * generator.standard_normal(shape)).astype(np.float32) for shape in shapes]

    @classmethod
    def wrong_items(cls) -> list[Any]:
        """Return arrays that are not valid features."""
        feature = cls.items()[0]
        return [feature[0], np.full_like(feature, np.nan), np.full_like(feature, np.inf)]

    @classmethod
    def check(cls, decoded: Any, item: Any) -> None:
        """Check that a decoded item is a feature."""
        super().check(decoded, item)
        assert decoded.dtype == np.float32


class InputCodecSuite(CodecSuite):
    """Tests of a codec on inputs; subclasses must define `items`."""

    @classmethod
    def what(cls, item: Any) -> tuple[Any, ...]:
        """Return no arguments: the decoder only takes the bitstream."""
        return ()

    @classmethod
    def check(cls, decoded: Any, item: Any) -> None:
        """Check that a decoded item has the type, and any shape and dtype, of the encoded one."""
        assert isinstance(decoded, type(item))
        assert getattr(decoded, "shape", None) == getattr(item, "shape", None)
        assert getattr(decoded, "dtype", None) == getattr(item, "dtype", None)


def _make(codec: type[AnyCodec], options: dict[str, Any], tables: Any) -> Any:
    extra = {"tables": tables} if tables else {}
    return codec(**bind_options(codec, options, codec.name, CodecError, **extra))


def _fit_tables(suite: type[CodecSuite]) -> dict[str, np.ndarray]:
    """Return the fitted tables of a codec, after checking that fitting is deterministic."""
    fits = []
    for _ in range(2):
        codec = _make(suite.codec, dict(suite.options), None)
        if type(codec).fit is not AnyCodec.fit:
            codec.fit(iter(suite.items()), seed=0)
        fits.append(dict(codec.tables()))
    first, second = fits
    assert _same(first, second)
    assert all(isinstance(array, np.ndarray) for array in first.values())
    return first


def _encode_all(suite: type[CodecSuite]) -> list[Case]:
    """Return each item encoded at each tested parameter."""
    codec = suite.make()
    return [(x, p, codec.encode(x, p)) for p in suite.tried() for x in suite.items()]


_tables: Callable[[Any], dict[str, np.ndarray]] = cache(_fit_tables)
_cases: Callable[[Any], list[Case]] = cache(_encode_all)


def _damaged(stream: bytes) -> Iterator[bytes]:
    generator = np.random.default_rng(1)
    yield from (stream[:length] for length in (2, len(stream) // 3, len(stream) - 1))
    yield from (stream + b"\1", generator.bytes(300), b"\xff" * 9, bytes(50))
    for _ in range(20):
        damaged = bytearray(stream)
        damaged[generator.integers(len(stream))] ^= 1 << generator.integers(8)
        yield bytes(damaged)


def _error(decoded: np.ndarray, item: np.ndarray) -> float:
    return float(np.square(decoded.astype(np.float64) - item).mean())


def _same(a: Any, b: Any) -> bool:
    return pickle.dumps(a) == pickle.dumps(b)


def _recode(
    codec: type[AnyCodec], options: dict[str, Any], tables: Any, cases: list[tuple[Any, ...]]
) -> list[tuple[bytes, Any]]:
    instance = _make(codec, options, tables)
    return [(instance.encode(x, p), instance.decode(s, *what)) for x, p, s, what in cases]


@cache
def _pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def _in_other_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return the result of a function in another process."""
    return _pool().submit(function, *arguments).result()
