"""Fingerprints of metrics: digests of their code, imports, options and state.

Scores are reused between runs whose digests are equal. The digest covers

* a function's own code, defaults and closure, and the values of the module globals that it uses; an
  object's state, as pickling would keep it; the parameters of a `torch.nn.Module`; a metric's
  options;
* the source of every user module (neither in the standard library nor installed) that defines any
  of these, and of the user modules that it imports, recursively, without comments, docstrings and
  layout;
* the version of Python, and of the installed packages that such a module imports.

It does not cover data files, what extension modules call, modules that are imported by a computed
name, or packages that installed packages import. If a part cannot be described (a class that is in
no file, an object that cannot be pickled), there is no digest, and scores are not reused.
"""

from __future__ import annotations

import ast
import dis
import hashlib
import os
import platform
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import resolve_name
from pathlib import Path
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from cfqa_data.eval.metrics import Metric
from cfqa_data.format.manifest import hash_file

__all__ = ["COVERS", "Fingerprint", "fingerprint"]

COVERS = (
    "source of own modules and of the own modules that they import; versions of the installed "
    "packages that these import; code, options, defaults, closures, globals and state; not: data "
    "files, extension modules, modules imported by a computed name, imports of installed packages"
)
"""Description of what a digest covers, which score files contain."""

ALWAYS = ("cfqa_data", "numpy", "torch")
"""Packages whose version is part of every digest."""


@dataclass(frozen=True)
class Fingerprint:
    """A digest of everything that determines a metric's scores.

    Attributes:
        digest: Equal for metrics that give equal scores; None if it cannot be computed.
        sources: SHA-256 of the code of each user module, and of installed modules that define the
            metric, by module name.
        packages: Version of each installed package.
        reason: Why there is no digest; None if there is one.
    """

    digest: str | None
    sources: dict[str, str] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=dict)
    reason: str | None = None

    def difference(self, earlier: Fingerprint) -> str:
        """Describe how this metric differs from an earlier one of the same name."""
        for what, own, other in (
            ("other code in", self.sources, earlier.sources),
            ("another version of", self.packages, earlier.packages),
        ):
            names = [name for name in sorted({*own, *other}) if own.get(name) != other.get(name)]
            if names:
                return f"{what} {', '.join(names)}"
        return "other options, state or training"


def fingerprint(metric: Metric, *more: str) -> Fingerprint:
    """Compute the fingerprint of a metric.

    Args:
        metric: The metric.
        more: Further texts to include in the digest.
    """
    collector = _Collector()
    try:
        for package in ALWAYS:
            collector.module(package)
        parts = [collector.describe(p) for p in (metric.function, metric.fit, dict(metric.options))]
    except _NoDigestError as error:
        return Fingerprint(None, collector.sources, collector.packages, str(error))
    digest = _digest(
        [*parts, sorted(collector.sources.items()), sorted(collector.packages.items()), *more]
    )
    return Fingerprint(digest, collector.sources, collector.packages)


class _NoDigestError(Exception):
    """A value has no description to digest."""


