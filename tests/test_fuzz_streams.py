"""Hostile bitstreams: false sizes are refused before memory is allocated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from codec_samples import feature_plane
from fuzz_streams import codec_of, decode, stream_samples
from reference_streams import recorded_streams

from cfqa_data.codecs import get_codec
from cfqa_data.codecs.h26x import video
from cfqa_data.codecs.hyperprior.entropy_coder import TableCoder
from cfqa_data.errors import CodecError

VIDEO = ("x265", "vvenc", "hm", "vtm")
SMALL = (16, 16)


def a_stream(name: str) -> tuple[bytes, tuple[int, int]]:
    """Return a real stream and the shape of its plane."""
    for stream in recorded_streams():
        if stream.codec == name and stream.data:
            return stream.data, (stream.rows, stream.cols)
    return get_codec(name).encode(feature_plane(*SMALL, 1023), 30), SMALL


@pytest.mark.parametrize("name", VIDEO)
def test_a_larger_picture_than_the_plane_is_not_decoded(name: str) -> None:
    """Both streams are valid; one has more samples than the decoder may allocate."""
    encoder = get_codec({"hm": "x265", "vtm": "vvenc"}.get(name, name))
    codec = get_codec(name)
    fewer, more = (encoder.encode(feature_plane(side, side, 1023), 40) for side in (64, 320))
    with pytest.raises(CodecError, match=f"^{name}: the bitstream contains 64 x 64 samples"):
        codec.decode(fewer, SMALL)
    with pytest.raises(CodecError, match=f"^{name}: the bitstream is damaged"):
        codec.decode(more, SMALL)


@pytest.mark.parametrize("name", VIDEO)
def test_more_units_than_a_picture_has_are_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, shape = a_stream(name)
    units = stream.count(b"\0\0\1")
    assert units < video.MAX_UNITS <= 64
    monkeypatch.setattr(video, "MAX_UNITS", units)
    get_codec(name).decode(stream, shape)
    monkeypatch.setattr(video, "MAX_UNITS", units - 1)
    with pytest.raises(CodecError, match=f"^{name}: the bitstream contains more units than one"):
        get_codec(name).decode(stream, shape)


@pytest.mark.parametrize(
    ("name", "by_distance"), [("hyperprior_multi_task", False), ("hyperprior_task_specific", True)]
)
def test_samples_have_integers_beyond_their_tables(
    name: str, by_distance: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    popped = []
    pop = TableCoder._decode_escaped

    def counting(self: TableCoder, coder: Any) -> Any:
        popped.append(self.by_distance)
        return pop(self, coder)

    monkeypatch.setattr(TableCoder, "_decode_escaped", counting)
    streams = stream_samples(name, tmp_path)
    for key in list(streams)[::4]:
        decode(codec_of(name, tmp_path, False), key, streams[key])
    assert set(popped) == {by_distance}
