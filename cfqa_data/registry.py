"""Find classes by name: built-in ones, installed entry points, and `module:Class`.

Tasks, backbones, sources and codecs are looked up the same way. A manifest is untrusted: its names
are looked up among built-in classes and installed entry points only. A recipe is the user's own and
may also name a class as `module:Class`.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import re
import sys
import traceback
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib import import_module, metadata
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, TypeAlias

from cfqa_data.entry_points import entry_points
from cfqa_data.errors import CfqaError, unknown_name

__all__ = [
    "Plugins",
    "Registry",
    "RegistryEntry",
    "as_plugins",
    "bind_options",
    "check_declared",
    "naming_user_code",
    "own_name",
    "path_options",
    "user_failure",
]

PACKAGE = "cfqa-data"

_USER_MODULES: set[str] = set()
"""Top-level modules of the classes found that are not built in, and of their base classes."""

Plugins: TypeAlias = str | type | Iterable[str | type]


@dataclass(frozen=True)
class RegistryEntry:
    """A class with its name and origin.

    Attributes:
        name: By which it was found.
        target: The class, or a function that makes an object.
        package: The distribution that has it, or its top-level module where it belongs to none.
        version: Of that distribution; "" without one.
        sha256: Of all Python files of its top-level package, as hex; "" for built-in ones.
        given: Whether the caller gave it, as one of the plugins.
    """

    name: str
    target: Any
    package: str
    version: str = ""
    sha256: str = ""
    given: bool = False

    @property
    def builtin(self) -> bool:
        """Whether it comes with this package."""
        return self.package == PACKAGE and not self.sha256


class Registry:
    """The classes of one kind.

    Args:
        kind: What they are, for messages: "codec".
        builtin: Name -> `module:attribute`, in the order that tables show them.
        error: Kind of error that is raised.
        contract: What they must be subclasses of; anything that can be called if not given.
    """

    def __init__(
        self,
        kind: str,
        builtin: Mapping[str, str],
        error: type[CfqaError],
        contract: type | tuple[type, ...] = (),
    ) -> None:
        self.kind, self.builtin, self.error = kind, dict(builtin), error
        self.contract = contract if isinstance(contract, tuple) else (contract,)
        self.group = f"cfqa.{kind}s"

    def names(self) -> list[str]:
        """Return the names of the built-in classes, then those of installed entry points."""
        return list(dict.fromkeys([*self.builtin, *self._installed()]))

    def find(self, name: object, *, classes: bool = False, plugins: Plugins = ()) -> RegistryEntry:
        """Return the class of a name.

        Args:
            name: Of a built-in class or an entry point.
            classes: Whether it may be `module:Class` too, whose module is then imported.
            plugins: Classes, or `module:Class` of some, that are found by :func:`own_name` too.
                Those that are of another kind are passed over.

        Raises:
            CfqaError: There is none, or it cannot be imported.
        """
        if isinstance(name, str):
            if name in self.builtin:
                return RegistryEntry(name, resolve_name(self.builtin[name]), PACKAGE)
            for plugin in as_plugins(plugins):
                found = self._plugin(plugin)
                if own_name(found.target) == name and self._fits(found.target):
                    return self._checked(replace(found, name=name, given=True))
            if (entry := self._installed().get(name)) is not None:
                of = (entry.dist.name, entry.dist.version) if entry.dist else (entry.module, "")
                return self._checked(self._load(name, entry.value, *of))
            if classes and ":" in name:
                return self._checked(self._plugin(name))
            if classes and re.fullmatch(r"\w+(\.\w+)+", name):
                module, _, attribute = name.rpartition(".")
                meant = f"did you mean '{module}:{attribute}' (module:Class)?"
                raise self.error(f"unknown {self.kind} {name!r}: {meant}")
        message = unknown_name(self.kind, name, self.names())
        remedy = "; name a class as module:Class" if classes and not self.names() else ""
        raise self.error(message + remedy)

    def recorded(self, name: str) -> str:
        """Return how a manifest calls a class that a recipe names: never by `module:Class`.

        It is the name of its entry point, if it has one, else :func:`own_name`.
        """
        if ":" not in name:
            return name
        entries = (entry.name for entry in self._installed().values() if entry.value == name)
        return next(entries, None) or own_name(self.find(name, classes=True).target)

    def _plugin(self, plugin: str | type) -> RegistryEntry:
        """Return a class that was given, or named by `module:Class`."""
        if isinstance(plugin, str):
            return self._load(plugin, plugin, *_distribution(plugin.partition(":")[0]))
        module = plugin.__module__
        where = f"{module}:{plugin.__qualname__}"
        return RegistryEntry(where, plugin, *_distribution(module), source_hash(module))

    def _fits(self, target: Any) -> bool:
        if not self.contract:
            return callable(target)
        return isinstance(target, type) and issubclass(target, self.contract)

    def _is_candidate(self, target: Any) -> bool:
        return isinstance(target, type) and self._fits(target) and not inspect.isabstract(target)

    def _checked(self, found: RegistryEntry) -> RegistryEntry:
        if not self._fits(found.target):
            required = " or ".join(kind.__name__ for kind in self.contract) or "class"
            raise self.error(f"{self.kind} {found.name!r}: {found.target!r} is not a {required}")
        check_declared(found.target, f"{self.kind} {found.name!r}", self.error)
        bases = filter(self._fits, found.target.__mro__) if self.contract else [found.target]
        _USER_MODULES.update(base.__module__.partition(".")[0] for base in bases)
        _USER_MODULES.discard("cfqa_data")
        return found

    def _installed(self) -> Mapping[str, metadata.EntryPoint]:
        return {entry.name: entry for entry in entry_points(self.group)}

    def _load(self, name: str, where: str, package: str, version: str) -> RegistryEntry:
        if not re.fullmatch(r"[\w.]+:[\w.]+", where):
            raise self.error(f"{self.kind} {name!r}: {where!r} is not module:Class")
        module, _, path = where.partition(":")
        try:
            target: Any = import_module(module)
        except (
            Exception,
            SystemExit,
        ) as error:  # importing runs third-party code, which may raise anything
            why = f"{type(error).__name__}: {error}"
            if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
                why = f"no module {error.name!r} in {_looked_in()}"
            raise self.error(f"{self.kind} {name!r}: cannot import {where}: {why}") from error
        for part in path.split("."):
            if not hasattr(target, part):
                there = [n for n, v in vars(target).items() if self._is_candidate(v)]
                message = unknown_name(f"class of {module}", part, there)
                raise self.error(f"{self.kind} {name!r}: {message}")
            target = getattr(target, part)
        return RegistryEntry(name, target, package, version, source_hash(where.partition(".")[0]))


def as_plugins(plugins: Plugins | None) -> tuple[str | type, ...]:
    """Return classes, or `module:Class` of some, as a tuple; one may be given alone.

    Raises:
        CfqaError: One is neither.
    """
    alone = isinstance(plugins, str | type) or not isinstance(plugins, Iterable)
    found = (plugins,) if alone and plugins is not None else tuple(plugins or ())  # type: ignore[arg-type]
    for plugin in found:
        if not isinstance(plugin, str | type):
            raise CfqaError(f"plugins must be classes or 'module:Class' strings, not {plugin!r}")
    return found  # type: ignore[return-value]


def own_name(target: Any) -> str:
    """Return the name that a class declares: its `name`, or that of its facts; else its `__name__`.

    A manifest records it for a class without entry point, and `plugins` are looked up by it.
    """
    for name in (getattr(target, "name", None), getattr(vars(target).get("facts"), "name", None)):
        if isinstance(name, str) and name:
            return name
    return str(target.__name__).lower()


def _looked_in() -> str:
    """Return the folders that modules are imported from, in words."""
    python = sys.prefix, sys.base_prefix
    own = [os.path.abspath(path) for path in sys.path if not path.startswith(python)]
    return ", ".join([*own, "or the installed packages"])


def check_declared(thing: Any, what: str, error: type[CfqaError]) -> None:
    """Check the attributes that a class or an object must have, as ``declared`` of its base says.

    Args:
        thing: A class, whose properties are passed over, or an object.
        what: Names it in errors.
        error: Kind of error that is raised.

    Raises:
        CfqaError: An attribute is missing, or of another type.
    """
    owner = thing if isinstance(thing, type) else type(thing)
    for name, kinds in getattr(owner, "declared", {}).items():
        value = getattr(thing, name, ...)
        if thing is owner and isinstance(value, property | cached_property):
            continue
        if not isinstance(value, kinds):
            names = " or ".join(
                "None" if kind is type(None) else kind.__name__
                for kind in (typing.get_args(kinds) or (kinds,))
            )
            got = "it is missing" if value is ... else f"got {value!r:.200}"
            raise error(f"{what}: {owner.__name__}.{name} must be {names}, {got}")


def user_failure(failure: BaseException) -> str | None:
    """Return an exception as one line with the place in a user's class that it comes from.

    That is the deepest frame in a module of a class that was found; None without such a frame.
    """
    place = None
    for frame, line in traceback.walk_tb(failure.__traceback__):
        if str(frame.f_globals.get("__name__")).partition(".")[0] in _USER_MODULES:
            code = frame.f_code
            place = f"{Path(code.co_filename).name}:{line}, {code.co_qualname}"
    return place and f"{type(failure).__name__}: {failure} in {place}"


@contextmanager
def naming_user_code(error: type[CfqaError]) -> Iterator[None]:
    """Raise what a user's class raises as an error of this package that names class and line."""
    try:
        yield
    except CfqaError:
        raise
    except Exception as failure:
        if (message := user_failure(failure)) is None:
            raise
        raise error(message) from failure


