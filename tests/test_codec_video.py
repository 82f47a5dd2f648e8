"""x265 and VVenC: properties of the bitstreams of any plane."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
from codec_samples import extreme_planes, feature_plane, mse

from cfqa_data.codecs import get_codec
from cfqa_data.codecs.h26x.vvc import nal_type, nal_units
from cfqa_data.errors import CodecError, MissingDependencyError

VIDEO = ["x265", "vvenc"]


@pytest.mark.parametrize("name", VIDEO)
def test_the_lowest_qps_are_different_levels(name: str) -> None:
    """x265 lowers the QP of intra pictures by default, so that 0 to 3 would all be 0."""
    plane = feature_plane(65, 192, peak=1023)
    sizes = [len(get_codec(name).encode(plane, qp)) for qp in range(4)]
    assert np.all(np.diff(sizes) < 0)


@pytest.mark.parametrize("name", VIDEO)
def test_a_qp_does_the_same_damage_at_any_number_of_tokens(name: str) -> None:
    """VVenC adapts the QP to the picture's height by default: here to twice the error."""
    codec = get_codec(name)
    planes = [feature_plane(rows, 192, peak=1023) for rows in (16, 64, 256)]
    errors = [mse(codec.decode(codec.encode(plane, 20), plane.shape), plane) for plane in planes]
    assert max(errors) < 1.15 * min(errors)


@pytest.mark.parametrize("key", ["PerceptQPA", "perceptqpa", "qpa"])
def test_a_qp_that_depends_on_the_number_of_tokens_is_refused(key: str) -> None:
    with pytest.raises(CodecError, match="PerceptQPA changes the QP"):
        get_codec("vvenc", parameters={key: "1"})


@pytest.mark.parametrize("pixels", ["gray", "yuv420p10le", "gray12le"])
def test_other_pixels_than_the_codecs_are_refused_and_not_converted(pixels: str) -> None:
    """FFmpeg's conversions rescale the range or dither, which would change the codes."""
    context = av.CodecContext.create("libx265", "w")
    context.height, context.width, context.pix_fmt = 32, 48, pixels
    context.time_base = Fraction(1, 25)
    context.options = {"x265-params": "log-level=none:pools=none:info=0"}
    frame = av.VideoFrame(48, 32, pixels)
    for plane in frame.planes:
        plane.update(bytes(plane.buffer_size))
    packets = [*context.encode(frame), *context.encode(None)]
    stream = b"".join(map(bytes, packets)) + b"\0\0\0"
    with pytest.raises(CodecError, match="no valid 10-bit monochrome picture"):
        get_codec("x265").decode(stream, (32, 48))


@pytest.mark.parametrize("name", VIDEO)
@pytest.mark.parametrize("qp", [0, 24, 51])
def test_extreme_planes_survive(name: str, qp: int) -> None:
    codec = get_codec(name)
    for kind, plane in extreme_planes(33, 47, peak=1023).items():
        decoded = codec.decode(codec.encode(plane, qp), plane.shape)
        if kind in ("zero", "peak"):
            assert np.abs(decoded.astype(int) - plane).max() <= 2 ** (qp / 6)
        elif qp == 0:
            assert np.abs(decoded.astype(int) - plane).max() <= 8


@pytest.mark.parametrize("name", VIDEO)
def test_cuts_and_every_foreign_stream_is_refused(name: str) -> None:
    plane = feature_plane(65, 192, peak=1023)
    codec = get_codec(name)
    stream = codec.encode(plane, 40)
    other = get_codec(VIDEO[1 - VIDEO.index(name)]).encode(plane, 40)
    noise = np.random.default_rng(0).integers(0, 256, 4000).astype(np.uint8).tobytes()
    cuts = [stream[:length] for length in {*range(0, len(stream), 7), *range(len(stream))[-9:]}]
    for broken in [*cuts, other, noise, stream + stream, b"\0\0\0\1", b"\0" * 100]:
        with pytest.raises(CodecError):
            codec.decode(broken, plane.shape)
    for shape in [(64, 192), (65, 191), (192, 65), (65, 193), (66, 192)]:
        with pytest.raises(CodecError, match="65 x 192"):
            codec.decode(stream, shape)


