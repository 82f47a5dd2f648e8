"""Colour palettes that are safe for colour-blind readers and for printing in grey.

Codecs have the palette of Okabe and Ito (Color Universal Design, 2008), heat maps viridis (van der
Walt and Smith, 2015; CC0). Both are given to the page as classes: it needs no inline styles.
"""

from __future__ import annotations

from itertools import pairwise

__all__ = ["CODEC_COLOURS", "STEPS", "heat_css", "series_css", "viridis"]

# Blue and black of the palette are too dark on a dark page, yellow too bright on a white one.
CODEC_COLOURS = (
    ("#0072b2", "#56b4e9"),
    ("#d55e00", "#f0803c"),
    ("#009e73", "#2bc89b"),
    ("#b0548a", "#cc79a7"),
    ("#b07d00", "#e69f00"),
    ("#444444", "#f0e442"),
)
"""Of the first, second ... codec: on white, on dark."""

ANCHORS = (
    *((68, 1, 84), (72, 36, 117), (65, 68, 135), (53, 95, 141), (42, 120, 142), (33, 145, 140)),
    *((34, 168, 132), (68, 191, 112), (122, 209, 81), (189, 223, 38), (253, 231, 37)),
)
"""Viridis at 0, 0.1 ... 1."""

STEPS = 40
"""Colours of a heat map."""


def viridis(share: float) -> tuple[int, int, int]:
    """Return the colour at a place between 0 and 1."""
    place = min(max(share, 0.0), 1.0) * (len(ANCHORS) - 1)
    at = min(int(place), len(ANCHORS) - 2)
    low, high = list(pairwise(ANCHORS))[at]
    red, green, blue = (round(a + (b - a) * (place - at)) for a, b in zip(low, high, strict=True))
    return red, green, blue


def heat_css() -> str:
    """Return the classes v0 to v39: background, and black or white text, whichever reads better."""
    lines = []
    for step in range(STEPS):
        colour = viridis(step / (STEPS - 1))
        text = "#000" if _luminance(colour) > 0.18 else "#fff"
        lines.append(f".v{step}{{background:#{bytes(colour).hex()};color:{text}}}")
    return "\n".join(lines)


def series_css(dark: bool) -> str:
    """Return the variables --k0, --k1 ... with the colours of the codecs."""
    return "".join(f"--k{n}:{pair[dark]};" for n, pair in enumerate(CODEC_COLOURS))


def _luminance(colour: tuple[int, int, int]) -> float:
    """Relative luminance (WCAG 2.2): above 0.18, black has the higher contrast."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (part / 255 for part in colour)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
