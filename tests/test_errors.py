"""A message is one line that any terminal shows, whatever names and values are in it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cfqa_data.errors import LONGEST_MESSAGE, CfqaError, FormatError


@given(st.text(st.characters(exclude_categories=())) | st.text("a\n\r\0\x1b\ud800\u202e"))
def test_a_message_is_one_printable_line(text: str) -> None:
    told = str(FormatError(f"file: {text}"))
    assert told.isprintable()
    assert told.encode("utf-8")
    assert told.startswith("file:")
    if text.isprintable():
        assert told == f"file: {text}"


def test_lines_become_one_and_controls_are_escaped() -> None:
    assert str(CfqaError("a\r\nb\tc\0\x1b[2J\ud800\u202ed")) == r"a b\tc\x00\x1b[2J\ud800\u202ed"


def test_a_long_message_keeps_its_ends() -> None:
    told = str(CfqaError("file.json: " + "\0" * 10**7 + " remedy"))
    assert len(told) <= LONGEST_MESSAGE
    assert told.startswith("file.json: ")
    assert told.endswith(" remedy")
    assert str(CfqaError("x" * LONGEST_MESSAGE)) == "x" * LONGEST_MESSAGE
