"""Hostile bitstreams: what they claim is refused before room is made for it; some of the fuzz."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from codec_samples import feature_plane
from fuzz import fuzz
from fuzz_streams import CODECS, codec_of, decode, stream_samples
from fuzzing import _memory, _peak
from reference_streams import recorded_streams
from stream_edits import with_size

from cfqa_data.codecs import entropy_coder, get_codec
from cfqa_data.errors import CodecError

DECODERS = {"x265": "hevc", "vvenc": "vvc", "hm": "hevc", "vtm": "vvc"}


def a_stream(name: str) -> tuple[bytes, tuple[int, int]]:
    """Return a real stream and the shape of its plane."""
    for stream in recorded_streams():
        if stream.codec == name and stream.data and stream.rows % 8 == 0:
            return stream.data, (stream.rows, stream.cols)
    return get_codec(name).encode(feature_plane(96, 128, 1023), 30), (96, 128)


@pytest.mark.parametrize("name", DECODERS)
def test_edits_change_the_size_alone(name: str) -> None:
    stream, shape = a_stream(name)
    assert with_size(DECODERS[name], stream, *shape) == stream
    larger = with_size(DECODERS[name], stream, shape[0] + 8, shape[1])
    assert abs(len(larger) - len(stream)) <= 4
    with pytest.raises(CodecError):
        get_codec(name).decode(larger, shape)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read as Linux tells it")
@pytest.mark.parametrize("side", [8192, 16384])
@pytest.mark.parametrize("name", DECODERS)
def test_a_claim_of_a_huge_picture_takes_no_memory(name: str, side: int) -> None:
    """Without the limit on pixels, 8192 x 8192 take 220 MiB in HEVC's decoder, 870 in VVC's."""
    stream, shape = a_stream(name)
    codec = get_codec(name)
    codec.decode(stream, shape)
    huge = with_size(DECODERS[name], stream, side, side)
    before = _memory()
    with pytest.raises(CodecError, match=f"^{name}: the bitstream is damaged"):
        codec.decode(huge, shape)
    assert _peak() - before < 16 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read as Linux tells it")
@pytest.mark.parametrize("name", DECODERS)
def test_thousands_of_parameter_sets_take_no_memory(name: str) -> None:
    """Without a limit, VVC's parser takes 1.9 GiB for 2000 of them in 64 kB."""
    stream, shape = a_stream(name)
    sets = stream[: stream.rfind(b"\0\0\1")]
    assert len(sets) < 300
    codec = get_codec(name)
    codec.decode(stream, shape)
    before = _memory()
    with pytest.raises(CodecError, match=f"^{name}: the bitstream holds more units than one"):
        codec.decode(sets * 500 + stream, shape)
    with pytest.raises(CodecError):
        codec.decode(sets * 16 + sets, shape)
    assert _peak() - before < 64 << 20


def test_a_share_of_the_fuzz() -> None:
    """Some hundred of the cases of `python tests/fuzz.py`; docs/untrusted.md tells of more."""
    results = fuzz([*CODECS, *(f"{name}-isolated" for name in CODECS)], 60, seed=1)
    for result in results:
        assert not result.faults
        assert result.outcomes["CodecError"] > 0
    assert sum(result.cases for result in results) > 200


@pytest.mark.parametrize(
    ("name", "way"),
    [("hyperprior_multi_task", "pop_gamma"), ("hyperprior_task_specific", "pop_nibbles")],
)
def test_samples_have_integers_beyond_their_tables(
    name: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    popped = []
    pop = getattr(entropy_coder, way)

    def counting(*arguments: Any) -> Any:
        popped.append(arguments[-1])
        return pop(*arguments)

    monkeypatch.setattr(entropy_coder, way, counting)
    streams = stream_samples(name, tmp_path)
    for key in list(streams)[::4]:
        decode(codec_of(name, tmp_path, False), key, streams[key])
    assert max(popped) > 0
