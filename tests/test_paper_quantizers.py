"""The published quantisers against their formulas, and their storage."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cfqa_data.access.arrays import ArrayReader
from cfqa_data.access.files import LocalFiles
from cfqa_data.builders.pipeline.prepare import median_codes
from cfqa_data.codecs import get_codec
from cfqa_data.errors import BuildError, CodecError, RecipeError
from cfqa_data.format.codes import create_codes_array, write_codes
from cfqa_data.format.packing import pack
from cfqa_data.format.quantizers import (
    KMeansQuantizer,
    PaperKMeansQuantizer,
    PaperUniformQuantizer,
    Quantizer,
    UniformQuantizer,
    quantizer_from_dict,
)

DPT = (-2.38, -26.44, -323.30, -504.43), (3.27, 5.03, 25.05, 100.27)  # the published ranges
uniform = PaperUniformQuantizer(10, *DPT)
centers = tuple(tuple((layer + 1) * np.sinh(np.linspace(-3, 3, 256))) for layer in range(4))
kmeans = PaperKMeansQuantizer(8, centers)
features = hnp.arrays(np.float32, (2, 4, 3, 5), elements=st.floats(-800, 800, width=32))


@given(features)
def test_uniform_codes_are_the_published_cast(x: np.ndarray) -> None:
    expected = np.empty(x.shape, np.int64)
    for layer, (lo, hi) in enumerate(zip(*DPT, strict=True)):
        scale = 1023 / (hi - lo)
        steps = ((x[:, layer] - lo) * scale).astype(np.float32)
        expected[:, layer] = np.trunc(steps.astype(np.float64)).astype(np.int64) % 65536
    np.testing.assert_array_equal(uniform.quantize(x), expected)
    assert uniform.quantize(x).dtype == np.uint16


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="undefined in C")
@given(features)
def test_uniform_wraps_as_numpys_own_cast_does_here(x: np.ndarray) -> None:
    lo, hi = -2.38, 3.27
    expected = ((x - lo) * (1023 / (hi - lo))).astype(np.uint16)
    one = PaperUniformQuantizer(10, (lo,), (hi,))
    np.testing.assert_array_equal(one.quantize(x[:, :1]), expected[:, :1])


def test_what_wraps_and_what_does_not() -> None:
    one = PaperUniformQuantizer(10, (0.0,), (1023.0,))  # a step is 1
    steps = [-65537, -65536, -2, -1, -0.99, 0.99, 1, 1023, 1023.99, 1024, 65535, 65536, 65538, 3e38]
    codes = one.quantize(np.array(steps, np.float32).reshape(1, 1, -1)).ravel()
    expected = [65535, 0, 65534, 65535, 0, 0, 1, 1023, 1023, 1024, 65535, 0, 2, 0]
    np.testing.assert_array_equal(codes, expected)
    eight = PaperUniformQuantizer(8, (0.0,), (255.0,))
    x = np.array([-1, 256, 258], np.float32).reshape(1, 1, -1)
    np.testing.assert_array_equal(eight.quantize(x).ravel(), [255, 0, 2])
    assert eight.dtype == np.uint8


def test_far_beyond_float32_is_zero() -> None:
    one = PaperUniformQuantizer(10, (0.0,), (1e-3,))
    assert one.quantize(np.full((1, 1, 1), 3e38, np.float32)) == 0


@given(hnp.arrays(np.uint16, (1, 4, 3, 5), elements=st.integers(0, 1023)))
def test_uniform_values_are_the_published_formula(codes: np.ndarray) -> None:
    expected = np.empty(codes.shape, np.float32)
    for layer, (lo, hi) in enumerate(zip(*DPT, strict=True)):
        expected[:, layer] = codes[:, layer].astype(np.float32) / (1023 / (hi - lo)) + lo
    np.testing.assert_array_equal(uniform.dequantize(codes), expected)


def test_the_published_error_is_four_times_ours_within_the_range() -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(-500, 90, (1, 1, 500, 40)).astype(np.float32)
    lo, hi = (-542.31,), (94.15,)
    errors = {}
    for make in (UniformQuantizer, PaperUniformQuantizer):
        quantizer = make(10, lo, hi)
        errors[make] = float(np.square(quantizer.dequantize(quantizer.quantize(x)) - x).mean())
    assert errors[PaperUniformQuantizer] / errors[UniformQuantizer] == pytest.approx(4, rel=0.05)


@given(features)
def test_kmeans_codes_are_digitize_minus_one(x: np.ndarray) -> None:
    codes = kmeans.quantize(x)
    assert codes.dtype == np.uint8
    for layer, table in enumerate(kmeans.values()):
        expected = np.clip(np.digitize(x[:, layer], table) - 1, 0, 255)
        np.testing.assert_array_equal(codes[:, layer], expected)


def test_kmeans_takes_the_centre_below_where_the_nearest_is_above() -> None:
    table = ((0.0, 1.0, 2.0, 3.0),)
    x = np.array([-5, 0.0, 0.9, 1.0, 2.99, 9], np.float32).reshape(1, 1, -1)
    paper, ours = PaperKMeansQuantizer(2, table), KMeansQuantizer(2, table)
    np.testing.assert_array_equal(paper.quantize(x).ravel(), [0, 0, 0, 1, 2, 3])
    np.testing.assert_array_equal(ours.quantize(x).ravel(), [0, 0, 1, 1, 3, 3])


@given(hnp.arrays(np.float32, (1, 4, 3, 5), elements=st.floats(-2, 2, width=32)))
def test_kmeans_inverse_is_the_published_one(y: np.ndarray) -> None:
    found = kmeans.from_network(y)
    for layer, table in enumerate(kmeans.values()):
        index = np.clip(np.round(256 * y[:, layer]), 0, 255).astype(int)
        np.testing.assert_array_equal(found[:, layer], table[index])


def test_what_a_perfect_network_returns_are_the_codes() -> None:
    codes = np.random.default_rng(1).integers(0, 256, (1, 4, 3, 5)).astype(np.uint8)
    sent = kmeans.network_input(codes)
    assert (sent.dtype, float(sent.max()) < 1) == (np.float32, True)
    np.testing.assert_array_equal(kmeans.from_network(sent), kmeans.dequantize(codes))


@pytest.mark.parametrize("quantizer", [uniform, kmeans], ids=["paper_uniform", "paper_kmeans"])
def test_json_keeps_them_and_their_kind(quantizer: Quantizer) -> None:
    data = json.loads(json.dumps(quantizer.to_dict()))
    assert data["kind"].startswith("paper_")
    again = quantizer_from_dict(data)
    assert type(again) is type(quantizer)
    assert again == quantizer
    np.testing.assert_array_equal(again.values(), quantizer.values())


def test_they_are_not_the_quantisers_without_the_faults() -> None:
    assert uniform != UniformQuantizer(10, *DPT)
    assert kmeans != KMeansQuantizer(8, centers)
    for kind in ("paper_unifrom", "paper"):
        with pytest.raises(RecipeError, match="unknown quantiser kind"):
            quantizer_from_dict({"kind": kind})
    with pytest.raises(RecipeError, match="must be above lo"):
        quantizer_from_dict({"kind": "paper_uniform", "bits": 10, "lo": [1], "hi": [1]})
    with pytest.raises(CodecError, match="NaN or infinite"):
        uniform.quantize(np.full((1, 4, 1, 1), np.nan, np.float32))


def test_codes_that_wrapped_are_refused_by_name() -> None:
    x = np.zeros((1, 4, 16, 4), np.float32)
    x[0, 0, 3, 2] = -4.0  # 1.62 below lo: 293 steps
    codes = uniform.quantize(x)
    assert int(codes.max()) == 65536 - 293
    with pytest.raises(CodecError, match="65243 is not a 10-bit code"):
        uniform.dequantize(codes)
    with pytest.raises(CodecError, match=r"within 0\.\.1023, found .*65243"):
        get_codec("x265").encode(pack(codes), 20)
    with pytest.raises(BuildError, match="paper_uniform: a feature is outside its range"):
        median_codes(uniform, [x[None]])


@pytest.mark.parametrize("quantizer", [uniform, kmeans], ids=["paper_uniform", "paper_kmeans"])
def test_stored_codes_give_the_exact_features_back(quantizer: Quantizer, tmp_path: Path) -> None:
    shape, path = (2, 4, 3, 5), tmp_path / "codes.zarr"
    codes = np.random.default_rng(2).integers(0, 1 << quantizer.bits, (1, 2, *shape))
    codes = codes.astype(quantizer.dtype)
    create_codes_array(
        path,
        sources=1,
        levels=2,
        shape=shape,
        quantizer=quantizer,
        centres=[7, 0, 100, 255],
        source_ids=["a"],
    )
    write_codes(path, 0, codes[0])
    reader = ArrayReader(
        LocalFiles(path.parent),
        path.name,
        source_ids=["a"],
        levels=2,
        shape=shape,
        quantizer=quantizer,
    )
    for level in range(2):
        found = reader.read(0, level).dequantize()
        np.testing.assert_array_equal(found, quantizer.dequantize(codes[0, level]))
