"""HEVC intra: x265 inside PyAV, monochrome 10 bit, one picture per bitstream.

The stream is Annex B: VPS, SPS, PPS, one IDR slice, and three zero bytes.  The zero bytes are
the standard's ``trailing_zero_8bits`` (ITU-T H.265, B.2): three in a row occur nowhere inside a
NAL unit, so their absence shows that the end of a stream was lost, which the decoder alone
would conceal.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from cfqa_data.codecs.base import Bitstream, check_bitstream, check_plane
from cfqa_data.codecs.h26x.video import VideoCodec, av_version, decode_picture, import_av, qp_up_to
from cfqa_data.errors import CodecError, MissingDependencyError

__all__ = ["X265"]

END = b"\0\0\0"

# Constant QP, no psychovisual or adaptive quantisation (the samples are not for eyes), one
# thread, and nothing in the stream that a decoder does not need.
PARAMETERS = {
    "ipratio": "1.0",
    "aq-mode": "0",
    "psy-rd": "0",
    "psy-rdoq": "0",
    "keyint": "1",
    "info": "0",
    "repeat-headers": "0",
    "vui-timing-info": "0",
    "pools": "none",
    "frame-threads": "1",
    "wpp": "0",
    "log-level": "none",
}

_NAMES = """
amp aq-auto aq-bias-strength aq-mode aq-motion aq-strength asm aud auto-aq b-adapt b-intra
b-pyramid bframe-bias bframes bitrate cbqpoffs chromaloc chunk-end chunk-start cll colormatrix
colorprim constrained-intra crf crf-max crf-min crqpoffs ctu cu-lossless cutree deblock
display-window dynamic-rd early-skip eob eos fast-intra fades fps frame-dup frame-threads
gop-lookahead hash hevc-aq high-tier hist-scenecut hme hme-range hme-search hrd hrd-concat
idr-recovery-sei info interlace intra-refresh ipratio keyint level-idc limit-modes limit-refs
limit-sao limit-tu log-level log2-max-poc-lsb lookahead-slices lookahead-threads lossless
max-ausize-factor max-cll max-merge max-qp-delta max-tu-size mcstf me merange min-cu-size
min-keyint min-luma max-luma multi-pass-opt-rps nr-inter nr-intra numa-pools open-gop
opt-cu-delta-qp opt-qp-pps opt-ref-list-length-pps overscan pbratio pme pmode pools psnr psy-rd
psy-rdoq qblur qcomp qg-size qp qp-adaptation-range qpmax qpmin qpstep radl range rc-grain
rc-lookahead rd rd-refine rdoq-level rdpenalty rect ref refine-ctu-distortion repeat-headers
rskip rskip-edge-threshold sao sao-non-deblock sar scaling-list scenecut scenecut-aware-qp
scenecut-bias selective-sao signhide single-sei slices slow-firstpass splitrd-skip ssim ssim-rd
strict-cbr strong-intra-smoothing subme temporal-layers temporal-mvp transfer tskip tskip-fast
tu-inter-depth tu-intra-depth tune uhd-bd vbv-bufsize vbv-end vbv-init vbv-live-multi-pass
vbv-maxrate videoformat vui-hrd-info vui-timing-info weightb weightp wpp zones
"""
PARAMETER_NAMES = frozenset(_NAMES.split())
"""Parameters that read and write no file, whatever their values are (but of `scaling-list`)."""


class X265(VideoCodec):
    """x265 at a constant QP of 0..51.

    The preset ``medium`` was chosen by measurement: ``slow`` takes twice the time for 1 to 3%
    fewer bits at equal error, ``ultrafast`` a third of the time for 2% (QP 24) to 13% (QP 8)
    more.

    Args:
        preset: x265's preset.
        parameters: further x265 parameters, over the ones this codec sets. Recipes and manifests
            may name those of :data:`PARAMETER_NAMES`.
    """

    name = "x265"
    title = "HEVC intra by x265"
    parameter = qp_up_to(51)
    parameter_names = PARAMETER_NAMES
    cost = 0.7  # planes of 1370 x 1536 at QP 8 to 32

    def __init__(self, preset: str = "medium", parameters: Mapping[str, Any] | None = None) -> None:
        self.preset = preset
        self.parameters = {**PARAMETERS, **(parameters or {})}

    def encode(self, plane: np.ndarray, parameter: float) -> bytes:
        """See :meth:`Codec.encode`; ``parameter`` is the QP."""
        qp = int(self.check_parameter(parameter))
        plane = check_plane(self.name, plane, self.peak, self.dtype)
        if min(plane.shape) < 16:
            raise CodecError(f"x265: {plane.shape} is below its smallest picture, 16 x 16")
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
        return decode_picture(self.name, "hevc", bitstream, shape)

    def version(self) -> dict[str, str]:
        """See :meth:`Codec.version`."""
        libavcodec = ".".join(map(str, import_av().library_versions["libavcodec"]))
        return {
            "encoder": f"libx265 in {av_version()} (libavcodec {libavcodec})",
            "preset": self.preset,
            "decoder": f"{av_version()} hevc",
        }
