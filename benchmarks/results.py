"""What a benchmark says: figures, the peers beside them, and the limits they are held against.

Names, units, peers and limits of the figures that the pages state are data, in ``figures.toml``; a
benchmark brings the numbers. Whatever else it measures it tells as well, without a limit.
"""

from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

__all__ = ["FIGURES", "Figure", "Limit", "Result", "figure", "not_here", "number", "run"]

SIGNS = {"<=": "at most", ">=": "at least"}


@dataclass(frozen=True)
class Limit:
    """A bound of a figure, or of its ratio to the peer's.

    Attributes:
        text: as in the data: ``value <= 0.2``, ``ratio >= 3`` or ``ratio <= 1/6``.
    """

    text: str

    def __post_init__(self) -> None:
        of, sign, bound = self.text.split()
        if of not in ("value", "ratio") or sign not in SIGNS or Fraction(bound) < 0:
            raise ValueError(f"not a limit: {self.text!r}")

    @property
    def of(self) -> str:
        """``value`` or ``ratio``."""
        return self.text.split()[0]

    def holds(self, value: float) -> bool:
        """Whether a value is within it."""
        _, sign, bound = self.text.split()
        return value <= Fraction(bound) if sign == "<=" else value >= Fraction(bound)

    def shown(self, unit: str) -> str:
        """Return it in words, in the figure's unit."""
        of, sign, bound = self.text.split()
        return f"{SIGNS[sign]} {bound} {unit if of == 'value' else 'x'}"


@dataclass(frozen=True)
class Figure:
    """A figure that pages state.

    Attributes:
        benchmark: the file, without its ending, that measures it.
        name: what is measured.
        unit: of the value and of the peer's.
        peer: what it stands beside, measured in the same run; may be nothing.
        limit: see `Limit`; may be nothing.
        stated: where, as ``page: words of the sentence or row``.
        missed: why a limit that is known to be missed is.
        long: whether a reduced run leaves it out.
    """

    benchmark: str
    name: str
    unit: str
    peer: str = ""
    limit: str = ""
    stated: tuple[str, ...] = ()
    missed: str = ""
    long: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "stated", tuple(self.stated))
        if self.limit and Limit(self.limit).of == "ratio" and not self.peer:
            raise ValueError(f"{self.name}: a limit of the ratio, and no peer")
        if not all(": " in place for place in self.stated):
            raise ValueError(f"{self.name}: stated as 'page: words'")


@dataclass(frozen=True)
class Result:
    """A figure as it was measured.

    Attributes:
        name: what.
        value: the number; None where what it takes is not here.
        unit: of the value and of the peer's.
        peer: what it stands beside.
        peer_value: what that took in the same run.
        limit: see `Limit`.
        note: why there is no value.
    """

    name: str
    value: float | None
    unit: str
    peer: str = ""
    peer_value: float | None = None
    limit: str = ""
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """The value over the peer's."""
        if self.value is None or not self.peer_value:
            return None
        return self.value / self.peer_value

    @property
    def met(self) -> bool | None:
        """Whether the limit is met; None without one, or without a value."""
        if not self.limit:
            return None
        limit = Limit(self.limit)
        held = self.value if limit.of == "value" else self.ratio
        return None if held is None else limit.holds(held)

    def to_dict(self) -> dict[str, Any]:
        """Return everything that is known, JSON-safe."""
        return asdict(self) | {"ratio": self.ratio, "met": self.met}

    @classmethod
    def from_dict(cls, known: dict[str, Any]) -> Result:
        """Return what `to_dict` made a dict of."""
        return cls(**{key: value for key, value in known.items() if key not in ("ratio", "met")})

    def cells(self) -> list[str]:
        """Return value, peer, ratio, limit and verdict as text."""
        if self.value is None:
            return [self.note or "not here", self.peer or "-", "-", self._limit(), "-"]
        peer = self.peer or "-"
        if self.peer_value is not None:
            peer = f"{peer}: {number(self.peer_value)} {self.unit}"
        ratio = "-" if self.ratio is None else ratio_text(self.ratio)
        verdict = {None: "-", True: "yes", False: "NO"}[self.met]
        return [f"{number(self.value)} {self.unit}", peer, ratio, self._limit(), verdict]

    def _limit(self) -> str:
        return Limit(self.limit).shown(self.unit) if self.limit else "-"


def number(value: float) -> str:
    """Return three digits of a number, more of a large one."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def ratio_text(ratio: float) -> str:
    """Return a ratio as people say it: "1.3 x", "1/6.4"."""
    return f"{ratio:.2f} x" if ratio >= 0.3 else f"1/{number(1 / ratio)}"


def read_figures() -> dict[str, Figure]:
    """Return the figures by name, in the order of the data."""
    data = tomllib.loads(Path(__file__).with_name("figures.toml").read_text(encoding="utf-8"))
    figures = [Figure(**entry) for entry in data["figure"]]
    return {entry.name: entry for entry in figures}


FIGURES = read_figures()


def figure(name: str, value: float, peer_value: float | None = None) -> Result:
    """Return a figure of the data with its number, and the peer's."""
    known = FIGURES[name]
    return Result(known.name, value, known.unit, known.peer, peer_value, known.limit)


def not_here(name: str, note: str) -> Result:
    """Return a figure of the data that cannot be measured on this machine."""
    known = FIGURES[name]
    return Result(known.name, None, known.unit, known.peer, None, known.limit, note)


def run(
    doc: str | None,
    measure: Callable[[argparse.Namespace], Iterable[Result]],
    options: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
    arguments: Sequence[str] | None = None,
) -> int:
    """Run a benchmark alone: print each figure as it is measured; 1 if a limit is missed.

    Args:
        doc: the benchmark's docstring.
        measure: makes the figures from the options.
        options: adds options to ``--json`` and ``--quick``.
        arguments: of the command line.
    """
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one object per line")
    parser.add_argument("--quick", action="store_true", help="reduced, and not held to limits")
    options(parser)
    given = parser.parse_args(arguments)
    missed = 0
    for result in measure(given):
        value, peer, ratio, limit, met = result.cells()
        line = f"{result.name:58}{value:>14}  {limit}"
        line += ", MISSED" if met == "NO" and not given.quick else ""
        line += f"  ({ratio} of {peer})" if peer != "-" else ""
        print(json.dumps(result.to_dict()) if given.json else line, flush=True)
        missed += result.met is False
    return 1 if missed and not given.quick else 0
