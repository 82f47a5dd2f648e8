"""Codecs on features: number formats against independent tables, rates and errors."""

from __future__ import annotations

import struct
import zlib
from fractions import Fraction
from itertools import pairwise
from typing import Any, get_args

import numpy as np
import pytest
import torch
from cases import each
from scipy.cluster.vq import kmeans2, vq

from cfqa_data.codecs import CODECS, get_codec
from cfqa_data.codecs.base import FeatureCodec
from cfqa_data.codecs.features.channels import Values
from cfqa_data.codecs.features.formats import FORMATS, Microscaling, Nvfp4Blocks, Scaled
from cfqa_data.codecs.features.numbers import FLOATS, Integer
from cfqa_data.codecs.features.packed import exact_product, pack_bits, rounded, unpack_bits
from cfqa_data.codecs.features.product import k_means, nearest
from cfqa_data.errors import CodecError

FEATURE_CODECS = [n for n, w in CODECS.builtin.items() if "codecs.features" in w]
FITTED = ("prune", "lowrank", "pq")
SHAPE = (2, 3, 7, 48)


def feature(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    generator = np.random.default_rng(seed)
    spread = np.linspace(0.2, 4, shape[-1])
    return (spread * generator.standard_normal(shape) + 0.5).astype(np.float32)


def codec_of(name: str, **options: Any) -> Any:
    """Return a codec, fitted to two features if it requires fitting."""
    codec = get_codec(name, **options)
    if name in FITTED:
        codec.fit(iter([feature(1), feature(2)]), seed=0)
        codec = get_codec(name, tables=codec.tables(), **options)
    return codec


# Number formats.

SMALL = ["e5m2", "e4m3", "e3m2", "e2m3", "e2m1"]


def exact_values(name: str) -> list[Fraction | None]:
    """Return the value of each code by the definition, in fractions; None for no number."""
    exponent, mantissa = int(name[1]), int(name[3])
    bias, found = 2 ** (exponent - 1) - 1, []
    for code in range(2 ** (exponent + mantissa)):
        field, rest = divmod(code, 2**mantissa)
        part = Fraction(rest, 2**mantissa)
        power = Fraction(2) ** (max(field, 1) - bias)
        found.append((part + (field > 0)) * power)
    if name == "e5m2":  # as in IEEE 754: the highest exponent is infinity and NaN
        found[-4:] = [None] * 4
    if name == "e4m3":  # the highest code only
        found[-1:] = [None]
    return found


@each("name", SMALL)
def test_every_code_has_the_value_of_the_definition(name: str) -> None:
    values = [np.nan if value is None else float(value) for value in exact_values(name)]
    numbers = FLOATS[name]
    decoded = numbers.decode(np.arange(2**numbers.bits))
    np.testing.assert_array_equal(decoded, [*values, *(-value for value in values)])
    assert np.signbit(decoded[len(values)])
    assert numbers.largest == np.nanmax(values)


def test_the_tables_of_the_specification() -> None:
    largest = {"e5m2": 57344, "e4m3": 448, "e3m2": 28, "e2m3": 7.5, "e2m1": 6}
    assert {name: FLOATS[name].largest for name in SMALL} == largest
    assert FLOATS["e2m1"].decode(np.arange(8)).tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 6]


@pytest.mark.parametrize(
    ("name", "dtype", "codes"),
    [
        ("e5m2", torch.float8_e5m2, torch.uint8),
        ("e4m3", torch.float8_e4m3fn, torch.uint8),
        ("float16", torch.float16, torch.int16),
        ("bfloat16", torch.bfloat16, torch.int16),
    ],
)
def test_torch_has_the_same_codes(name: str, dtype: torch.dtype, codes: torch.dtype) -> None:
    numbers = FLOATS[name]
    every = np.arange(2**numbers.bits).astype("u1" if numbers.bits == 8 else "u2")
    signed = torch.from_numpy(every.view("u1" if numbers.bits == 8 else "i2"))
    theirs = signed.view(dtype).double().numpy()
    theirs[np.isinf(theirs)] = np.nan
    np.testing.assert_array_equal(numbers.decode(every), theirs)

    generator = np.random.default_rng(0)
    values = (generator.standard_normal(5000) * 2.0 ** generator.uniform(-30, 15, 5000)).clip(
        -numbers.largest, numbers.largest
    )
    values = np.float32([*values, 0, -0.0, numbers.largest, -numbers.largest])
    found = torch.from_numpy(values).to(dtype).view(codes).numpy().view(every.dtype)
    np.testing.assert_array_equal(numbers.encode(values), found)


