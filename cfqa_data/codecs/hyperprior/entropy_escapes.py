"""How the integers that no table holds are coded: behind the table's escape, without a model.

The models that ship write the integer itself by Elias gamma.  Models that are compared with
CompressAI's coding write, as it does, how far the integer lies beyond its table, in groups of
four bits after their number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from cfqa_data.errors import CodecError

__all__ = [
    "LARGEST",
    "pop_gamma",
    "pop_nibbles",
    "push_gamma",
    "push_nibbles",
    "unzigzag",
    "zigzag",
]

LARGEST = 1 << 20
"""Integers beyond +-LARGEST cannot be coded."""

Uniform = Callable[[int], Any]
"""Makes the coder's model of integers below a number, all alike."""


def push_gamma(coder: Any, uniform: Uniform, values: np.ndarray) -> None:
    """Encode integers by Elias gamma: the sign, the number of bits, the bits."""
    for value in reversed(values.tolist()):
        magnitude = abs(value) + 1
        bits = magnitude.bit_length() - 1
        if magnitude > LARGEST:
            raise CodecError(f"the model gave {value}, which is beyond what can be coded")
        if bits:
            coder.encode_reverse(np.array([magnitude - (1 << bits)], np.int32), uniform(1 << bits))
        coder.encode_reverse(np.array([bits << 1 | (value < 0)], np.int32), uniform(64))


def pop_gamma(coder: Any, uniform: Uniform, count: int) -> np.ndarray:
    """Decode ``count`` integers that :func:`push_gamma` encoded."""
    values = np.empty(count, np.int64)
    for position in range(count):
        head = int(coder.decode(uniform(64), 1)[0])
        bits = head >> 1
        if bits > LARGEST.bit_length():
            raise CodecError("the bitstream is damaged")
        rest = int(coder.decode(uniform(1 << bits), 1)[0]) if bits else 0
        magnitude = (1 << bits) + rest - 1
        values[position] = -magnitude if head & 1 else magnitude
    return values


def push_nibbles(coder: Any, uniform: Uniform, values: np.ndarray) -> None:
    """Encode integers from 0: the number of their groups of four bits, the groups, lowest first."""
    if len(values) and int(values.max()) > 2 * LARGEST:
        raise CodecError(f"the model gave {values.max() // 2}, which is beyond what can be coded")
    model = uniform(16)
    for value in reversed(values.tolist()):
        groups = -(-value.bit_length() // 4)
        digits = [groups, *(value >> 4 * place & 15 for place in range(groups))]
        coder.encode_reverse(np.array(digits, np.int32), model)


def pop_nibbles(coder: Any, uniform: Uniform, count: int) -> np.ndarray:
    """Decode ``count`` integers that :func:`push_nibbles` encoded."""
    model = uniform(16)
    values = np.empty(count, np.int64)
    for position in range(count):
        groups = int(coder.decode(model, 1)[0])
        if 4 * groups > (2 * LARGEST).bit_length() + 3:
            raise CodecError("the bitstream is damaged")
        digits = coder.decode(model, groups).tolist() if groups else []
        values[position] = sum(digit << 4 * place for place, digit in enumerate(digits))
    return values


def zigzag(entries: np.ndarray, size: np.ndarray | int) -> np.ndarray:
    """Return how far entries lie outside 1..size-1: odd below it, even above."""
    return np.where(entries < 1, 1 - 2 * entries, 2 * (entries - size))


def unzigzag(excess: np.ndarray, size: np.ndarray | int) -> np.ndarray:
    """Return the entries that :func:`zigzag` described."""
    return np.where(excess & 1, (1 - excess) // 2, size + excess // 2)
