"""Format sizes, durations and tables as plain text."""

from __future__ import annotations

import re
import textwrap
from itertools import pairwise

__all__ = [
    "WIDTH",
    "counted",
    "duration",
    "percent",
    "printable",
    "size_text",
    "table_text",
    "without_styles",
    "wrapped",
]

_STYLE = re.compile(r"\x1b\[[0-9;]*m")


def counted(number: int, units: str) -> str:
    """Return a number with its unit, given in the plural: "1 level", "3 levels"."""
    return f"{number} {units.removesuffix('s') if number == 1 else units}"


def duration(seconds: float) -> str:
    """Return a duration as text: "0.8 s", "42 s", "3 min 20 s", "5 h 07 min"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def percent(share: float | None, digits: int = 0) -> str:
    """Return a share as a percentage, "94.4%"; "-" if it is None."""
    return "-" if share is None else f"{share:.{digits}%}"


def printable(name: str) -> str:
    """Escape the unprintable characters of a text, such as a file name."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)


def without_styles(message: str) -> str:
    """Remove the ANSI codes for bold and coloured text from a message."""
    return _STYLE.sub("", message)


def size_text(size: int) -> str:
    """Return a size in bytes as text, with decimal prefixes: "2.1 MB"."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def wrapped(text: str) -> str:
    """Wrap a paragraph at 80 characters, with an indent from the second line on."""
    return textwrap.fill(
        text, 80, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


WIDTH = 100
"""Width in characters to which wide tables are split."""


def table_text(
    rows: list[list[str]],
    left: int = 1,
    heads: int = 1,
    *,
    width: int | None = None,
    group: int = 1,
) -> str:
    """Return a table as text with aligned columns.

    Args:
        rows: Rows of cells, all of the same length.
        left: Number of leading columns that are aligned left; the others are aligned right.
        heads: Number of leading rows that are headings, separated by a rule.
        width: Largest line length in characters. A wider table is split into several tables that
            repeat the leading columns. No limit if None.
        group: Number of columns that are kept together when a table is split.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if width is not None and sum(widths) + 2 * (len(widths) - 1) > width:
        parts = _parts(widths, left, width, group)
        tables = [[row[:left] + row[start:end] for row in rows] for start, end in parts]
        return "\n\n".join(table_text(table, left, heads) for table in tables)
    lines = []
    for number, row in enumerate(rows):
        if number == heads:
            lines.append("  ".join("-" * width for width in widths))
        cells = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _parts(widths: list[int], left: int, width: int, group: int) -> list[tuple[int, int]]:
    """Return the (start, end) of the columns of each part of a table, without the leading ones."""
    room = width - sum(widths[:left]) - 2 * (left - 1)
    starts, used = [left], 0
    for start in range(left, len(widths), group):
        needed = sum(2 + one for one in widths[start : start + group])
        if used + needed > room and start > starts[-1]:
            starts.append(start)
            used = 0
        used += needed
    return list(pairwise([*starts, len(widths)]))
