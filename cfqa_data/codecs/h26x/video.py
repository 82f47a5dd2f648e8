"""Base class of video codecs: facts, and decoding one picture with PyAV's native decoders."""

from __future__ import annotations

import tomllib
from abc import abstractmethod
from collections.abc import Mapping
from importlib import resources
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from cfqa_data.codecs.base import Bitstream, Codec, check_bitstream, check_plane, check_shape
from cfqa_data.errors import CodecError
from cfqa_data.extras import extras
from cfqa_data.format.facts import Parameter

__all__ = ["ENCODERS", "SAMPLE", "VideoCodec", "av_version", "import_av"]

SAMPLE = np.dtype("<u2")
"""Data type of the samples of video codecs."""

ENCODERS: Mapping[str, Mapping[str, Any]] = tomllib.loads(
    resources.files(__package__).joinpath("encoders.toml").read_text(encoding="utf-8")
)
"""Default parameters of the encoders, and parameters that open no file, by codec."""

MAX_UNITS = 64
"""Largest number of NAL units of a bitstream; encoders write 3 to 10. FFmpeg's parser may need far
more memory for a unit than its size."""

START_CODE = b"\0\0\1"


@extras()
def import_av() -> ModuleType:
    """Return PyAV.

    Raises:
        MissingDependencyError: If it is not installed.
    """
    import av

    return av


def av_version() -> str:
    """Return "PyAV" and its version."""
    return f"PyAV {import_av().__version__}"


class VideoCodec(Codec):
    """Base class of video codecs at a constant QP, on monochrome planes of 10 bits.

    Attributes:
        decoder: PyAV's name of the decoder, ``hevc`` or ``vvc``.
        parameter_names: Parameters of the encoder that never open a file.
    """

    dtype = SAMPLE
    peak = 1023
    decoder: str
    parameter_names: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls, highest: int = 51) -> None:
        cls.parameter = Parameter("qp", "lower", whole=True, lowest=0, highest=highest)
        facts = ENCODERS.get(getattr(cls, "name", ""), {})
        cls.parameter_names = frozenset(facts.get("open_no_file", "").split())

    @abstractmethod
    def encode_picture(self, plane: np.ndarray, qp: int) -> bytes:
        """Return the bitstream of a valid plane."""

    def encode(self, plane: np.ndarray, parameter: float) -> bytes:
        """See :meth:`Codec.encode`; ``parameter`` is the QP."""
        qp = int(self.check_parameter(parameter))
        return self.encode_picture(check_plane(self.name, plane, self.peak, self.dtype), qp)

    def coded_rows(self, rows: int, cols: int) -> int:
        """Return the rows of a picture that the encoder padded at the bottom."""
        return rows

    def decode(self, bitstream: Bitstream, shape: tuple[int, int]) -> np.ndarray:
        """Return the only picture of an Annex B bitstream, uint16.

        Args:
            bitstream: Parameter sets and one picture.
            shape: (rows, cols) of the plane.

        Raises:
            CodecError: If the bitstream is not one complete picture of that shape in 10-bit
                monochrome.
        """
        rows, cols = check_shape(self.name, shape)
        bitstream = check_bitstream(self.name, bitstream)
        if bitstream.count(START_CODE) > MAX_UNITS:
            raise CodecError(f"{self.name}: the bitstream contains more units than one picture has")
        av = import_av()
        context = av.CodecContext.create(self.decoder, "r")
        context.thread_count = 1
        heights = (rows, self.coded_rows(rows, cols))
        limit = (max(heights) + 128) * (cols + 128)
        context.options = {"err_detect": "explode", "max_pixels": str(limit)}
        try:
            frames = []
            for packet in [*context.parse(bitstream), *context.parse(None), None]:
                frames += context.decode(packet)
                if len(frames) > 1:  # a whole video need not fit into memory
                    raise CodecError(f"{self.name}: the bitstream contains more than one picture")
        except (av.FFmpegError, ValueError) as error:
            detail = getattr(error, "strerror", None) or error
            raise CodecError(f"{self.name}: the bitstream is damaged ({detail})") from None
        if not frames:
            raise CodecError(f"{self.name}: the bitstream contains no complete picture")
        frame = frames[0]
        if frame.format.name != "gray10le" or frame.is_corrupt:
            raise CodecError(
                f"{self.name}: the bitstream contains no valid 10-bit monochrome picture"
            )
        if frame.width != cols or frame.height not in heights:
            raise CodecError(
                f"{self.name}: the bitstream contains {frame.height} x {frame.width} samples, "
                f"not {rows} x {cols}"
            )
        samples = np.frombuffer(frame.planes[0], SAMPLE).reshape(frame.height, -1)
        return samples[:rows, :cols].copy()
