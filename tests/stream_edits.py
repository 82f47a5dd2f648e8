"""Bitstreams that lie about what they hold: parameter sets of HEVC and VVC, changed bit by bit.

ITU-T H.265, 7.3.2.2.1 and 7.3.3; ITU-T H.266, 7.3.2.4, 7.3.2.5 and 7.3.3.1, as far as the encoders
of this package and the reference encoders use them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

__all__ = ["in_header", "in_sets", "with_size"]

START_CODE = b"\0\0\1"
HEVC_SPS, VVC_SPS, VVC_PPS = 33, 15, 16
SIDES = (0, 7, 8, 15, 64, 136, 240, 1024, 4096, 8192, 16384, 16880, 65528, 65536, 2**31 - 8)


class _Reader:
    """Reads bits, the highest first."""

    def __init__(self, bits: str) -> None:
        self.bits = bits
        self.place = 0

    def fixed(self, count: int) -> int:
        self.place += count
        return int(self.bits[self.place - count : self.place] or "0", 2)

    def golomb(self) -> int:
        zeros = self.bits.index("1", self.place) - self.place
        self.place += zeros
        return self.fixed(zeros + 1) - 1


def _golomb(value: int) -> str:
    digits = f"{value + 1:b}"
    return "0" * (len(digits) - 1) + digits


def _to_hevc_size(reader: _Reader) -> None:
    assert reader.fixed(8) & 0b1110 == 0  # no sub-layers
    reader.fixed(88 + 8)
    reader.golomb()
    assert reader.golomb() == 0  # 4:0:0


def _to_vvc_size(reader: _Reader) -> None:
    assert reader.fixed(8 + 3) == 0  # no sub-layers
    reader.fixed(4)
    assert reader.fixed(1)  # a profile follows
    reader.fixed(18)
    assert not reader.fixed(1)  # no constraints
    reader.fixed(-reader.place % 8)
    assert reader.fixed(8) == 0  # no sub-profiles
    reader.fixed(1)
    if reader.fixed(1):
        reader.fixed(1)


def _to_vvc_picture_size(reader: _Reader) -> None:
    reader.fixed(6 + 4 + 1)


def _before_size(decoder: str, unit: bytes) -> Callable[[_Reader], None] | None:
    """Return what reads a parameter set up to its width; None for other NAL units."""
    if len(unit) < 3:
        return None
    if decoder == "hevc":
        return _to_hevc_size if unit[0] >> 1 & 63 == HEVC_SPS else None
    return {VVC_SPS: _to_vvc_size, VVC_PPS: _to_vvc_picture_size}.get(unit[1] >> 3)


def with_size(decoder: str, stream: bytes, rows: int, cols: int) -> bytes:
    """Return a stream whose parameter sets say another size of the picture, and nothing else."""
    units = stream.split(START_CODE)
    for place, unit in enumerate(units):
        before = _before_size(decoder, unit)
        if before is None:
            continue
        body = unit.rstrip(b"\0")
        payload = body[2:].replace(b"\0\0\3", b"\0\0")
        bits = f"{int.from_bytes(payload, 'big'):0{8 * len(payload)}b}"
        reader = _Reader(bits)
        before(reader)
        start = reader.place
        reader.golomb(), reader.golomb()
        bits = bits.rstrip("0")[:-1]  # without stop bit and padding
        bits = bits[:start] + _golomb(cols) + _golomb(rows) + bits[reader.place :] + "1"
        bits += "0" * (-len(bits) % 8)
        payload = int(bits, 2).to_bytes(len(bits) // 8, "big")
        escaped = re.sub(rb"\x00\x00(?=[\x00-\x03])", b"\0\0\3", payload)
        units[place] = body[:2] + escaped + unit[len(body) :]
    return START_CODE.join(units)


def in_sets(decoder: str) -> Callable[[random.Random, bytes, Sequence[bytes]], bytes]:
    """Return a mutation of what comes before the picture: sizes, bits, or whole NAL units."""

    def change(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
        kind = rng.randrange(4)
        if kind == 0:
            return with_size(decoder, data, rng.choice(SIDES), rng.choice(SIDES))
        units = data.split(START_CODE)
        if kind == 1:
            rng.shuffle(units)
        elif kind == 2:
            units.insert(
                rng.randrange(len(units) + 1), rng.choice(rng.choice(others).split(START_CODE))
            )
            units *= rng.choice((1, 1, 2, 50))
        else:
            for _ in range(rng.choice((1, 1, 2, 4))):
                place = rng.randrange(len(units))
                unit = bytearray(units[place])
                if unit:
                    unit[rng.randrange(min(len(unit), 48))] ^= 1 << rng.randrange(8)
                units[place] = bytes(unit)
        return START_CODE.join(units)

    return change


def in_header(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Return a hyperprior's stream with another model in front, or with noise behind its header."""
    if rng.random() < 0.3:
        return bytes([rng.randrange(12)]) + data[1:]
    return data[:3] + rng.randbytes(rng.choice((1, 4, 16, 64, 256, 1024, 4096)))