# VVenC drops every picture of a batch of 7 to 10 unless told not to, filters neighbouring
# pictures into each other, and numbers them: hence these lengths, contents and the equality.
@pytest.mark.parametrize("count", [1, 2, 7, 10, 12])
def test_vvenc_batches_change_nothing(count: int) -> None:
    codec = get_codec("vvenc")
    extremes = list(extreme_planes(33, 40, peak=1023).values())
    planes = [feature_plane(33, 40, peak=1023, seed=seed) for seed in range(count)]
    planes[1:5] = extremes[: len(planes[1:5])]
    streams = codec.encode_many(planes, 22)
    assert len(streams) == count
    assert streams == [codec.encode(plane, 22) for plane in planes]
    decoded = codec.decode_many(streams, (33, 40))
    assert all(mse(a, b) < 150 for a, b in zip(decoded, planes, strict=True))


def test_vvenc_counts_pictures_beyond_the_order_counts_eight_bits() -> None:
    planes = [feature_plane(16, 16, peak=1023, seed=seed % 3) for seed in range(260)]
    streams = get_codec("vvenc").encode_many(planes, 40)
    assert streams[:3] == streams[255:258]


def test_vvenc_pads_where_ffmpegs_buffer_is_too_small() -> None:
    codec = get_codec("vvenc")
    noise = extreme_planes(65, 192, peak=1023)["noise"]
    calm = feature_plane(65, 192, peak=1023)
    streams = codec.encode_many([calm, noise, calm], 0)
    assert len(streams[1]) > noise.size
    assert streams[0] == streams[2] == codec.encode(calm, 0)
    assert np.abs(codec.decode(streams[1], noise.shape).astype(int) - noise).max() <= 6


def test_streams_hold_nothing_but_parameter_sets_and_one_slice() -> None:
    plane = feature_plane(65, 192, peak=1023)
    hevc = [unit[0] >> 1 for unit in nal_units(get_codec("x265").encode(plane, 30))]
    vvc = [nal_type(unit) for unit in nal_units(get_codec("vvenc").encode(plane, 30))]
    assert hevc == [32, 33, 34, 20]  # VPS, SPS, PPS, IDR_N_LP
    assert vvc == [15, 16, 8]  # SPS, PPS, IDR_N_LP


def test_a_video_is_refused_before_all_of_it_is_decoded() -> None:
    codec, shape = get_codec("x265"), (32, 48)
    one = codec.encode(np.full(shape, 300, np.uint16), 20)
    too_large = codec.encode(np.full((512, 512), 300, np.uint16), 20)
    with pytest.raises(CodecError, match="x265: the bitstream is damaged"):
        codec.decode(one + too_large, shape)
    for count in (2, 3):
        with pytest.raises(CodecError, match="x265: the bitstream contains more than one"):
            codec.decode(count * one + too_large, shape)


def test_empty_batches_and_mixed_shapes() -> None:
    codec = get_codec("vvenc")
    assert codec.encode_many([], 30) == []
    with pytest.raises(CodecError, match="share a shape"):
        codec.encode_many([np.zeros((16, 16), np.uint16), np.zeros((16, 24), np.uint16)], 30)


def test_planes_below_x265s_smallest_are_refused() -> None:
    with pytest.raises(CodecError, match="16 x 16"):
        get_codec("x265").encode(np.zeros((15, 64), np.uint16), 30)


@pytest.mark.parametrize("program", ["/bin/false", "/bin/echo", "/nowhere/ffmpeg"])
def test_an_ffmpeg_without_libvvenc_is_one_clear_line(
    program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", program)
    codec = get_codec("vvenc")
    for call in (codec.version, lambda: codec.encode(np.zeros((16, 16), np.uint16), 30)):
        with pytest.raises((MissingDependencyError, CodecError)) as caught:
            call()
        assert "\n" not in str(caught.value)
        assert "vvenc" in str(caught.value)


def test_versions_name_the_encoders() -> None:
    assert "libvvenc 1." in get_codec("vvenc").version()["encoder"]
    assert "ffmpeg" in get_codec("vvenc").version()["encoder"]
    assert "libx265" in get_codec("x265").version()["encoder"]
