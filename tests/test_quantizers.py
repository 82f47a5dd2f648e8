from __future__ import annotations

import json
from contextlib import suppress

import numpy as np
import pytest
from cases import each
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cfqa_data.errors import CodecError, RecipeError
from cfqa_data.format.quantizers import (
    KMeansQuantizer,
    PaperUniformQuantizer,
    Quantizer,
    UniformQuantizer,
    fit_kmeans,
    quantizer_from_dict,
)

finite = st.floats(-1e6, 1e6, width=32)
features = hnp.arrays(np.float32, (2, 3, 4, 5), elements=finite)


@st.composite
def quantizers(draw: st.DrawFn) -> Quantizer:
    """Quantisers of 3 layers."""
    bits = draw(st.integers(1, 10))
    if draw(st.booleans()):
        lo = draw(st.lists(st.floats(-1e4, 1e4), min_size=3, max_size=3))
        width = draw(st.lists(st.floats(10, 1e4), min_size=3, max_size=3))
        return UniformQuantizer(bits, tuple(lo), tuple(np.add(lo, width).tolist()))
    bits = min(bits, 5)
    row = st.lists(finite, min_size=1 << bits, max_size=1 << bits, unique=True).map(sorted)
    return KMeansQuantizer(bits, tuple(tuple(draw(row)) for _ in range(3)))


@given(quantizers(), features)
def test_quantize_finds_the_nearest_value(quantizer: Quantizer, x: np.ndarray) -> None:
    y = quantizer.dequantize(quantizer.quantize(x))
    table = quantizer.values().astype(np.float64)[:, None, None, :]
    nearest = np.abs(x[..., None].astype(np.float64) - table).min(-1)
    slack = 1e-6 * np.abs(quantizer.values()).max() + 1e-6 * np.abs(x)
    assert (np.abs(x.astype(np.float64) - y) <= nearest + slack).all()


@given(quantizers(), st.integers(0, 2**32 - 1))
def test_codes_survive_their_own_values(quantizer: Quantizer, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 1 << quantizer.bits, (2, 3, 4, 5))
    codes = codes.astype(quantizer.dtype)
    assert quantizer.dtype == (np.uint8 if quantizer.bits <= 8 else np.uint16)
    values = quantizer.dequantize(codes)
    assert values.dtype == np.float32
    again = quantizer.quantize(values)
    assert again.dtype == quantizer.dtype
    np.testing.assert_array_equal(again, codes)


@given(quantizers())
def test_json_keeps_a_quantizer_exactly(quantizer: Quantizer) -> None:
    again = quantizer_from_dict(json.loads(json.dumps(quantizer.to_dict())))
    assert again == quantizer
    np.testing.assert_array_equal(again.values(), quantizer.values())


def test_uniform_values_are_the_published_formula() -> None:
    quantizer = UniformQuantizer(10, (-506.97,), (105.95,))
    codes = np.arange(1024, dtype=np.uint16).reshape(1, 32, 32)
    expected = codes * (105.95 + 506.97) / 1023 - 506.97
    np.testing.assert_allclose(quantizer.dequantize(codes), expected, rtol=1e-6, atol=1e-5)


def test_values_beyond_the_ends_become_the_ends() -> None:
    for quantizer in (
        UniformQuantizer(10, (-1.0,), (1.0,)),
        KMeansQuantizer(1, ((-1.0, 1.0),)),
    ):
        x = np.array([-3e38, -2, 2, 3e38], np.float32).reshape(1, 2, 2)
        np.testing.assert_array_equal(
            quantizer.dequantize(quantizer.quantize(x)).ravel(), [-1, -1, 1, 1]
        )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_a_number_is_refused(bad: float) -> None:
    with pytest.raises(CodecError, match="NaN or infinite"):
        UniformQuantizer(8, (0.0,), (1.0,)).quantize(np.full((1, 1, 1), bad, np.float32))


def test_wrong_layers_and_codes_are_refused() -> None:
    quantizer = UniformQuantizer(10, (0.0, 0.0), (1.0, 1.0))
    with pytest.raises(CodecError, match=r"2 layer\(s\)"):
        quantizer.quantize(np.zeros((1, 3, 4, 5), np.float32))
    for code, dtype in ((1024, np.uint16), (-1, np.int64), (-1024, np.int16)):
        with pytest.raises(CodecError, match=f"^code {code} is not a 10-bit code$"):
            quantizer.dequantize(np.full((2, 1, 1), code, dtype))
    for codes in (np.zeros((2, 1, 1)), np.zeros((2, 1, 1), bool)):
        with pytest.raises(CodecError, match=f"^codes must be whole numbers, not {codes.dtype}$"):
            quantizer.dequantize(codes)
    assert quantizer.dequantize([[[0]], [[1023]]]).ravel().tolist() == [0.0, 1.0]  # type: ignore[arg-type]


