"""Draw figures as compact SVG: points, lines, bands and rings on two axes.

Coordinates are whole numbers of a 640 x 480 canvas that the page shows at about half that size.
Colours come from the page's style sheet, so that a figure follows its light or dark scheme. The
markup itself is in ``templates/plot.svg``.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from cfqa_data.console.text import duration, size_text
from cfqa_data.eval.comparison import p_text
from cfqa_data.eval.report.axes import Axis, number_text
from cfqa_data.eval.report.ranking import Figure, signed

__all__ = ["TEMPLATES", "Panel", "environment", "render_page"]

TEMPLATES = Path(__file__).parent / "templates"

WIDTH, HEIGHT = 640, 480
ACROSS, UP = (92, 626), (396, 14)  # where the horizontal and the vertical axis begin and end

MARKS = ("h0", "h0", "m-7 0h14m-7-7v14", "m-6-6l12 12m-12 0l12-12")
"""What is drawn at a point: a disc, a square (of the line's ends), a plus, a cross."""

CAPS = ("round", "square", "thin", "thin")


@cache
def environment(templates: Path = TEMPLATES) -> Environment:
    """Return what renders the templates of a folder; they escape all that they are given."""
    made = Environment(
        loader=FileSystemLoader([templates, TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"signed": signed, "number": number_text, "p_text": p_text}
    made.filters |= {"duration": duration, "size": size_text}
    made.filters["breakable"] = lambda name: Markup("_<wbr>").join(name.split("_"))
    made.filters["grouped"] = lambda count: f"{count:,}".replace(",", "\u202f")
    made.globals |= {"figure": Figure.of, "marks": MARKS, "caps": CAPS}
    return made


def render_page(name: str, templates: Path = TEMPLATES, **given: Any) -> str:
    """Render a page with the style and the script of its folder of templates.

    Its security policy allows these two, images within it, and nothing else.
    """
    style, script = (
        (templates / file).read_text(encoding="utf-8") for file in ("style.css", "script.js")
    )
    own = (
        "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for text in (style, script)
    )
    allowed = "default-src 'none'; img-src data:; style-src '{}'; script-src '{}'"
    return (
        environment(templates)
        .get_template(name)
        .render(style=Markup(style), script=Markup(script), policy=allowed.format(*own), **given)
        + "\n"
    )


@dataclass
class Panel:
    """One pair of axes.

    Attributes:
        x: Horizontal axis.
        y: Vertical axis.
        title: What the figure shows, for those who do not see it.
        x_label: Under the horizontal axis.
        y_label: Beside the vertical axis.
        paths: Class and outline of all that is drawn.
        rings: Centre of each ring, place of its text, and the text; they are drawn last.
    """

    x: Axis
    y: Axis
    title: str
    x_label: str
    y_label: str
    paths: list[tuple[str, str]] = field(default_factory=list)
    rings: list[tuple[tuple[int, int], tuple[int, int], str]] = field(default_factory=list)

    def points(self, xs: Any, ys: Any, series: int, name: str = "dots") -> None:
        """Draw a mark at each point."""
        outline = "".join(f"M{x} {y}{MARKS[series % 4]}" for x, y in self._at(xs, ys))
        self.paths.append((f"{name} k{series % 6} {CAPS[series % 4]}", outline))

    def line(self, xs: Any, ys: Any, kind: str) -> None:
        """Join points."""
        self.paths.append((kind, "M" + "L".join(f"{x} {y}" for x, y in self._at(xs, ys))))

    def band(self, xs: Any, lows: Any, highs: Any, series: int) -> None:
        """Fill the area between two lines."""
        self.line([*xs, *reversed(xs)], [*lows, *reversed(highs)], f"band k{series % 6}")

    def ring(self, x: float, y: float, text: str) -> None:
        """Draw a ring about a point, with a text beside it where no other is."""
        ((cx, cy),) = self._at([x], [y])
        width = 13 * len(text)
        for right, down in ((17, -12), (17, 26), (-17 - width, -12), (-17 - width, 26), (0, -40)):
            at = cx + right, cy + down
            free = all(abs(at[0] - x) > 32 or abs(at[1] - y) > 22 for _, (x, y), _ in self.rings)
            if free and ACROSS[0] < at[0] < WIDTH - width and 20 < at[1] < UP[0] + 10:
                break
        self.rings.append(((cx, cy), at, text))

    def svg(self) -> Markup:
        """Return the figure."""
        ticks = [
            [(round(start + place * (end - start)), text) for place, text in axis.ticks()]
            for axis, (start, end) in ((self.x, ACROSS), (self.y, UP))
        ]
        text = environment().get_template("plot.svg").render(panel=self, ticks=ticks)
        return Markup(text)

    def _at(self, xs: Any, ys: Any) -> list[tuple[int, int]]:
        """Return places on the canvas; what lies beyond an axis is put on its end."""

        def placed(axis: Axis, values: Any, ends: tuple[int, int]) -> NDArray[Any]:
            return np.rint(ends[0] + np.clip(axis.place(values), 0.0, 1.0) * (ends[1] - ends[0]))

        places = placed(self.x, xs, ACROSS), placed(self.y, ys, UP)
        return [(int(x), int(y)) for x, y in zip(*places, strict=True)]
