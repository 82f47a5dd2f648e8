"""The parts depend on each other in one direction: everything on the core, the core on nothing."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "core": ROOT / "cfqa_data",
    "builders": ROOT / "builders",
    "loaders": ROOT / "loaders",
    "eval": ROOT / "eval",
}
ALLOWED = {
    "core": {"core"},
    "loaders": {"core", "loaders"},
    "eval": {"core", "eval", "loaders"},
    "builders": {"core", "builders", "loaders", "eval"},
}


def part_of(module: str) -> str:
    part = [*module.split("."), ""][1]
    return part if part in FOLDERS else "core"


def package_of(part: str, path: Path) -> list[str]:
    """The package a file is in, as `["cfqa_data", "eval", "metrics"]`."""
    below = path.relative_to(FOLDERS[part]).parent.parts
    return ["cfqa_data", *([] if part == "core" else [part]), *below]


def module_level_imports(
    tree: ast.Module, package: list[str], functions: bool = False
) -> Iterator[str]:
    """Names of this project's modules imported when the module is, so not inside functions."""
    todo: list[ast.AST] = list(tree.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("cfqa_data"))
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            if module.split(".")[0] == "cfqa_data":
                yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo += node.orelse
        elif functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            todo += ast.iter_child_nodes(node)


@pytest.mark.parametrize("part", FOLDERS)
def test_each_part_imports_only_what_it_may(part: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in sorted(FOLDERS[part].rglob("*.py"))
        for module in module_level_imports(ast.parse(path.read_text()), package_of(part, path))
        if part_of(module) not in ALLOWED[part]
    ]
    assert not wrong


@pytest.mark.parametrize("part", ["eval"])
def test_there_are_no_circles_even_by_imports_inside_functions(part: str) -> None:
    paths = {}
    for path in FOLDERS[part].rglob("*.py"):
        name = ".".join([*package_of(part, path), path.stem])
        paths[name.removesuffix(".__init__")] = path
    graph = {}
    for name, path in paths.items():
        tree = ast.parse(path.read_text())
        found = module_level_imports(tree, package_of(part, path), functions=True)
        modules = {one if one in paths else one.rpartition(".")[0] for one in found}
        graph[name] = modules & paths.keys() - {name}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("from cfqa_data import eval", ["eval"]),
        ("class A:\n import cfqa_data.builders.tasks.heads", ["builders"]),
        ("from ..eval.metrics import mse", ["eval"]),
        ("from .. import tasks, loaders", ["core", "loaders"]),
        ("def f():\n import cfqa_data.builders.tasks.heads", []),
        ("import numpy\nfrom numpy import linalg", []),
    ],
)
def test_the_check_sees_imports(text: str, parts: list[str]) -> None:
    found = module_level_imports(ast.parse(text), ["cfqa_data", "builders"])
    assert [part_of(name) for name in found] == parts
