"""Paths as users write them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cfqa_data.errors import CfqaError
from cfqa_data.paths import absolute_path, expanded, real_path


def test_home_links_and_dots_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    assert expanded("~/x") == tmp_path / "x"
    assert expanded("x~") == Path("x~")
    assert expanded("./~nobody-of-that-name/x") == Path("~nobody-of-that-name/x")
    assert absolute_path("../link/x", "there") == tmp_path / "there/../link/x"  # with its links
    for written in ("there/x", "~/there/x", "link/x", "nowhere/../link/x", tmp_path / "link" / "x"):
        assert real_path(written) == tmp_path.resolve() / "there" / "x"
    assert real_path(os.fsdecode(b"\xff")) == tmp_path.resolve() / os.fsdecode(b"\xff")


def test_what_leads_nowhere_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CfqaError, match=r"^~nobody-of-that-name/x: .* write \./~nobody"):
        real_path("~nobody-of-that-name/x")
    with pytest.raises(CfqaError, match=r"cannot be resolved: .*embedded null"):
        real_path("a\0b")


def test_links_in_a_circle_are_told_or_followed_up_to_the_circle(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    told = ""
    try:
        found = real_path(tmp_path / "loop" / "x").name
    except CfqaError as error:  # until Python 3.12
        found, told = "x", str(error)
    assert found == "x"
    assert told in ("", f"{tmp_path}/loop/x: cannot be resolved: {told.rpartition(': ')[2]}")
