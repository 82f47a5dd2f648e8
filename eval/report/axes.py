"""Axes of figures: scales that map values to positions, and tick labels."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["MINUS", "Axis", "number_text"]

LOG_RATIO = 100.0  # max / min above which an axis of positive numbers is logarithmic
SYMLOG_RATIO = 30.0  # max / median magnitude above which any other axis is
MARGIN = 0.04  # share of the length of an axis, at both ends
LARGEST = float(np.finfo(np.float64).max)
SMALLEST = 5e-324
MINUS = "\u2212"
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Axis:
    """A scale for any finite float64 numbers.

    The ends are stored in transformed coordinates (a logarithm, or a multiple of a unit), because
    as numbers they may be too large or too small for a float.

    Attributes:
        start: Transformed low end.
        end: Transformed high end.
        kind: ``linear``, ``log``, or ``symlog``: linear around zero and logarithmic beyond.
        unit: For a linear axis, the value with coordinate 1; for a symlog axis, the end of the
            linear part.
    """

    start: float
    end: float
    kind: str = "linear"
    unit: float = 1.0

    @classmethod
    def around(cls, values: NDArray[Any], kind: str | None = None) -> Axis:
        """Return an axis for finite values, by default of the kind that spreads them best."""
        low, high = float(values.min()), float(values.max())
        sizes = np.sort(np.abs(values[values != 0]))
        unit = _power_of_two(float(sizes[-1])) if len(sizes) else 1.0
        if low == high:
            middle = low / unit
            return cls(middle - (abs(middle) or 1.0), middle + (abs(middle) or 1.0), unit=unit)
        typical = float(sizes[len(sizes) // 2])
        wide = low > 0 and high / low > LOG_RATIO and high > LOG_RATIO / 10 * typical
        if wide or (low > 0 and kind == "log"):
            axis = cls(0, 1, "log")
        elif float(sizes[-1]) / typical > SYMLOG_RATIO:
            axis = cls(0, 1, "symlog", max(SMALLEST, 10.0 ** math.floor(math.log10(typical))))
        else:
            axis = cls(0, 1, unit=unit)
        start, end = axis._transform([low, high]).tolist()
        margin = MARGIN * (end - start) or 1.0
        return replace(axis, start=start - margin, end=end + margin)

    def position(self, values: Any) -> NDArray[np.float64]:
        """Return the positions of values: 0 at the low end, 1 at the high end."""
        return np.asarray((self._transform(values) - self.start) / (self.end - self.start))

    def between(self, count: int) -> NDArray[np.float64]:
        """Return evenly spaced numbers along the axis, including both ends."""
        return self._invert(np.linspace(self.start, self.end, count))

    def ticks(self) -> list[tuple[float, str]]:
        """Return the tick labels as (position, text)."""
        ends = self.between(2).tolist()
        for numbers in ([] if self.kind == "linear" else self._powers(), _even(*ends), ends):
            marks = [(float(self.position(n)), number_text(n)) for n in numbers]
            marks = [(at, text) for at, text in marks if -1e-9 <= at <= 1 + 1e-9]
            if len(marks) > 1:
                break
        return marks

    def _transform(self, values: Any) -> NDArray[np.float64]:
        values = np.asarray(values, np.float64)
        if self.kind == "linear":
            return np.asarray(values / self.unit)
        if self.kind == "log":
            return np.asarray(np.log10(values))
        with np.errstate(divide="ignore"):  # the logarithm of zero
            sizes = np.logaddexp(0, np.log(np.abs(values)) - math.log(self.unit)) / math.log(10)
        return np.asarray(np.sign(values) * sizes)

    def _invert(self, coordinates: Any) -> NDArray[np.float64]:
        coordinates = np.asarray(coordinates, np.float64)
        with np.errstate(over="ignore"):
            if self.kind == "linear":
                values = coordinates * self.unit
            elif self.kind == "log":
                values = np.maximum(10.0**coordinates, SMALLEST)
            else:
                sizes = 10.0 ** (np.abs(coordinates) + math.log10(self.unit)) - self.unit
                values = np.sign(coordinates) * sizes
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
    """Return the text of a tick, such as "0.05", "200" or "10⁵"."""
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
    """Return four to eight multiples of 1, 2 or 5 times a power of ten."""
    rough = high / 5 - low / 5
    power = 10.0 ** math.floor(math.log10(rough)) if rough else 0.0
    if not power:  # the ends are adjacent floats
        return []
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= rough)
    return [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _power_of_two(size: float) -> float:
    """Return the largest power of two up to a positive number; division by it is exact."""
    return math.ldexp(1.0, math.frexp(size)[1] - 1)