def test_float32_is_kept_bit_by_bit() -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 5000, np.uint32)
    values = bits.view(np.float32)
    bits, values = bits[np.isfinite(values)], values[np.isfinite(values)]
    np.testing.assert_array_equal(FLOATS["float32"].encode(values), bits)
    np.testing.assert_array_equal(FLOATS["float32"].decode(bits), values)
    assert np.isnan(FLOATS["float32"].decode(np.float32([np.inf, np.nan]).view(np.uint32))).all()


@each("name", SMALL)
def test_rounding_is_to_nearest_ties_to_even_and_saturates(name: str) -> None:
    numbers, values = FLOATS[name], [float(v) for v in exact_values(name) if v is not None]
    for code, (low, high) in enumerate(pairwise(values)):
        middle = (low + high) / 2
        around = np.array([low, np.nextafter(middle, 0), middle, np.nextafter(middle, 1e9), high])
        even = code + code % 2
        expected = np.array([code, code, even, code + 1, code + 1])
        np.testing.assert_array_equal(numbers.encode(around), expected)
        sign = 2 ** (numbers.bits - 1)
        np.testing.assert_array_equal(numbers.encode(-around), expected + sign)
    top = len(values) - 1
    beyond = np.array([values[-1] * 1.001, 1e6, np.finfo(np.float32).max])
    assert numbers.encode(beyond).tolist() == [top] * 3
    assert numbers.decode(numbers.encode(-beyond)).tolist() == [-values[-1]] * 3


@pytest.mark.parametrize("bits", range(2, 9))
def test_integers(bits: int) -> None:
    signed, unsigned = Integer(bits, signed=True), Integer(bits, signed=False)
    most = 2 ** (bits - 1) - 1
    assert signed.decode(np.arange(2**bits - 1)).tolist() == list(range(-most, most + 1))
    assert np.isnan(signed.decode(np.array(2**bits - 1)))
    assert unsigned.decode(np.arange(2**bits)).tolist() == list(range(2**bits))
    for numbers in (signed, unsigned):
        assert numbers.decode(numbers.encode(np.array([0.5, 1.5, 1e9]))).tolist() == [
            0.0,
            min(2, numbers.largest),
            numbers.largest,
        ]
    assert signed.decode(signed.encode(np.array([-1e9, -0.5]))).tolist() == [-most, 0]


