"""The hierarchy of errors, and the errors that public functions raise."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cases import each
from mock_dataset import write_mock_dataset

import cfqa_data
from cfqa_data import errors
from cfqa_data.errors import CfqaError, unknown_name

ROOT = Path(__file__).parents[1]
BUILT_IN = {
    name
    for name, value in vars(builtins).items()
    if isinstance(value, type) and issubclass(value, BaseException)
}


def defined() -> Iterator[tuple[Path, ast.ClassDef]]:
    """Yield every exception class of the package with its module."""
    known = BUILT_IN | set(errors.__all__)
    for folder in ("cfqa_data", "builders", "eval", "loaders"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef):
                    bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
                    if bases & known:
                        yield path, node


def caught_in(path: Path, name: str) -> bool:
    """Return whether a module in the same folder catches an exception by its name."""
    pattern = rf"except [^\n]*\b{name}\b"
    return any(re.search(pattern, file.read_text()) for file in path.parent.glob("*.py"))


def test_every_exception_of_the_package_descends_from_its_root() -> None:
    classes = list(defined())
    assert len(classes) >= len(errors.__all__) - 1
    for path, node in classes:
        bases = {ast.unparse(base) for base in node.bases}
        if node.name == "CfqaError" or bases & {*errors.__all__, "UserWarning"}:
            continue
        # Exceptions that are caught in their own module never reach a user.
        steps = {node.name} | (bases - {"Exception"})
        assert any(caught_in(path, name) for name in steps), f"{path}: {node.name} is no CfqaError"


def test_the_page_lists_the_classes() -> None:
    text = (ROOT / "docs" / "errors.md").read_text()
    listed = re.findall(r"^\| `(\w+)` \|", text, re.M)
    assert set(listed) == {name for name in errors.__all__ if name[0].isupper()}
    for name in listed:
        base = UserWarning if name.endswith("Warning") else CfqaError
        assert issubclass(getattr(errors, name), base)


def test_styles_of_a_terminal_are_left_out_and_other_codes_shown() -> None:
    """Messages of PyTorch contain ANSI codes for bold text."""
    assert str(CfqaError("only if \x1b[1mtrusted\x1b[0m, \x1b[31;1mred\x1b[m")) == (
        "only if trusted, red"
    )
    assert str(CfqaError("a\x1b[2Jb\x1bc")) == "a\\x1b[2Jb\\x1bc"


def test_nothing_swallows_what_nobody_thought_of() -> None:
    found = [
        path.relative_to(ROOT).as_posix()
        for folder in ("cfqa_data", "builders", "eval", "loaders")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler) and node.type is None
    ]
    assert found == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mock_dataset(tmp_path_factory.mktemp("errors") / "cfqa", sources=2)


Call = Callable[[Path], Any]
CALLS: dict[str, Call] = {
    "path": lambda folder: cfqa_data.load(folder / "nowhere"),
    "NUL": lambda folder: cfqa_data.load("a\0b"),
    "empty path": lambda folder: cfqa_data.load(""),
    "long path": lambda folder: cfqa_data.load("x" * 5000),
    "address": lambda folder: cfqa_data.load("s3://bucket/x"),
    "revision": lambda folder: cfqa_data.load(folder, revision="main"),
    "task": lambda folder: cfqa_data.load(folder, "clss"),
    "task's type": lambda folder: cfqa_data.load(folder, 3),  # type: ignore[arg-type]
    "codec": lambda folder: cfqa_data.load(folder, codec="x266"),
    "codec's type": lambda folder: cfqa_data.load(folder, codec=[None]),  # type: ignore[list-item]
    "level": lambda folder: cfqa_data.load(folder, level=10),
    "level's type": lambda folder: cfqa_data.load(folder, level="1"),  # type: ignore[arg-type]
    "source": lambda folder: cfqa_data.load(folder, source="cls-999"),
    "a source's name": lambda folder: cfqa_data.load(folder).original("../manifest.json"),
    "a source's type": lambda folder: cfqa_data.load(folder).original(None),  # type: ignore[arg-type]
    "a feature's codec": lambda folder: cfqa_data.load(folder).compressed("cls-000", "no", 0),
    "a feature's level": lambda folder: cfqa_data.load(folder).codes("cls-000", "x265", -1),
    "a view": lambda folder: cfqa_data.load(folder).original("cls-000", views=7),
    "a view's type": lambda folder: cfqa_data.load(folder).original("cls-000", views="1"),  # type: ignore[arg-type]
    "a stream": lambda folder: cfqa_data.load(folder).bitstream("cls-000", "x265", 99),
    "a truth": lambda folder: cfqa_data.load(folder).truth("nobody"),
    "metric": lambda folder: cfqa_data.evaluate(folder, "cosin"),
    "metric's type": lambda folder: cfqa_data.evaluate(folder, 3),  # type: ignore[arg-type]
    "no metric": lambda folder: cfqa_data.evaluate(folder, []),
    "saved metric's type": lambda folder: cfqa_data.eval.save_metric(
        "mse", folder.parent / "a.json"
    ),  # type: ignore[arg-type]
    "merged with": lambda folder: cfqa_data.evaluate(folder, "mse", limit=1).merge(3),  # type: ignore[arg-type]
    "device": lambda folder: cfqa_data.evaluate(folder, "mse", "toaster"),
    "fold": lambda folder: cfqa_data.evaluate(folder, "mse", fold=9),
    "limit": lambda folder: cfqa_data.evaluate(folder, "mse", limit=0),
    "batch": lambda folder: cfqa_data.evaluate(folder, "mse", batch=-1),
    "target": lambda folder: cfqa_data.evaluate(folder, "mse", target="bits"),  # type: ignore[arg-type]
    "precision": lambda folder: cfqa_data.evaluate(folder, "mse", precision="low"),  # type: ignore[arg-type]
    "ending": lambda folder: cfqa_data.evaluate(folder, "mse", out=folder.parent / "x.txt"),
    "place": lambda folder: cfqa_data.evaluate(folder, "mse", out=folder / "no" / "x.csv"),
}


@each("call", CALLS.values())
def test_bad_arguments_are_errors_of_the_package_in_one_line(call: Call, folder: Path) -> None:
    with pytest.raises(CfqaError) as caught:
        call(folder)
    text = str(caught.value)
    assert text
    assert text.isprintable()


def test_calls_that_no_function_has_are_type_errors(folder: Path) -> None:
    with pytest.raises(TypeError):
        cfqa_data.load(folder, colour="red")  # type: ignore[call-arg]
    with pytest.raises(IndexError):  # ends the iteration of a sequence
        cfqa_data.load(folder)[10**6]


def test_near_names_come_first_and_long_lists_are_cut() -> None:
    assert unknown_name("codec", "x256", ["vvenc", "x265"]) == (
        "unknown codec 'x256': did you mean 'x265'? known: vvenc, x265"
    )
    assert "did you mean 'knn:k=3' or 'knn:k=5'?" in unknown_name(
        "metric", "knn", ["mse", "knn:k=3", "knn:k=5"]
    )
    assert unknown_name("key", 3, map(str, range(100, 200))).endswith(", 115, ...")