class _Collector:
    """Describes values, and collects the modules that define them.

    Attributes:
        sources: SHA-256 of the code of each user module.
        packages: Version of each installed package.
    """

    def __init__(self) -> None:
        self.sources: dict[str, str] = {}
        self.packages: dict[str, str] = {"python": platform.python_version()}
        self._values: dict[int, tuple[Any, str]] = {}

    def describe(self, value: Any) -> str:
        """Return a text that is equal for values that compute the same results.

        Raises:
            _NoDigestError: If there is no such text.
        """
        if value is None or type(value) in (bool, int, float, complex, str, bytes):
            return repr(value)
        if id(value) not in self._values:
            self._values[id(value)] = value, "itself"  # for values that contain themselves
            kind = f"{type(value).__module__}.{type(value).__qualname__}"
            try:
                parts = self._describe_parts(value)
            except _NoDigestError:
                raise
            except Exception as error:  # pickling calls methods of the object
                raise _NoDigestError(
                    f"the state of an object {kind} cannot be determined"
                ) from error
            self._values[id(value)] = value, _digest([kind, *parts])
        return self._values[id(value)][1]

    def _describe_parts(self, value: Any) -> list[Any]:
        import torch

        if isinstance(value, list | tuple):
            return list(map(self.describe, value))
        if isinstance(value, dict | set | frozenset):
            return sorted(map(self.describe, value.items() if isinstance(value, dict) else value))
        if isinstance(value, torch.Tensor):
            flat = value.detach().cpu().reshape(-1).contiguous()
            return [value.dtype, value.shape, _digest([flat.view(torch.uint8).numpy().tobytes()])]
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            return [value.dtype, value.shape, _digest([value.tobytes()])]
        if isinstance(value, ModuleType):
            self.module(value.__name__)
            return [value.__name__]
        if isinstance(value, type):
            if not self.module(value.__module__):
                raise _NoDigestError(f"the class {value.__qualname__} is in no file")
            return [value.__module__, value.__qualname__]
        if isinstance(value, FunctionType):
            return self._describe_function(value)
        if isinstance(value, MethodType):
            return [self.describe(value.__self__), self.describe(value.__func__)]
        if isinstance(value, CodeType):  # instructions do not include the docstring
            steps = [
                (s.opname, self.describe(s.argval) if s.opcode in dis.hasconst else s.arg)
                for s in dis.get_instructions(value)
            ]
            return [steps, value.co_names]
        return self._describe_object(value)

    def _describe_function(self, function: FunctionType) -> list[Any]:
        code, names = function.__code__, function.__globals__
        cells = [cell.cell_contents for cell in function.__closure__ or () if cell != CellType()]
        state = (function.__defaults__, function.__kwdefaults__, vars(function), cells)
        parts = [code.co_qualname, self.describe(state)]
        home = self.module(str(names.get("__name__")))
        if home in ("installed", "standard"):
            path, content = Path(code.co_filename), ""
            if path.is_file():
                content, _ = _source(path, hash_file(path))
            if home == "installed":
                self.sources[str(names["__name__"])] = content
            return [*parts, content]
        if not home:  # without a file, imports are found in the code only
            for name in _names(code, "IMPORT_NAME"):
                self.module(name)
        used = sorted(_names(code, "LOAD_GLOBAL", "LOAD_NAME") & names.keys())
        return [*parts, self.describe(code), *([name, self.describe(names[name])] for name in used)]

    def _describe_object(self, value: Any) -> list[Any]:
        reduced = value.__reduce_ex__(4)
        if isinstance(reduced, str):  # a global that is pickled by name
            module = str(getattr(value, "__module__", None))
            self.module(module)
            return [module, reduced, self.describe(getattr(value, "__wrapped__", None))]
        return [self.describe(list(p) if isinstance(p, Iterator) else p) for p in reduced]

    def module(self, name: str) -> str:
        """Add a module, and the modules that it imports if it is the user's own.

        Returns:
            "own", "installed", "standard", or "" for a module without a file.
        """
        top = name.partition(".")[0]
        path = _file_of(name)
        if top == "cfqa_data" or (path and {"site-packages", "dist-packages"} & set(path.parts)):
            if top == "__main__":  # of an installed program: the code is from a message or typed
                return ""
            if top not in self.packages:
                self.packages[top] = _version(top) or (hash_file(path) if path else "")
            return "installed"
        if path is None:
            return "standard" if top in sys.stdlib_module_names else ""
        if any(path.resolve().is_relative_to(folder) for folder in STANDARD):
            return "standard"
        if name not in self.sources:
            self.sources[name], imports = _source(path, hash_file(path), name)
            for imported in imports:
                self.module(imported)
        return "own"


STANDARD = {Path(sysconfig.get_path(kind)).resolve() for kind in ("stdlib", "platstdlib")}


def _digest(parts: list[Any]) -> str:
    return hashlib.sha256(repr(parts).encode("utf-8", "backslashreplace")).hexdigest()


def _names(code: CodeType, *operations: str) -> set[str]:
    """Return the names that a function and its inner functions use in some operations."""
    names = {step.argval for step in dis.get_instructions(code) if step.opname in operations}
    within = (item for item in code.co_consts if isinstance(item, CodeType))
    return names.union(*(_names(item, *operations) for item in within))


WITH_DOCSTRING = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef


@lru_cache(maxsize=256)  # the metrics of a module share it
def _source(path: Path, content: str, name: str = "") -> tuple[str, tuple[str, ...]]:
    """Parse a source file.

    Args:
        path: The file.
        content: Hash of its content.
        name: Name of the module, to resolve relative imports.

    Returns:
        A hash of its code without comments and docstrings, and the modules that it imports, also
        within functions, with their parents.
    """
    if path.suffix != ".py":
        return content, ()
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # the file cannot be imported either
        return content, ()
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    imports: list[str] = []
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, WITH_DOCSTRING) and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            try:
                base = resolve_name("." * node.level + (node.module or ""), package)
            except ImportError:  # a relative import beyond the top-level package
                continue
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        for whole in (each.split(".") for each in names):
            imports += (".".join(whole[:end]) for end in range(1, len(whole) + 1))
    return _digest([ast.dump(tree)]), tuple(dict.fromkeys(imports))


def _file_of(name: str) -> Path | None:
    """Return the file of a module without importing it; None if there is none."""
    if name in sys.modules:
        file = getattr(sys.modules[name], "__file__", None)
    else:
        spec = _spec(name)
        file = spec.origin if spec and spec.has_location else None
    path = Path(os.path.abspath(file)) if file else None
    return path if path and path.is_file() else None


def _spec(name: str) -> Any:
    """Find a module that is not imported; `importlib.util.find_spec` would import its parents."""
    parent = name.rpartition(".")[0]
    path = None
    if parent:
        loaded = sys.modules.get(parent)
        above = getattr(loaded, "__spec__", None) if loaded else _spec(parent)
        path = getattr(above, "submodule_search_locations", None)
        if path is None:
            return None
    finders = (finder for finder in sys.meta_path if hasattr(finder, "find_spec"))
    return next(filter(None, (finder.find_spec(name, path) for finder in finders)), None)


@cache
def _version(top: str) -> str | None:
    """Return the version of the distribution of a top-level module."""
    try:
        return version(top)
    except PackageNotFoundError:
        names = sorted(set(packages_distributions().get(top, [])))
        return ", ".join(f"{name} {version(name)}" for name in names) or None
