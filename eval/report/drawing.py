"""Draw figures as compact SVG: points, lines, bands and rings on two axes.

Coordinates are whole numbers of a 640 x 480 canvas that the page shows at about half that size.
Colours come from the page's style sheet, so that a figure follows its light or dark scheme.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from cfqa_data.eval.report.axes import Axis
from cfqa_data.eval.report.ranking import Figure

__all__ = ["MARKS", "Panel", "swatch", "whisker"]

WIDTH, HEIGHT = 640, 480
LEFT, RIGHT, TOP, BOTTOM = 92, 14, 14, 84

MARKS = ("h0", "h0", "m-7 0h14m-7-7v14", "m-6-6l12 12m-12 0l12-12")
"""What is drawn at a point: a disc, a square (of the line's ends), a plus, a cross."""

CAPS = ("round", "square", "thin", "thin")


def swatch(series: Sequence[str], name: str) -> Markup:
    """Return a small picture of the line and mark of one of several series."""
    number = series.index(name)
    return Markup(
        '<svg class="swatch" viewBox="0 0 60 28" aria-hidden="true">'
        f'<path class="line k{number % 6}" d="M4 14H56"/>'
        f'<path class="mark k{number % 6} {CAPS[number % 4]}" d="M30 14{MARKS[number % 4]}"/></svg>'
    )


def whisker(figure: Figure, low: float) -> Markup:
    """Return a dot with its interval on an axis from ``low`` to 1, ticks at every tenth.

    What is below the axis is put on its end.
    """
    if figure.value is None:
        return Markup("")

    def at(value: float) -> int:
        return max(0, round(8 + 304 * (value - low) / (1 - low)))

    ticks = "".join(f"M{at(tenth / 10)} 0V28" for tenth in range(round(low * 10), 11))
    ends = (figure.value, figure.value) if figure.low is None else (figure.low, figure.high)
    return Markup(
        '<svg class="whisker" viewBox="0 0 320 28" aria-hidden="true"><path class="grid" d="{}"/>'
        '<path class="span" d="M{} 14H{}"/><circle cx="{}" cy="14" r="6"/></svg>'
    ).format(ticks, at(ends[0]), at(ends[1] or 1.0), at(figure.value))


@dataclass
class Panel:
    """One pair of axes.

    Attributes:
        x: Horizontal axis.
        y: Vertical axis.
        title: What the figure shows, for those who do not see it.
        x_label: Under the horizontal axis.
        y_label: Beside the vertical axis.
    """

    x: Axis
    y: Axis
    title: str
    x_label: str
    y_label: str
    _parts: list[Markup] = field(default_factory=list)
    _texts: list[tuple[int, int]] = field(default_factory=list)

    def points(self, xs: Any, ys: Any, series: int, name: str = "dots") -> None:
        """Draw a mark at each point."""
        mark = MARKS[series % 4]
        path = "".join(f"M{x} {y}{mark}" for x, y in self._at(xs, ys))
        kind = f"{name} k{series % 6} {CAPS[series % 4]}"
        self._parts.append(Markup('<path class="{}" d="{}"/>').format(kind, path))

    def line(self, xs: Any, ys: Any, kind: str) -> None:
        """Join points."""
        path = "L".join(f"{x} {y}" for x, y in self._at(xs, ys))
        self._parts.append(Markup('<path class="{}" d="M{}"/>').format(kind, path))

    def band(self, xs: Any, lows: Any, highs: Any, series: int) -> None:
        """Fill the area between two lines."""
        corners = [*self._at(xs, lows), *reversed(self._at(xs, highs))]
        path = "L".join(f"{x} {y}" for x, y in corners)
        kind = f"band k{series % 6}"
        self._parts.append(Markup('<path class="{}" d="M{}Z"/>').format(kind, path))

    def ring(self, x: float, y: float, text: str) -> None:
        """Draw a ring about a point, with a text beside it where no other is."""
        ((cx, cy),) = self._at([x], [y])
        width = 13 * len(text)
        for right, down in ((17, -12), (17, 26), (-17 - width, -12), (-17 - width, 26), (0, -40)):
            at = cx + right, cy + down
            free = all(abs(at[0] - x) > 32 or abs(at[1] - y) > 22 for x, y in self._texts)
            if free and LEFT < at[0] < WIDTH - width and 20 < at[1] < HEIGHT - BOTTOM + 10:
                break
        self._texts.append(at)
        self._parts.append(
            Markup(
                '<circle class="ring" cx="{}" cy="{}" r="11"/>'
                '<text class="number" x="{}" y="{}">{}</text>'
            ).format(cx, cy, *at, text)
        )

    def svg(self) -> Markup:
        """Return the figure."""
        right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
        grid, texts = [], []
        for place, text in self.x.ticks():
            at = round(LEFT + place * (right - LEFT))
            grid.append(f"M{at} {TOP}V{bottom}")
            texts.append(Markup('<text x="{}" y="{}">{}</text>').format(at, bottom + 30, text))
        for place, text in self.y.ticks():
            at = round(bottom - place * (bottom - TOP))
            grid.append(f"M{LEFT} {at}H{right}")
            texts.append(
                Markup('<text x="{}" y="{}" text-anchor="end">{}</text>').format(
                    LEFT - 10, at + 7, text
                )
            )
        return Markup(
            '<svg class="plot" viewBox="0 0 {} {}" role="img" aria-label="{}">'
            '<path class="grid" d="{}"/><g class="ticks">{}</g>'
            '<text class="label" x="{}" y="{}">{}</text>'
            '<text class="label" transform="translate(22 {})rotate(-90)">{}</text>{}</svg>'
        ).format(
            *(WIDTH, HEIGHT, self.title, "".join(grid), Markup("").join(texts)),
            *((LEFT + right) // 2, HEIGHT - 14, self.x_label),
            *((TOP + bottom) // 2, self.y_label, Markup("").join(self._parts)),
        )

    def _at(self, xs: Any, ys: Any) -> list[tuple[int, int]]:
        """Return places on the canvas; what lies beyond an axis is put on its end."""

        def placed(axis: Axis, values: Any, start: int, end: int) -> NDArray[np.intp]:
            share = np.clip(axis.place(values), 0.0, 1.0)
            return np.asarray(np.rint(start + share * (end - start)), np.intp)

        across = placed(self.x, xs, LEFT, WIDTH - RIGHT)
        up = placed(self.y, ys, HEIGHT - BOTTOM, TOP)
        return list(zip(across.tolist(), up.tolist(), strict=True))
