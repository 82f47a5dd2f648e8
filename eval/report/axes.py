"""Axes of a figure: where a number lies between two ends, and which numbers are written there."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["MINUS", "Axis", "number_text"]

SPREAD = 100.0  # ratio of ends from which on an axis of positive numbers is logarithmic
ROOM = 0.04  # of its length, at both ends of an axis
TAIL = 30.0  # ratio of end and median from which on one with zero or both signs is
MINUS = "\u2212"
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Axis:
    """A scale between two ends.

    Attributes:
        low: Number at its start.
        high: Number at its end.
        kind: ``linear``, ``log``, or ``symlog``: linear about zero and logarithmic beyond.
        unit: Of a symlog axis: where the linear part ends.
    """

    low: float
    high: float
    kind: str = "linear"
    unit: float = 1.0

    @classmethod
    def around(cls, values: NDArray[Any], kind: str | None = None) -> Axis:
        """Return an axis that holds finite values, of a kind or of that which spreads them best."""
        low, high = float(values.min()), float(values.max())
        if low == high:
            pad = abs(low) or 1.0
            return cls(low - pad, high + pad)
        sizes = np.abs(values[values != 0])
        typical = float(np.median(sizes))
        if low > 0 and (kind == "log" or (high / low > SPREAD and high > SPREAD / 10 * typical)):
            axis = cls(low, high, "log")
        elif sizes.max() > TAIL * typical:
            axis = cls(low, high, "symlog", 10.0 ** math.floor(math.log10(typical)))
        else:
            axis = cls(low, high)
        start, end = axis._bent([low, high])
        room = ROOM * (end - start)
        low, high = axis._straight([start - room, end + room]).tolist()
        return replace(axis, low=low, high=high)

    def place(self, values: Any) -> NDArray[np.float64]:
        """Return where values lie, 0 at the low end and 1 at the high one."""
        start, end = self._bent(self.low), self._bent(self.high)
        return np.asarray((self._bent(values) - start) / (end - start))

    def between(self, count: int) -> NDArray[np.float64]:
        """Return numbers at even distances along the axis, both ends with them."""
        start, end = self._bent([self.low, self.high]).tolist()
        return self._straight(np.linspace(start, end, count))

    def ticks(self) -> list[tuple[float, str]]:
        """Return up to seven (place, text)."""
        numbers = _even(self.low, self.high) if self.kind == "linear" else self._powers()
        marks = [(float(self.place(n)), number_text(n)) for n in numbers]
        return [(place, text) for place, text in marks if -1e-9 <= place <= 1 + 1e-9]

    def _bent(self, values: Any) -> NDArray[np.float64]:
        values = np.asarray(values, np.float64)
        if self.kind == "linear":
            return values
        if self.kind == "log":
            return np.asarray(np.log10(values))
        return np.asarray(np.sign(values) * np.log10(1 + np.abs(values) / self.unit))

    def _straight(self, bent: Any) -> NDArray[np.float64]:
        bent = np.asarray(bent, np.float64)
        if self.kind == "linear":
            return bent
        if self.kind == "log":
            return np.asarray(10.0**bent)
        return np.asarray(np.sign(bent) * self.unit * (10.0 ** np.abs(bent) - 1))

    def _powers(self) -> list[float]:
        largest = max(abs(self.low), abs(self.high))
        smallest = self.low if self.kind == "log" else self.unit
        powers = range(math.floor(math.log10(smallest)), math.ceil(math.log10(largest)) + 1)
        factors = (1, 2, 5) if len(powers) <= 3 and self.kind == "log" else (1,)
        step = math.ceil(len(powers) / 6)
        numbers = [f * 10.0**p for p in powers[::step] for f in factors]
        if self.kind == "log":
            return numbers
        return [-n for n in reversed(numbers)] + [0.0] + numbers


def number_text(value: float) -> str:
    """Return a number as an axis shows it: "0.05", "200", "10⁵"."""
    size = abs(value)
    if math.isinf(size):
        text = "\u221e"
    elif size and (size >= 1e4 or size < 1e-3):
        power = math.floor(math.log10(size) + 1e-9)
        factor = f"{size / 10.0**power:.3g}"
        text = f"10{str(power).translate(SUPERSCRIPTS)}"
        text = text if factor == "1" else f"{factor}·{text}"
    else:
        text = f"{size:.4g}"
    return f"{MINUS}{text}" if value < 0 else text


def _even(low: float, high: float) -> list[float]:
    """Return multiples of 1, 2 or 5 times a power of ten, four to eight of them."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= rough)
    first = math.ceil(low / step)
    return [n * step for n in range(first, math.floor(high / step) + 1)]
