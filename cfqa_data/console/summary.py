"""Short descriptions of objects: one line of text, and a small table in a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from cfqa_data.console.text import printable

__all__ = ["Described", "Summary", "html_table"]

MOST = 200
"""Most characters of a value to show."""


@dataclass(frozen=True)
class Summary:
    """Content of an object's short description.

    Attributes:
        title: Title.
        facts: Name -> value, in the order to show them; empty values are left out.
        rows: Rows of a table that notebooks show below, starting with the column heads.
    """

    title: str
    facts: Mapping[str, Any]
    rows: Sequence[Sequence[Any]] = field(default=())


class Described:
    """Base of classes with a short ``repr`` and a table as representation in notebooks."""

    def _summary(self, rows: bool) -> Summary:
        """Return the description of the object; ``rows`` says whether to fill `Summary.rows`."""
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
    """Return an escaped HTML table; the first cell of each row is its header."""
    head = "".join(f"<th>{escape(_text(cell))}</th>" for cell in heads)
    lines = [f"<thead><tr>{head}</tr></thead>"] if head else []
    for first, *others in rows:
        cells = "".join(f"<td>{escape(_text(cell))}</td>" for cell in others)
        lines.append(f'<tr><th scope="row">{escape(_text(first))}</th>{cells}</tr>')
    return f"<table>{''.join(lines)}</table>" if lines else ""
