"""The registry of codecs."""

from __future__ import annotations

import numpy as np
import pytest
from cases import each

from cfqa_data.codecs import get_codec, list_codecs
from cfqa_data.errors import CodecError


@pytest.mark.parametrize("name", ["x265", "vvenc", "hm", "vtm"])
def test_unknown_options_are_refused(name: str) -> None:
    with pytest.raises(CodecError, match="quality"):
        get_codec(name, quality=3)


@each("name", list_codecs())
def test_an_option_called_name_is_an_unknown_one(name: str) -> None:
    with pytest.raises(
        CodecError, match=f"^{name}: unknown option 'name': (known: |it takes none$)"
    ):
        get_codec(name, name="x")


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("x265", "preset", 3),
        ("x265", "parameters", "qp=3"),
        ("vvenc", "seconds_per_megasample", "long"),
        ("hm", "encoder", 3),
        ("hm", "seconds_per_megasample", None),
        ("vtm", "config", ["cfg"]),
        ("hyperprior_multi_task", "models", 3),
        ("hyperprior_task_specific", "task", ["cls"]),
    ],
)
def test_an_option_of_a_wrong_type_is_named(name: str, option: str, value: object) -> None:
    with pytest.raises(CodecError, match=f"^{name}: option {option} cannot be "):
        get_codec(name, **{option: value})


def test_a_task_specific_ladder_needs_its_task() -> None:
    with pytest.raises(CodecError, match="task="):
        get_codec("hyperprior_task_specific")


PLANE = np.arange(16 * 16, dtype=np.uint8).reshape(16, 16)


@pytest.mark.parametrize("untrusted", [False, True])
def test_a_bitstream_is_a_buffer_of_bytes(untrusted: bool) -> None:
    codec = get_codec("x265", untrusted=untrusted)
    stream = codec.encode(PLANE, 30)
    expected = codec.decode(stream, PLANE.shape)
    as_array = np.frombuffer(stream, np.uint8)  # as safetensors gives them
    for buffer in (memoryview(stream), as_array, np.repeat(as_array, 2)[::2]):
        np.testing.assert_array_equal(codec.decode(buffer, PLANE.shape), expected)
    for wrong, what in (
        (list(stream), "not list"),
        (len(stream), "not int"),
        (stream.hex(), "not str"),
        (as_array.astype(np.uint16), "not items of 2 bytes"),
    ):
        with pytest.raises(CodecError, match=f"^{codec.name}: a bitstream must be bytes, {what}$"):
            codec.decode(wrong, PLANE.shape)
