"""Axes of figures: scales from values to positions, and their tick labels."""

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
LARGEST = float(np.finfo(np.float64).max)
SMALLEST = 5e-324
MINUS = "\u2212"
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Axis:
    """A scale between two ends, of any finite float64 numbers.

    Its ends are kept as places on a straight line, since as numbers they can be too large or too
    small for a float: a logarithm of the number, or the number in some unit.

    Attributes:
        start: Place of its low end.
        end: Place of its high end.
        kind: ``linear``, ``log``, or ``symlog``: linear about zero and logarithmic beyond.
        unit: Of a linear axis: what is 1 on the line. Of a symlog axis: where the linear part ends.
    """

    start: float
    end: float
    kind: str = "linear"
    unit: float = 1.0

    @classmethod
    def around(cls, values: NDArray[Any], kind: str | None = None) -> Axis:
        """Return an axis that holds finite values, of a kind or of that which spreads them best."""
        low, high = float(values.min()), float(values.max())
        sizes = np.sort(np.abs(values[values != 0]))
        unit = _power_of_two(float(sizes[-1])) if len(sizes) else 1.0
        if low == high:
            place = low / unit
            return cls(place - (abs(place) or 1.0), place + (abs(place) or 1.0), unit=unit)
        typical = float(sizes[len(sizes) // 2])
        if low > 0 and (kind == "log" or (high / low > SPREAD and high > SPREAD / 10 * typical)):
            axis = cls(0, 1, "log")
        elif float(sizes[-1]) / typical > TAIL:
            axis = cls(0, 1, "symlog", max(SMALLEST, 10.0 ** math.floor(math.log10(typical))))
        else:
            axis = cls(0, 1, unit=unit)
        start, end = axis._bent([low, high]).tolist()
        room = ROOM * (end - start) or 1.0
        return replace(axis, start=start - room, end=end + room)

    def place(self, values: Any) -> NDArray[np.float64]:
        """Return where values lie, 0 at the low end and 1 at the high one."""
        return np.asarray((self._bent(values) - self.start) / (self.end - self.start))

    def between(self, count: int) -> NDArray[np.float64]:
        """Return numbers at even distances along the axis, both ends with them."""
        return self._straight(np.linspace(self.start, self.end, count))

    def ticks(self) -> list[tuple[float, str]]:
        """Return a few (place, text)."""
        ends = self.between(2).tolist()
        for numbers in ([] if self.kind == "linear" else self._powers(), _even(*ends), ends):
            marks = [(float(self.place(n)), number_text(n)) for n in numbers]
            marks = [(place, text) for place, text in marks if -1e-9 <= place <= 1 + 1e-9]
            if len(marks) > 1:
                break
        return marks

    def _bent(self, values: Any) -> NDArray[np.float64]:
        values = np.asarray(values, np.float64)
        if self.kind == "linear":
            return np.asarray(values / self.unit)
        if self.kind == "log":
            return np.asarray(np.log10(values))
        with np.errstate(divide="ignore"):  # of zero
            sizes = np.logaddexp(0, np.log(np.abs(values)) - math.log(self.unit)) / math.log(10)
        return np.asarray(np.sign(values) * sizes)

    def _straight(self, bent: Any) -> NDArray[np.float64]:
        bent = np.asarray(bent, np.float64)
        with np.errstate(over="ignore"):
            if self.kind == "linear":
                values = bent * self.unit
            elif self.kind == "log":
                values = np.maximum(10.0**bent, SMALLEST)
            else:
                sizes = 10.0 ** (np.abs(bent) + math.log10(self.unit)) - self.unit
                values = np.sign(bent) * sizes
        return np.asarray(np.clip(values, -LARGEST, LARGEST))

    def _powers(self) -> list[float]:
        if self.kind == "log":
            first, last = math.floor(self.start), math.ceil(self.end)
        else:
            largest = float(np.abs(self.between(2)).max())
            first, last = math.floor(math.log10(self.unit)), math.ceil(math.log10(largest))
        powers = range(max(first, -323), min(last, 308) + 1)
        factors = (1, 2, 5) if len(powers) <= 3 and self.kind == "log" else (1,)
        step = max(1, math.ceil(len(powers) / 6))
        numbers = [f * 10.0**p for p in powers[::step] for f in factors]
        numbers = [number for number in numbers if number <= LARGEST]
        if self.kind == "log":
            return numbers
        return [-n for n in reversed(numbers)] + [0.0] + numbers


def number_text(value: float) -> str:
    """Return a number as an axis shows it: "0.05", "200", "10⁵"."""
    size = abs(value)
    if math.isinf(size):
        text = "\u221e"
    elif size and (size >= 1e4 or size < 1e-3):
        digits, power = f"{size:.2e}".split("e")
        factor = f"{float(digits):g}"
        text = f"10{str(int(power)).translate(SUPERSCRIPTS)}"
        text = text if factor == "1" else f"{factor}·{text}"
    else:
        text = f"{size:.4g}"
    return f"{MINUS}{text}" if value < 0 else text


def _even(low: float, high: float) -> list[float]:
    """Return multiples of 1, 2 or 5 times a power of ten, four to eight of them."""
    rough = high / 5 - low / 5
    power = 10.0 ** math.floor(math.log10(rough)) if rough else 0.0
    if not power:  # the ends are neighbouring floats
        return []
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= rough)
    return [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _power_of_two(size: float) -> float:
    """Return the power of two below a positive number, which divides others exactly."""
    return math.ldexp(1.0, math.frexp(size)[1] - 1)
