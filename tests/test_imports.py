"""Imports between folders and between files have no circles, including those in functions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "cfqa_data": ROOT / "cfqa_data",
    "cfqa_data.builders": ROOT / "builders",
    "cfqa_data.loaders": ROOT / "loaders",
    "cfqa_data.eval": ROOT / "eval",
}
ORDER = (
    "cfqa_data.console",
    "cfqa_data",
    "cfqa_data.processes",
    "cfqa_data.format",
    "cfqa_data.codecs",
    "cfqa_data.recipe",
    "cfqa_data.access",
    "cfqa_data.integrity",
    "cfqa_data.card",
    "cfqa_data.loaders",
    "cfqa_data.eval.features",
    "cfqa_data.eval.statistics",
    "cfqa_data.eval.metrics",
    "cfqa_data.eval",
    "cfqa_data.eval.report",
    "cfqa_data.builders.sources",
    "cfqa_data.builders.backbones",
    "cfqa_data.builders.tasks",
    "cfqa_data.builders.pipeline",
    "cfqa_data.builders.training",
    "cfqa_data.builders.calibration",
    "cfqa_data.builders.importing",
    "cfqa_data.builders.maintenance",
    "cfqa_data.builders.sharing",
    "cfqa_data.builders",
    "cfqa_data.testing",
    "cfqa_data.cli",
)
"""Folders in order: each, with its subfolders, may import only those before it."""


@cache
def modules() -> dict[str, Path]:
    found = {}
    for package, folder in FOLDERS.items():
        for path in folder.rglob("*.py"):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports(tree: ast.AST, package: list[str]) -> Iterator[str]:
    """Return the names of this project's modules and their members that a file imports."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("cfqa_data"))
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            if module.split(".")[0] == "cfqa_data":
                yield from (f"{module}.{alias.name}" for alias in node.names)
        yield from imports(node, package)


@cache
def graph() -> dict[str, set[str]]:
    """Return module -> modules that it imports."""
    known = modules()
    edges: dict[str, set[str]] = {}
    for module, path in known.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        found = imports(ast.parse(path.read_text()), package.split("."))
        targets = {name if name in known else name.rpartition(".")[0] for name in found}
        edges[module] = (targets & known.keys()) - {module}
    return edges


def folder_of(module: str) -> str:
    inside = module if modules()[module].name == "__init__.py" else module.rpartition(".")[0]
    return max((folder for folder in ORDER if f"{inside}.".startswith(f"{folder}.")), key=len)


def test_no_file_imports_itself_through_others() -> None:
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as error:
        pytest.fail(" > ".join(error.args[1]))


def test_folders_import_those_below_them_only() -> None:
    places = {module: ORDER.index(folder_of(module)) for module in modules()}
    wrong = [
        f"{module} imports {target}"
        for module, targets in sorted(graph().items())
        for target in sorted(targets)
        if places[target] > places[module]
    ]
    assert not wrong


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("from cfqa_data import eval", ["cfqa_data.eval"]),
        ("class A:\n import cfqa_data.eval.tables", ["cfqa_data.eval.tables"]),
        ("from ..eval.metrics import mse", ["cfqa_data.eval.metrics.mse"]),
        ("from .. import errors, lazy", ["cfqa_data.errors", "cfqa_data.lazy"]),
        ("def f():\n import cfqa_data.eval.tables", ["cfqa_data.eval.tables"]),
        ("import numpy\nfrom numpy import linalg", []),
        ("if TYPE_CHECKING:\n from cfqa_data import eval", []),
    ],
)
def test_the_check_sees_imports(text: str, names: list[str]) -> None:
    assert list(imports(ast.parse(text), ["cfqa_data", "builders"])) == names
