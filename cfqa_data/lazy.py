"""Modules of a package as its attributes, imported when first asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

__all__ = ["lazy_modules"]


def lazy_modules(
    package: str, path: Iterable[str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a package's ``__getattr__`` and ``__dir__``.

    Args:
        package: Its name.
        path: Its ``__path__``.
    """

    def get(name: str) -> Any:
        from importlib.util import find_spec

        if name.startswith("_") or find_spec(f"{package}.{name}") is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return import_module(f"{package}.{name}")

    def names() -> list[str]:
        from pkgutil import iter_modules

        below = {module.name for module in iter_modules(path) if not module.name.startswith("_")}
        return sorted({*vars(sys.modules[package]), *below})

    return get, names
