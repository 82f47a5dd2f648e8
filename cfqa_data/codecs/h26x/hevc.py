"""HEVC intra: x265 inside PyAV, monochrome 10 bit, one picture per bitstream.

The stream is Annex B: VPS, SPS, PPS, one IDR slice, and three zero bytes. The zero bytes are the
standard's ``trailing_zero_8bits`` (ITU-T H.265, B.2). Three in a row occur nowhere inside a NAL
unit, so their absence shows that the stream is truncated, which the decoder alone would conceal.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from cfqa_data.codecs.base import Bitstream, check_bitstream
from cfqa_data.codecs.h26x.video import ENCODERS, VideoCodec, av_version, import_av
from cfqa_data.errors import CodecError, MissingDependencyError

__all__ = ["X265"]

END = b"\0\0\0"


class X265(VideoCodec):
    """x265 at a constant QP of 0..51.

    The preset ``medium`` was chosen by measurement: ``slow`` takes twice the time for 1 to 3% fewer
    bits at equal error, ``ultrafast`` a third of the time for 2% (QP 24) to 13% (QP 8) more.

    Args:
        preset: Preset of x265.
        parameters: Further x265 parameters, which override those that this codec sets. Recipes and
            manifests may name only those that open no file.
    """

    name = "x265"
    title = "HEVC intra by x265"
    decoder = "hevc"
    cost = 0.7  # planes of 1370 x 1536 at QP 8 to 32

    def __init__(self, preset: str = "medium", parameters: Mapping[str, Any] | None = None) -> None:
        self.preset = preset
        self.parameters = {**ENCODERS["x265"]["parameters"], **(parameters or {})}

    def encode_picture(self, plane: np.ndarray, qp: int) -> bytes:
        if min(plane.shape) < 16:
            raise CodecError(f"x265: {plane.shape} is smaller than its minimum of 16 x 16")
        av = import_av()
        frame = av.VideoFrame.from_ndarray(plane, format="gray10le")
        try:
            context = av.CodecContext.create("libx265", "w")
        except av.FFmpegError:
            raise MissingDependencyError("x265: this PyAV was built without libx265") from None
        context.height, context.width = plane.shape
        context.pix_fmt = "gray10le"
        context.time_base = Fraction(1, 25)
        context.thread_count = 1
        settings = {"qp": str(qp), **self.parameters}
        context.options = {
            "preset": self.preset,
            "x265-params": ":".join(f"{key}={value}" for key, value in settings.items()),
        }
        try:
            packets = [*context.encode(frame), *context.encode(None)]
        except av.FFmpegError as error:
            raise CodecError(
                f"x265: preset {self.preset!r} at QP {qp} was refused ({error.strerror})"
            ) from None
        return b"".join(map(bytes, packets)) + END

    def decode(self, bitstream: Bitstream, shape: tuple[int, int]) -> np.ndarray:
        """See :meth:`Codec.decode`; returns uint16."""
        bitstream = check_bitstream(self.name, bitstream)
        if not bitstream.endswith(END):
            raise CodecError("x265: the end of the bitstream is missing")
        return super().decode(bitstream, shape)

    def version(self) -> dict[str, str]:
        libavcodec = ".".join(map(str, import_av().library_versions["libavcodec"]))
        return {
            "encoder": f"libx265 in {av_version()} (libavcodec {libavcodec})",
            "preset": self.preset,
            "decoder": f"{av_version()} {self.decoder}",
        }
