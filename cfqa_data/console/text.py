"""Format sizes, durations and tables as plain text."""

from __future__ import annotations

import re
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
]

_STYLE = re.compile(r"\x1b\[[0-9;]*m")


def counted(number: int, units: str) -> str:
    """Return a number of things, of which the plural is given: "1 level", "3 levels"."""
    return f"{number} {units.removesuffix('s') if number == 1 else units}"


def duration(seconds: float) -> str:
    """Return a duration as people say it: "0.8 s", "42 s", "3 min 20 s", "5 h 07 min"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def percent(share: float | None, digits: int = 0) -> str:
    """Return a share as people read it: "94.4%"; "-" for one that is not known."""
    return "-" if share is None else f"{share:.{digits}%}"


def printable(name: str) -> str:
    """Return a file's name for one line of a terminal: whatever else is in it is escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)


def without_styles(message: str) -> str:
    """Return a library's message without the codes that make a terminal's text bold or coloured."""
    return _STYLE.sub("", message)


def size_text(size: int) -> str:
    """Return a size in bytes as people say it, in powers of ten: "2.1 MB"."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


WIDTH = 100
"""Characters that a line of text has, where tables are cut to fit."""


def table_text(
    rows: list[list[str]],
    left: int = 1,
    heads: int = 1,
    *,
    width: int | None = None,
    group: int = 1,
) -> str:
    """Align rows of cells in columns, whatever the width of the screen, or cut to a width.

    Args:
        rows: Cells, every row as long as the first.
        left: Columns at the left that are aligned left; the others are aligned right.
        heads: Rows at the top that are headings, set off with a rule.
        width: Most characters of a line: a table that is wider is cut into several, one below the
            other, which all have the columns at the left.
        group: Columns that are not cut apart.
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
    """Return the first column and the end of each part of a table, beside those at the left."""
    room = width - sum(widths[:left]) - 2 * (left - 1)
    starts, used = [left], 0
    for start in range(left, len(widths), group):
        needed = sum(2 + one for one in widths[start : start + group])
        if used + needed > room and start > starts[-1]:
            starts.append(start)
            used = 0
        used += needed
    return list(pairwise([*starts, len(widths)]))
