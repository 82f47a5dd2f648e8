"""Draw figures as compact SVG: points, lines, bands and rings on two axes.

Coordinates are integers on a canvas of 640 x 480, which the page shows at about half that size.
Colours are in the page's style sheet, so that figures follow its light or dark scheme. The markup
is in ``templates/plot.svg``.
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
X_ENDS, Y_ENDS = (92, 626), (396, 14)  # canvas coordinates of the ends of the axes

MARKS = ("h0", "h0", "m-7 0h14m-7-7v14", "m-6-6l12 12m-12 0l12-12")
"""SVG paths of the marks: a disc and a square (both from the line caps), a plus, a cross."""

CAPS = ("round", "square", "thin", "thin")


@cache
def environment(templates: Path = TEMPLATES) -> Environment:
    """Return the Jinja environment of a folder of templates, which escapes all variables."""
    env = Environment(
        loader=FileSystemLoader([templates, TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {"signed": signed, "number": number_text, "p_text": p_text}
    env.filters |= {"duration": duration, "size": size_text}
    env.filters["breakable"] = lambda name: Markup("_<wbr>").join(name.split("_"))
    env.filters["grouped"] = lambda count: f"{count:,}".replace(",", "\u202f")
    env.globals |= {"figure": Figure.of, "marks": MARKS, "caps": CAPS}
    return env


def render_page(name: str, templates: Path = TEMPLATES, **variables: Any) -> str:
    """Render a page with the style sheet and script of its folder of templates.

    Its content security policy allows only these two and embedded images.
    """
    style, script = (
        (templates / file).read_text(encoding="utf-8") for file in ("style.css", "script.js")
    )
    hashes = (
        "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for text in (style, script)
    )
    policy = "default-src 'none'; img-src data:; style-src '{}'; script-src '{}'"
    variables |= {"style": Markup(style), "script": Markup(script)}
    template = environment(templates).get_template(name)
    return template.render(policy=policy.format(*hashes), **variables) + "\n"


@dataclass
class Panel:
    """A plot on one pair of axes.

    Attributes:
        x: Horizontal axis.
        y: Vertical axis.
        title: Description of the figure for screen readers.
        x_label: Label of the horizontal axis.
        y_label: Label of the vertical axis.
        paths: CSS class and SVG path of each shape.
        rings: Centre of each ring, position of its text, and the text; drawn on top.
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
        outline = "".join(f"M{x} {y}{MARKS[series % 4]}" for x, y in self._on_canvas(xs, ys))
        self.paths.append((f"{name} k{series % 6} {CAPS[series % 4]}", outline))

    def line(self, xs: Any, ys: Any, kind: str) -> None:
        """Draw a line through points."""
        points = self._on_canvas(xs, ys)
        self.paths.append((kind, "M" + "L".join(f"{x} {y}" for x, y in points)))

    def band(self, xs: Any, lows: Any, highs: Any, series: int) -> None:
        """Fill the area between two lines."""
        self.line([*xs, *reversed(xs)], [*lows, *reversed(highs)], f"band k{series % 6}")

    def ring(self, x: float, y: float, text: str) -> None:
        """Circle a point, with a text next to it that does not overlap the others."""
        ((cx, cy),) = self._on_canvas([x], [y])
        width = 13 * len(text)
        for right, down in ((17, -12), (17, 26), (-17 - width, -12), (-17 - width, 26), (0, -40)):
            at = cx + right, cy + down
            free = all(abs(at[0] - x) > 32 or abs(at[1] - y) > 22 for _, (x, y), _ in self.rings)
            if free and X_ENDS[0] < at[0] < WIDTH - width and 20 < at[1] < Y_ENDS[0] + 10:
                break
        self.rings.append(((cx, cy), at, text))

    def svg(self) -> Markup:
        """Return the figure as an SVG element."""
        ticks = [
            [(round(start + at * (end - start)), text) for at, text in axis.ticks()]
            for axis, (start, end) in ((self.x, X_ENDS), (self.y, Y_ENDS))
        ]
        text = environment().get_template("plot.svg").render(panel=self, ticks=ticks)
        return Markup(text)

    def _on_canvas(self, xs: Any, ys: Any) -> list[tuple[int, int]]:
        """Return canvas coordinates; points beyond an axis are moved to its end."""

        def scaled(axis: Axis, values: Any, ends: tuple[int, int]) -> NDArray[Any]:
            return np.rint(ends[0] + np.clip(axis.position(values), 0.0, 1.0) * (ends[1] - ends[0]))

        coordinates = scaled(self.x, xs, X_ENDS), scaled(self.y, ys, Y_ENDS)
        return [(int(x), int(y)) for x, y in zip(*coordinates, strict=True)]
