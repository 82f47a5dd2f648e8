from __future__ import annotations

from pathlib import Path

import pytest
from cases import each

from cfqa_data.errors import RecipeError
from cfqa_data.format.resources import ROOT_VARIABLE, is_uri, locate, resolve


def test_a_file_of_the_package_is_found() -> None:
    assert resolve("package://cfqa_data.recipes/mini.toml").name == "mini.toml"
    assert resolve("package://cfqa_data/recipes/mini.toml").name == "mini.toml"


def test_a_path_is_relative_to_its_base(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    assert resolve("x", tmp_path) == tmp_path / "x"
    assert resolve(str(tmp_path / "x"), "/elsewhere") == tmp_path / "x"


def test_the_root_is_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "x.pth").write_text("")
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
    assert resolve("root://weights/x.pth") == tmp_path / "weights" / "x.pth"
    assert locate("root://images/val") == tmp_path / "images" / "val"
    assert is_uri("root://x")
    assert not is_uri("weights/x.pth")
    monkeypatch.delenv(ROOT_VARIABLE)
    monkeypatch.chdir(tmp_path)
    assert resolve("root://weights/x.pth") == tmp_path / "weights" / "x.pth"


@each(
    ("uri", "message"),
    [
        ("package://numpy/version.py", "must be package://cfqa_data"),
        ("package://cfqa_data.recipes/../tasks.py", "without"),
        ("package://cfqa_data.recipes//etc/passwd", "must be"),
        ("package://cfqa_data.recipes", "must be"),
        ("package://cfqa_data.nothing/x", "no package"),
        ("package://cfqa_data.recipes/x.toml", "no such file"),
        ("x.toml", "no such file"),
        ("root://x.pth", "no such file .*; set CFQA_ROOT to the folder that root:// stands for"),
        ("root://../x.pth", "without"),
        ("root:///etc/passwd", "must be root://path"),
        ("root://", "must be root://path"),
    ],
)
def test_other_names_are_refused(uri: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        resolve(uri)


@each("start", ["", "root://", "package://cfqa_data/", "/"])
@each("name", ["x" * 600, "a\0b", "\ud800"])
def test_a_name_that_no_file_can_have_is_one_line(start: str, name: str) -> None:
    with pytest.raises(RecipeError, match="no such file"):
        resolve(start + name)
