"""Mutate bitstreams: change their parameter sets, NAL units and headers."""

from __future__ import annotations

import random
from collections.abc import Sequence

__all__ = ["in_header", "in_sets"]

START_CODE = b"\0\0\1"


def in_sets(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Change bits near the start of NAL units, or shuffle, insert and repeat units."""
    units = data.split(START_CODE)
    match rng.randrange(3):
        case 0:
            rng.shuffle(units)
        case 1:
            other = rng.choice(rng.choice(others).split(START_CODE))
            units.insert(rng.randrange(len(units) + 1), other)
            units *= rng.choice((1, 1, 2))
        case _:
            for _ in range(rng.choice((1, 1, 2, 4))):
                place = rng.randrange(len(units))
                unit = bytearray(units[place])
                if unit:
                    unit[rng.randrange(min(len(unit), 48))] ^= 1 << rng.randrange(8)
                units[place] = bytes(unit)
    return START_CODE.join(units)


def in_header(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Change the model byte of a hyperprior's stream, or replace its content by noise."""
    if rng.random() < 0.3:
        return bytes([rng.randrange(12)]) + data[1:]
    return data[:3] + rng.randbytes(rng.choice((1, 4, 16, 64, 256, 1024, 4096)))