@cache
def _distribution(module: str) -> tuple[str, str]:
    """Return name and version of the distribution that has a module, if any has."""
    top = module.partition(".")[0]
    for name in metadata.packages_distributions().get(top, ()):
        return name, metadata.version(name)
    return top, ""


@cache
def source_hash(module: str) -> str:
    """Return the SHA-256 of the Python files of a top-level module or package, as hex."""
    top = sys.modules.get(module.partition(":")[0].partition(".")[0])
    digest = hashlib.sha256()
    for root in [Path(path) for path in getattr(top, "__path__", ())]:
        for file in sorted(root.rglob("*.py")):
            data = file.read_bytes()
            digest.update(f"{file.relative_to(root).as_posix()}\0{len(data)}\0".encode() + data)
    if not hasattr(top, "__path__") and (single := getattr(top, "__file__", None)):
        digest.update(Path(single).read_bytes())
    return digest.hexdigest()


def bind_options(
    target: Any, options: Mapping[str, Any], what: str, error: type[CfqaError], **given: Any
) -> dict[str, Any]:
    """Return the keyword arguments that make an object of a class.

    Args:
        target: The class, whose signature says which options there are, and of which types.
        options: Of the user; a text becomes a `Path` where the annotation says so.
        what: Names the object in errors.
        error: Kind of error that is raised.
        given: Keyword arguments that are ours to give, left out where the class does not take them.

    Raises:
        CfqaError: There is no such option, one is missing, or a value is of another type.
    """
    signature = inspect.signature(target)
    known = {
        name: parameter
        for name, parameter in signature.parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    anything = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    hints = _hints(target)
    bound = {name: value for name, value in given.items() if name in known or anything}
    own = [name for name in known if name not in given]
    for name, value in options.items():
        if name in given or (name not in known and not anything):
            none = f"unknown option {name!r}: it takes none"
            raise error(f"{what}: {unknown_name('option', name, own) if own else none}")
        bound[name] = _as_type(value, hints.get(name, Any), f"{what}: option {name}", error)
    missing = [n for n, p in known.items() if p.default is p.empty and n not in bound]
    if missing:
        raise error(f"{what}: lacks the option {', '.join(missing)}")
    return bound


def path_options(target: Any) -> set[str]:
    """Return the options of a class whose annotations contain `Path`."""

    def has_path(hint: Any) -> bool:
        path = isinstance(hint, type) and issubclass(hint, Path)
        return path or any(map(has_path, typing.get_args(hint)))

    return {name for name, hint in _hints(target).items() if has_path(hint)}


def _hints(target: Any) -> dict[str, Any]:
    """Return the annotations of what makes an object of a class."""
    call = target.__init__ if inspect.isclass(target) else target
    try:
        return typing.get_type_hints(call)
    except Exception:  # names that only a type checker imports
        return {}


def _as_type(value: Any, hint: Any, what: str, error: type[CfqaError]) -> Any:
    """Return a value as its annotation has it, where that is one that can be checked."""
    if typing.get_origin(hint) is typing.Literal and value not in typing.get_args(hint):
        raise error(f"{what} cannot be {value!r}")
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds = [typing.get_origin(h) or h for h in (typing.get_args(hint) if union else (hint,))]
    if Any in kinds or not all(isinstance(kind, type) for kind in kinds):
        return value
    if isinstance(value, str) and Path in kinds and str not in kinds:
        return Path(value)
    if isinstance(value, int) and not isinstance(value, bool) and float in kinds:
        return value if int in kinds else float(value)
    if isinstance(value, list) and tuple in kinds:
        return tuple(value)
    if not isinstance(value, tuple(kinds)) or (
        isinstance(value, bool) and bool not in kinds and object not in kinds
    ):
        raise error(f"{what} cannot be {value!r}")
    return value