@each(
    ("data", "message"),
    [
        ({"kind": "unifrom"}, "did you mean 'uniform'"),
        ({"kind": "uniform", "bits": 10, "lo": [0]}, "uniform quantiser lacks hi"),
        ({"kind": "uniform", "bits": 10, "lo": [0], "hi": [1], "high": 2}, "did you mean 'hi'"),
        ({"kind": "uniform", "bits": 0, "lo": [0], "hi": [1]}, "from 1 to 16"),
        ({"kind": "uniform", "bits": True, "lo": [0], "hi": [1]}, "from 1 to 16"),
        ({"kind": "uniform", "bits": 8, "lo": [1], "hi": [1]}, "must be above lo"),
        ({"kind": "uniform", "bits": 8, "lo": [0, 0], "hi": [1]}, "one number per layer"),
        ({"kind": "uniform", "bits": 8, "lo": [float("nan")], "hi": [1]}, "finite"),
        ({"kind": "uniform", "bits": 8, "lo": ["a"], "hi": [1]}, "must be numbers"),
        ({"kind": "kmeans", "bits": 1, "centers": [[1, 0]]}, "increasing"),
        ({"kind": "kmeans", "bits": 2, "centers": [[0, 1]]}, r"\(C, 4\)"),
        ({"kind": "kmeans", "bits": 1, "centers": [[0, 1], [0]]}, "must be numbers"),
        ("uniform", "must be a table"),
    ],
)
def test_impossible_quantizers_are_refused(data: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        quantizer_from_dict(data)


def test_kmeans_agrees_with_plain_lloyd() -> None:
    samples = np.random.default_rng(0).standard_t(3, 2000)
    centers = np.linspace(samples.min(), samples.max(), 16)
    for _ in range(200):
        nearest = np.abs(samples[:, None] - centers).argmin(1)
        for k in range(16):
            if (nearest == k).any():
                centers[k] = samples[nearest == k].mean()
    np.testing.assert_allclose(fit_kmeans(samples, 4), centers, rtol=1e-5)


@given(hnp.arrays(np.float32, st.integers(2, 60), elements=st.floats(-100, 100, width=32)))
def test_kmeans_never_loses_to_its_start(samples: np.ndarray) -> None:
    if np.ptp(samples) < 1e-2:
        return
    start = np.linspace(samples.min(), samples.max(), 8)
    centers = fit_kmeans(samples, 3)
    assert (np.diff(centers) > 0).all()

    def error(table: np.ndarray) -> float:
        return float(np.square(np.abs(samples[:, None] - table.astype(np.float64)).min(1)).sum())

    assert error(centers) <= error(start) * (1 + 1e-5) + 1e-5


@pytest.mark.parametrize("samples", [[], [1.0, 1.0], [0.0, np.nan]])
def test_kmeans_refuses_samples_without_a_range(samples: list[float]) -> None:
    with pytest.raises(RecipeError, match="more than one value"):
        fit_kmeans(np.array(samples), 4)


@each("kind", ["uniform", "paper_uniform"])
@each(
    ("lo", "hi", "message"),
    [
        ([0], [10**400], "hi must be numbers"),
        ([-1e308], [1e308], "lo must be finite float32 numbers"),
        ([0], [1e39], "hi must be finite float32 numbers"),
        ([0], [1e-320], "must be above lo"),
        ("12", "34", "lo must be at most 64 numbers"),
        ({"0": 1}, [2], "lo must be at most 64 numbers"),
        ([0] * 65, [1] * 65, "lo must be at most 64 numbers"),
        ([0], [float("nan")], "hi must be finite"),
    ],
)
def test_ranges_of_strangers_are_refused_in_one_line(
    kind: str, lo: object, hi: object, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        quantizer_from_dict({"kind": kind, "bits": 10, "lo": lo, "hi": hi})


@each("centers", [[[0, 10**400]], [[0, 1e39]], [[0, [1]]], "ab", [[1, 0]], []])
@each("kind", ["kmeans", "paper_kmeans"])
def test_centres_of_strangers_are_refused_in_one_line(kind: str, centers: object) -> None:
    with pytest.raises(RecipeError, match="k-means quantiser: centers must be"):
        quantizer_from_dict({"kind": kind, "bits": 1, "centers": centers})


def test_no_table_is_made_before_it_is_used() -> None:
    made = [UniformQuantizer(16, (0.0,) * 64, (1.0,) * 64), KMeansQuantizer(1, ((0.0, 1.0),))]
    for quantizer in made:
        assert quantizer.size == quantizer.layers << quantizer.bits
        assert "_values" not in vars(quantizer)
    assert made[1].values().shape == (1, 2)


@each("kind", [UniformQuantizer, PaperUniformQuantizer])
@each("bits", [1, 8, 10])
@each("lo", [0.0, -1e-40, -7.3, 1e5, -1e38])
def test_a_range_that_is_taken_has_rising_values(
    kind: type[UniformQuantizer], bits: int, lo: float
) -> None:
    for exponent in range(-150, 128, 3):
        with suppress(RecipeError):
            assert (np.diff(kind(bits, (lo,), (lo + 1.7 * 2.0**exponent,)).values()) > 0).all()