@pytest.mark.parametrize("bits", [1, 2, 3, 6, 8, 11, 16, 32])
def test_codes_are_packed_the_highest_bit_first(bits: int) -> None:
    codes = np.random.default_rng(bits).integers(0, 2**bits, 37, np.uint32)
    text = "".join(f"{code:0{bits}b}" for code in codes.tolist())
    text += "0" * (-len(text) % 8)
    data = pack_bits(codes, bits)
    assert data == int(text, 2).to_bytes(len(text) // 8, "big")
    np.testing.assert_array_equal(unpack_bits(data, 37, bits), codes)


# Scales.


def nearest_value(values: np.ndarray, name: str) -> np.ndarray:
    """Return the nearest value of a format by search; ties go to the even code."""
    table = np.array([float(v) for v in exact_values(name) if v is not None])
    gaps = np.abs(np.abs(values)[..., None] - table)
    closest = gaps == gaps.min(axis=-1, keepdims=True)
    even = closest & (np.arange(len(table)) % 2 == 0)
    place = np.where(even.any(axis=-1), even.argmax(axis=-1), closest.argmax(axis=-1))
    return np.copysign(table[place], values)


@each("name", SMALL)
@each("saturating", [False, True])
def test_microscaling_formats_block_by_block(name: str, saturating: bool) -> None:
    values = feature(shape=(1, 2, 5, 75)).astype(np.float64)
    values[0, 1, 2, :32] = 0
    largest = float(max(v for v in exact_values(name) if v is not None))
    expected = np.empty_like(values)
    for place in np.ndindex(1, 2, 5):
        for start in (0, 32, 64):
            block = values[place][start : start + 32]
            peak = np.abs(block).max() or 1.0
            power = np.floor(np.log2(peak)) - np.floor(np.log2(largest))
            if not saturating:
                power += peak / 2.0**power > largest
            expected[place][start : start + 32] = nearest_value(block / 2.0**power, name) * (
                2.0**power
            )
    form = Microscaling(FLOATS[name], saturating=saturating)
    codes = form.encode(values)
    assert [array.shape for array in codes] == [shape for shape, _ in form.layout(values.shape)]
    np.testing.assert_array_equal(form.decode(codes), expected)
    if not saturating:
        assert np.abs(form.decode(codes) - values).max() <= np.abs(values).max() / 4


def test_the_rule_of_the_specification_cuts_peaks_and_ours_does_not() -> None:
    block = np.zeros((1, 1, 1, 32))
    block[..., 0] = 1.9  # E8M0 is 2^-8 by the rule, and 1.9 * 256 is beyond 448
    form = FLOATS["e4m3"]
    for saturating, expected in ((True, 1.75), (False, 1.875)):
        micro = Microscaling(form, saturating=saturating)
        assert micro.decode(micro.encode(block))[0, 0, 0, 0] == expected


def test_e8m0_is_as_torch_has_it() -> None:
    codes = np.arange(256, dtype=np.uint8)
    theirs = torch.from_numpy(codes).view(torch.float8_e8m0fnu).double().numpy()
    np.testing.assert_array_equal(Microscaling(FLOATS["e2m1"]).steps([codes]), theirs)


def test_nvfp4_block_by_block() -> None:
    values = feature(shape=(2, 1, 3, 40)).astype(np.float64)
    values[0, 0, 0, :16] = 0
    values[0, 0, 1, :16] *= 1e-6  # whose scale becomes 0
    whole = float(np.float32(np.abs(values).max() / (6 * 448)))
    expected = np.empty_like(values)
    for place in np.ndindex(2, 1, 3):
        for start in (0, 16, 32):
            block = values[place][start : start + 16]
            scale = whole * nearest_value(np.abs(block).max() / 6 / np.array(whole), "e4m3")
            part = nearest_value(block / scale, "e2m1") * scale if scale else 0 * block
            expected[place][start : start + 16] = part
    form = Nvfp4Blocks(FLOATS["e2m1"])
    np.testing.assert_array_equal(form.decode(form.encode(values)), expected)


@pytest.mark.parametrize(("axes", "shape"), [((3,), (2, 3, 7, 1)), ((0, 2), (1, 3, 1, 48))])
@pytest.mark.parametrize("bits", [2, 8])
def test_integers_with_scales(axes: tuple[int, ...], shape: tuple[int, ...], bits: int) -> None:
    values = feature().astype(np.float64)
    peaks = np.abs(values).max(axis=axes, keepdims=True)
    assert peaks.shape == shape
    step = (peaks / (2 ** (bits - 1) - 1)).astype(np.float32).astype(np.float64)
    form = Scaled(Integer(bits, signed=True), axes)
    np.testing.assert_array_equal(form.decode(form.encode(values)), np.rint(values / step) * step)
    low = values.min(axis=axes, keepdims=True)
    step = (values.max(axis=axes, keepdims=True) - low) / (2**bits - 1)
    step = step.astype(np.float32).astype(np.float64)
    form = Scaled(Integer(bits, signed=False), axes)
    expected = low + np.rint((values - low) / step) * step
    np.testing.assert_allclose(form.decode(form.encode(values)), expected, rtol=1e-12)


@each("name", FORMATS)
def test_no_format_assumes_a_scale(name: str) -> None:
    form, values = FORMATS[name], feature().astype(np.float64)
    relative = []
    for scale in (2.0**-10, 0.1, 1, 10, 2.0**10):
        error = form.decode(form.encode(scale * values)) - scale * values
        relative.append(np.sqrt(np.mean(error**2) / np.mean((scale * values) ** 2)))
    assert max(relative) < 1.25 * min(relative) + 1e-3
    assert max(relative) < {"4": 0.15, "6": 0.06}.get(name[-1], 0.05)


def test_every_format_can_be_chosen() -> None:
    assert get_args(Values) == tuple(FORMATS)


# Codecs.

RATES = [
    ("slice", {}, 5, 42 * 5 * 32),
    ("slice", {"values": "int8"}, 5, 42 * (32 + 5 * 8)),
    ("slice", {"values": "mxfp4"}, 33, 42 * (2 * 8 + 33 * 4)),
    ("prune", {"values": "float16"}, 5, 42 * 5 * 16),
    ("lowrank", {"values": "nvfp4"}, 17, 32 + 42 * (2 * 8 + 17 * 4)),
    ("topk", {}, 2, 42 * 2 * (6 + 32)),
    ("topk", {"values": "int8"}, 20, 42 * (48 + 32 + 20 * 8)),
    ("int", {}, 3, 42 * (32 + 48 * 3)),
    ("int", {"scale": "channel", "symmetric": False}, 4, 3 * 48 * 64 + 42 * 48 * 4),
    ("fp", {}, 6, 42 * (32 + 48 * 6)),
    ("fp", {"scale": "none"}, 8, 42 * 48 * 8),
    ("mxfp", {}, 4, 42 * (2 * 8 + 48 * 4)),
    ("nvfp4", {}, 16, 32 + 42 * (3 * 8 + 48 * 4)),
    ("pq", {}, 5, 42 * 12 * 5),
    ("pq", {"group": 7}, 8, 42 * 7 * 8),
]


@each(("name", "options", "parameter", "bits"), RATES)
def test_the_rate_is_what_a_receiver_needs(
    name: str, options: dict[str, Any], parameter: int, bits: int
) -> None:
    codec = codec_of(name, **options)
    stream = codec.encode(feature(), parameter)
    parts = codec.layout(parameter, SHAPE)
    filled = sum(-(-int(np.prod(shape)) * width // 8) for shape, width in parts)
    assert sum(int(np.prod(shape)) * width for shape, width in parts) == bits
    assert codec.rate(stream, SHAPE) == 16 + 8 * filled == 8 * (len(stream) - 4)


def test_every_codec_on_features_has_a_rate_above() -> None:
    assert {name for name, *_ in RATES} == set(FEATURE_CODECS)


@each(("name", "options", "parameter"), [row[:3] for row in RATES])
def test_damaged_bitstreams_are_refused(name: str, options: dict[str, Any], parameter: int) -> None:
    codec = codec_of(name, **options)
    stream = codec.encode(feature(), parameter)
    codec.decode(stream, SHAPE)
    generator = np.random.default_rng(0)
    for _ in range(40):
        damaged = bytearray(stream)
        damaged[generator.integers(len(stream))] ^= 1 << generator.integers(8)
        with pytest.raises(CodecError, match=f"^{name}: the bitstream is damaged, or not one of"):
            codec.decode(damaged, SHAPE)
    for other in ((2, 3, 48, 7), (1, 6, 7, 48), SHAPE[1:]):
        with pytest.raises(CodecError, match="not one of shape"):
            codec.decode(stream, other)


def forged(body: bytes) -> bytes:
    return body + struct.pack(">I", zlib.crc32(body, zlib.crc32(repr(SHAPE).encode())))


@each(("name", "options", "parameter"), [row[:3] for row in RATES])
def test_forged_bitstreams_are_refused_or_give_a_feature(
    name: str, options: dict[str, Any], parameter: int
) -> None:
    codec, generator = codec_of(name, **options), np.random.default_rng(0)
    stream = codec.encode(feature(), parameter)
    assert forged(stream[:-4]) == stream
    bodies = [stream[:2] + generator.bytes(len(stream) - 6) for _ in range(3)]
    bodies += [stream[:2] + fill * (len(stream) - 6) for fill in (b"\0", b"\xff", b"\x7f")]
    bodies += [b"", b"\0\0", b"\xff\xff" + stream[2:-4], stream[:-5], stream[:-4] + b"\0"]
    for body in bodies:
        try:
            decoded = codec.decode(forged(body), SHAPE)
        except CodecError:
            continue
        assert decoded.shape == SHAPE
        assert np.isfinite(decoded).all()


@each(("name", "options", "parameter"), [row[:3] for row in RATES])
def test_extreme_features(name: str, options: dict[str, Any], parameter: int) -> None:
    codec = codec_of(name, **options)
    for value in (0.0, 1e-45, 3.4e38, -3.4e38):
        decoded = codec.decode(codec.encode(np.full(SHAPE, value), parameter), SHAPE)
        assert np.isfinite(decoded).all()
    zero = codec.decode(codec.encode(np.zeros(SHAPE), parameter), SHAPE)
    assert name in FITTED or not zero.any()


def test_numbers_that_cannot_be_are_refused_in_a_line() -> None:
    for name in ("slice", "prune", "lowrank", "topk"):
        with pytest.raises(CodecError, match=f"^{name}: cannot keep 49 channels of 48$"):
            codec_of(name).encode(feature(), 49)
    for name, sizes in (("fp", "16, 8, 6, 4"), ("mxfp", "8, 6, 4")):
        message = f"^{name}: no format of 5 bits, only of {sizes}$"
        with pytest.raises(CodecError, match=message):
            codec_of(name).encode(feature(), 5)
    with pytest.raises(CodecError, match=r"^pq: a group must have 1 to 64 channels, got 0$"):
        get_codec("pq", group=0)
    with pytest.raises(CodecError, match=r"^slice: option values cannot be 'int9'$"):
        get_codec("slice", values="int9")
    with pytest.raises(
        CodecError, match=r"^int: untrusted=True decodes planes only, not features$"
    ):
        get_codec("int", untrusted=True)


@pytest.mark.parametrize("name", FITTED)
def test_fitted_codecs_need_their_own_tables(name: str) -> None:
    with pytest.raises(CodecError, match=rf"^{name}: has no tables: call fit\(\), or pass those"):
        get_codec(name).encode(feature(), 3)
    codec = codec_of(name)
    for shape in ((2, 2, 7, 48), (2, 3, 7, 49)):
        with pytest.raises(
            CodecError, match=f"^{name}: was fitted to different features: its table"
        ):
            codec.encode(feature(shape=shape), 3)
    with pytest.raises(CodecError, match=r"training features must share C and D, got \["):
        codec.fit(iter([feature(), feature(shape=(2, 2, 7, 48))]), seed=0)
    tables = {key: np.full_like(array, -1) for key, array in codec.tables().items()}
    if name == "prune":
        with pytest.raises(
            CodecError, match="its table 'order' is not a permutation of 48 channels"
        ):
            get_codec(name, tables=tables).encode(feature(), 3)


def training() -> np.ndarray:
    """Return the training tokens of `codec_of`, (C, tokens, D)."""
    both = np.concatenate([feature(1), feature(2)])
    return both.swapaxes(0, 1).reshape(3, -1, 48).astype(np.float64)


def squared_error(codec: FeatureCodec, parameter: int) -> np.ndarray:
    """Return the squared error of the training features, for each layer."""
    total = np.zeros(3)
    for one in (feature(1), feature(2)):
        decoded = codec.decode(codec.encode(one, parameter), SHAPE)
        total += np.square(decoded - one.astype(np.float64)).sum(axis=(0, 2, 3))
    return total


@pytest.mark.parametrize("kept", [1, 20, 47])
def test_low_rank_leaves_the_smallest_singular_values(kept: int) -> None:
    tokens = training()
    tokens -= tokens.mean(axis=1, keepdims=True)
    values = np.linalg.svd(tokens, compute_uv=False)  # 28 tokens: of 28 values at most
    expected = np.square(values[:, kept:]).sum(axis=1)
    np.testing.assert_allclose(squared_error(codec_of("lowrank"), kept), expected, atol=1e-4)


def test_low_rank_of_all_channels_is_the_feature() -> None:
    x = feature()
    decoded = codec_of("lowrank").decode(codec_of("lowrank").encode(x, 48), SHAPE)
    np.testing.assert_allclose(decoded, x, atol=2e-5)


def test_pruning_costs_the_variance_of_what_is_left_out() -> None:
    variances = np.sort(training().var(axis=1))[:, ::-1]
    expected = 28 * variances[:, 10:].sum(axis=1)
    np.testing.assert_allclose(squared_error(codec_of("prune"), 10), expected, rtol=1e-5)
    order = codec_of("prune", importance="magnitude").tables()["order"]
    np.testing.assert_array_equal(order, np.argsort(-np.abs(training()).mean(axis=1)))


def test_a_slice_is_a_slice() -> None:
    x = feature()
    decoded = get_codec("slice").decode(get_codec("slice").encode(x, 7), SHAPE)
    np.testing.assert_array_equal(decoded, np.where(np.arange(48) < 7, x, 0))


@pytest.mark.parametrize("kept", [1, 6, 8, 30, 48])
def test_the_largest_values_are_kept(kept: int) -> None:
    x = feature()
    x[0, 0, 0] = 1.0  # ties: the first ones
    decoded = get_codec("topk").decode(get_codec("topk").encode(x, kept), SHAPE)
    for row, found in zip(x.reshape(-1, 48), decoded.reshape(-1, 48), strict=True):
        chosen = sorted(range(48), key=lambda n: (-abs(row[n]), n))[:kept]
        np.testing.assert_array_equal(found, [row[n] if n in chosen else 0 for n in range(48)])


def test_exact_products_do_not_depend_on_the_order() -> None:
    generator = np.random.default_rng(0)
    values, order = generator.standard_normal((9, 300)), generator.permutation(300)
    matrix = rounded(generator.uniform(-1, 1, (300, 300)))
    found = exact_product(values, matrix.astype(np.float64))
    again = exact_product(values[:, order], matrix.astype(np.float64)[order])
    np.testing.assert_array_equal(found, again)
    np.testing.assert_allclose(found, values @ matrix, atol=1e-4)
    assert not exact_product(np.zeros((2, 300)), matrix.astype(np.float64)).any()


def test_k_means_is_that_of_scipy() -> None:
    points = np.random.default_rng(0).integers(-1000, 1000, (200, 4)).astype(np.float64)
    centres, weights = k_means(points, np.ones(200), 16)
    theirs, codes = kmeans2(points, points[:16], iter=10, minit="matrix")
    np.testing.assert_allclose(centres, theirs, atol=3)  # ours are whole numbers
    np.testing.assert_array_equal(nearest(points, centres), vq(points, centres)[0])
    np.testing.assert_array_equal(weights, np.bincount(codes, minlength=16))


def test_product_codes_are_those_of_the_nearest_centres() -> None:
    codec, x = codec_of("pq", group=7), feature()
    decoded = codec.decode(codec.encode(x, 3), SHAPE)
    centres = codec.tables()["centres_3"]
    for layer in range(3):
        for group in range(7):
            part = slice(7 * group, min(7 * group + 7, 48))
            points = x[:, layer, :, part].reshape(-1, part.stop - part.start)
            gaps = points[:, None] - centres[layer, group, None, :, : points.shape[1]]
            best = np.square(gaps).sum(axis=-1).min(axis=1)
            found = decoded[:, layer, :, part].reshape(points.shape) - points
            np.testing.assert_allclose(np.square(found).sum(axis=1), best, rtol=1e-4, atol=1e-8)


def test_product_quantisation_keeps_what_it_was_fitted_to() -> None:
    assert squared_error(codec_of("pq"), 8).max() < 1e-6  # 28 tokens, 256 centres


@pytest.mark.parametrize("scale", [0.1, 10])
@pytest.mark.parametrize("name", FITTED)
def test_fitted_codecs_assume_no_scale(name: str, scale: float) -> None:
    errors = []
    for factor in (1, scale):
        codec = get_codec(name)
        codec.fit(iter([factor * feature(1), factor * feature(2)]), seed=0)
        x = (factor * feature()).astype(np.float32)
        decoded = codec.decode(codec.encode(x, 4), SHAPE)
        errors.append(np.square(decoded - x).sum() / np.square(x).sum())
    np.testing.assert_allclose(errors[1], errors[0], rtol=0.02)
