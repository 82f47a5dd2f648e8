"""Draw a source as a matplotlib figure: rows of pictures, each with a title."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cfqa_data.builders.gallery.page import error_picture, score_text
from cfqa_data.builders.gallery.views import Version, View
from cfqa_data.builders.tasks.drawing import Bar, Drawing
from cfqa_data.extras import extras
from cfqa_data.format.previews import MAX_SIDE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Cell", "draw_cells", "figure_of", "output_cells", "save_figure"]

LEVELS = 5
"""Maximum number of a codec's levels that are drawn."""

WIDTH, GAP, LINE = 1.7, 0.12, 0.14
"""Width of a cell, gap between cells, and height of a line of a title, in inches."""

COLOURS = "#a8c4e0", "#93c4a8"
"""Colours of the bars of wrong and right answers."""


class Cell(NamedTuple):
    """One cell of a figure.

    Attributes:
        title: Title above the cell.
        content: Picture, uint8 RGB (H, W, 3), a drawing, or a text; None for an empty cell.
    """

    title: str
    content: np.ndarray | Drawing | str | None


def figure_of(view: View) -> Figure:
    """Draw a source: input, truth and original; per codec, outputs, token errors and tokens."""
    first = [*output_cells(view, ()), Cell("Tokens of the original", view.original.colours)]
    rows = [[cell for cell in first if cell.content is not None]]
    for codec, versions in view.codecs.items():
        indices = np.linspace(0, len(versions) - 1, min(len(versions), LEVELS)).round().astype(int)
        chosen = [versions[index] for index in indices]
        name = view.entry.codecs[codec].facts.parameter.name
        titles = [f"{codec}, {name} {v.parameter:g}\n{score_text(view, v)}" for v in chosen]
        if any(v.input is not None for v in chosen):
            rows.append([Cell("Decoded input", v.input) for v in chosen])
        if view.original.drawing is not None:
            rows.append([Cell(title, v.drawing) for title, v in zip(titles, chosen, strict=True)])
        if chosen[0].errors is not None:
            names = titles if view.original.drawing is None else ["Token errors" for _ in chosen]
            rows.append(
                [
                    Cell(name, error_picture(v.errors))
                    for name, v in zip(names, chosen, strict=True)
                    if v.errors is not None
                ]
            )
            rows.append([Cell("Tokens", v.colours) for v in chosen])
    return draw_cells([row for row in rows if row])


def output_cells(view: View, versions: Sequence[Version]) -> list[Cell]:
    """Return cells of a source's input and truth, and of outputs for the original and versions."""
    original = f"Original\n{score_text(view, view.original)}"
    return [
        Cell("Input", view.input),
        Cell("Ground truth", view.truth),
        Cell(original, view.original.drawing),
        *(Cell(f"Level {v.level}\n{score_text(view, v)}", v.drawing) for v in versions),
    ]


def draw_cells(rows: Sequence[Sequence[Cell]]) -> Figure:
    """Draw rows of cells; the height of a row is that of its highest picture."""
    with extras("build"):
        from matplotlib.figure import Figure

    heights = [WIDTH * max(map(_aspect, row)) for row in rows]
    width = max(map(len, rows)) * (WIDTH + GAP) + GAP
    titles = [0.06 + LINE * max(cell.title.count("\n") + 1 for cell in row) for row in rows]
    total = sum(heights) + sum(titles) + len(rows) * GAP + GAP
    figure = Figure(figsize=(width, total), facecolor="white")
    bottom = total
    for row, height, title in zip(rows, heights, titles, strict=True):
        bottom -= title + height + GAP
        for column, cell in enumerate(row):
            own = _aspect(cell) * WIDTH
            left, low = GAP + column * (WIDTH + GAP), bottom + height - own
            box = (left / width, low / total, WIDTH / width, own / total)
            _draw_cell(figure.add_axes(box), cell)
    return figure


def save_figure(figure: Figure, path: Path | io.BytesIO, kind: str = "png", **options: Any) -> None:
    """Write a figure, without warnings of characters that the font lacks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        figure.savefig(path, format=kind, dpi=options.pop("dpi", 110), **options)


def _aspect(cell: Cell) -> float:
    """Return the ratio of height to width."""
    content = cell.content
    picture = content.picture if isinstance(content, Drawing) else content
    if isinstance(picture, np.ndarray):
        return max(0.15, picture.shape[0] / picture.shape[1])
    return 1.0 if content is not None else 0.15


def _draw_cell(axes: Axes, cell: Cell) -> None:
    axes.set_axis_off()
    text: dict[str, Any] = {"parse_math": False, "fontsize": 7.5}
    axes.set_title(cell.title, loc="left", pad=3, **text)
    content = cell.content
    if isinstance(content, Drawing):
        if content.picture is None:
            return _draw_bars(axes, content.bars)
        content = content.picture
    if isinstance(content, np.ndarray):
        step = max(1, max(content.shape) // MAX_SIDE)
        axes.imshow(content[::step, ::step], interpolation="nearest", aspect="auto")
    elif content is not None:
        axes.text(
            0,
            1,
            textwrap.fill(textwrap.shorten(content, 300, placeholder="…"), 28),
            va="top",
            **text,
        )
    return None


def _draw_bars(axes: Axes, bars: Sequence[Bar]) -> None:
    axes.set(xlim=(0, 1), ylim=(5, 0))
    for row, bar in enumerate(bars):
        axes.barh(row + 0.5, 1, 0.86, color="#eef1f4")
        axes.barh(row + 0.5, bar.share, 0.86, color=COLOURS[bar.right])
        label = textwrap.shorten(bar.label, 26, placeholder="…")
        style: dict[str, Any] = {"va": "center", "fontsize": 6.5, "parse_math": False}
        axes.text(0.02, row + 0.5, label, weight="bold" if bar.right else "normal", **style)
        axes.text(0.98, row + 0.5, bar.text, ha="right", **style)
