"""Import submodules and public names of a package on first access."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any

__all__ = ["LazyModule", "lazy_modules"]


class LazyModule:
    """Proxy of a module that is imported when an attribute is first used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        value = getattr(import_module(self._name), attribute)
        setattr(self, attribute, value)  # later accesses do not call __getattr__
        return value


def lazy_modules(
    package: str, path: Iterable[str], names: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a package's ``__getattr__`` and ``__dir__``.

    Args:
        package: Name of the package.
        path: ``__path__`` of the package.
        names: Public names of the package: name -> module that defines it.
    """
    homes = dict(names or {})

    def get(name: str) -> Any:
        from importlib.util import find_spec

        if name in homes:
            return getattr(import_module(homes[name]), name)
        if name.startswith("_") or find_spec(f"{package}.{name}") is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return import_module(f"{package}.{name}")

    def every() -> list[str]:
        from pkgutil import iter_modules

        below = {module.name for module in iter_modules(path) if not module.name.startswith("_")}
        return sorted({*vars(sys.modules[package]), *homes, *below})

    return get, every
