"""Short descriptions of objects: one line of text, and a small table in a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from cfqa_data.console.text import printable

__all__ = ["Described", "Summary", "html_table"]

MOST = 200
"""Characters of a value that are shown."""


@dataclass(frozen=True)
class Summary:
    """What an object says of itself.

    Attributes:
        title: What it is.
        facts: Name -> value, in the order to show them; empty values are left out.
        rows: Of a table that a notebook shows below, heads first.
    """

    title: str
    facts: Mapping[str, Any]
    rows: Sequence[Sequence[Any]] = field(default=())


class Described:
    """A class with a short ``repr``, and the same as a table in a notebook."""

    def _summary(self, rows: bool) -> Summary:
        """Return what there is to say, with the rows of a table only if they are wanted."""
        raise NotImplementedError

    def __repr__(self) -> str:
        summary = self._summary(rows=False)
        facts = ", ".join(f"{_text(name)} {value}" for name, value in _shown(summary))
        return f"<{_text(summary.title)}{': ' if facts else ''}{facts}>"

    def _repr_html_(self) -> str:
        summary = self._summary(rows=True)
        facts = html_table([], _shown(summary)) + html_table(*_split(summary.rows))
        return f"<div><b>{escape(_text(summary.title))}</b>{facts}</div>"


def _shown(summary: Summary) -> list[tuple[str, str]]:
    return [
        (name, _text(value)) for name, value in summary.facts.items() if value not in ("", None)
    ]


def _split(rows: Sequence[Sequence[Any]]) -> tuple[Sequence[Any], Sequence[Sequence[Any]]]:
    return (rows[0], rows[1:]) if rows else ((), ())


def _text(value: Any) -> str:
    text = printable(str(value))
    return text if len(text) <= MOST else f"{text[: MOST - 1]}…"


def html_table(heads: Iterable[Any], rows: Iterable[Sequence[Any]]) -> str:
    """Return an HTML table, everything escaped; the first cell of a row is its head."""
    head = "".join(f"<th>{escape(_text(cell))}</th>" for cell in heads)
    lines = [f"<thead><tr>{head}</tr></thead>"] if head else []
    for first, *others in rows:
        cells = "".join(f"<td>{escape(_text(cell))}</td>" for cell in others)
        lines.append(f'<tr><th scope="row">{escape(_text(first))}</th>{cells}</tr>')
    return f"<table>{''.join(lines)}</table>" if lines else ""
