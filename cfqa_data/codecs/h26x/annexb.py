"""NAL units of an Annex B byte stream, as ITU-T H.266 (VVC) writes them."""

from __future__ import annotations

import re

from cfqa_data.errors import CodecError

__all__ = ["IDR_N_LP", "PPS", "SPS", "nal_type", "nal_units", "reset_poc", "split_pictures"]

IDR_N_LP = 8
SPS = 15
PPS = 16

_START = re.compile(rb"\x00*\x00\x00\x01")
_ESCAPED = re.compile(rb"\x00\x00(?=[\x00-\x03])")

# The start of an intra slice as VVenC writes it: picture header in the slice header (1), IRAP
# (1), reference picture (0), no inter slices (0 0), PPS 0 (1); then eight bits of POC.
_INTRA_HEADER = 0b110001
_POC_BITS = 8


def nal_units(stream: bytes) -> list[bytes]:
    """Return the NAL units of ``stream`` without start codes."""
    marks = list(_START.finditer(stream))
    ends = [mark.start() for mark in marks[1:]] + [len(stream)]
    units = [stream[mark.end() : end] for mark, end in zip(marks, ends, strict=False)]
    return [unit for unit in units if len(unit) > 2]


def nal_type(unit: bytes) -> int:
    """Return the type of a VVC NAL unit."""
    return unit[1] >> 3


def split_pictures(stream: bytes) -> list[list[bytes]]:
    """Return the NAL units of each coded picture, parameter sets included.

    Every picture must bring its own SPS, which is where the stream is cut.
    """
    pictures: list[list[bytes]] = []
    for unit in nal_units(stream):
        if nal_type(unit) == SPS or not pictures:
            pictures.append([])
        pictures[-1].append(unit)
    return pictures


def reset_poc(unit: bytes) -> bytes:
    """Return an IDR slice of VVenC's with its picture order count set to 0.

    The count is the only trace that the place in a batch leaves in a picture's bytes, and it
    means nothing to an IDR picture that is alone in its stream.

    Raises:
        CodecError: the slice does not start the way the encoder is set up to start it.
    """
    header, payload = unit[:2], unit[2:].replace(b"\0\0\3", b"\0\0")
    first = int.from_bytes(payload[:2], "big")
    if nal_type(unit) != IDR_N_LP or first >> 10 != _INTRA_HEADER:
        raise CodecError("vvenc: this version writes slice headers in a way not known here")
    first &= ~(((1 << _POC_BITS) - 1) << (10 - _POC_BITS))
    payload = first.to_bytes(2, "big") + payload[2:]
    return header + _ESCAPED.sub(b"\0\0\3", payload)
