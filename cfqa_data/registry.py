"""Find classes by name: built-in classes, installed entry points, and `module:Class`.

Tasks, backbones, sources and codecs all have such a registry. Manifests are untrusted, so their
names are looked up among built-in classes and installed entry points only. A recipe is trusted and
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
"""Top-level modules of the user-defined classes found so far, and of their base classes."""

Plugins: TypeAlias = str | type | Iterable[str | type]


@dataclass(frozen=True)
class RegistryEntry:
    """A class with its name and origin.

    Attributes:
        name: Name by which the class was found.
        target: The class, or a function that creates an object.
        package: Distribution that contains it; its top-level module if there is none.
        version: Version of the distribution; "" if there is none.
        sha256: SHA-256 of all Python files of its top-level package as hex; "" if built in.
        given: Whether the caller passed it as a plugin.
    """

    name: str
    target: Any
    package: str
    version: str = ""
    sha256: str = ""
    given: bool = False

    @property
    def builtin(self) -> bool:
        """Whether the class is part of this package."""
        return self.package == PACKAGE and not self.sha256


class Registry:
    """The classes of one kind.

    Args:
        kind: Kind of class, such as "codec". The entry point group is "cfqa.codecs".
        builtin: Name -> `module:attribute` of the built-in classes, in the order to list them.
        error: Type of the errors to raise.
        contract: Required base class or classes; any callable is accepted if not given.
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
            name: Name of a built-in class, a plugin or an entry point, in this order.
            classes: Whether the name may also be `module:Class`, which imports the module.
            plugins: Further classes, as classes or `module:Class`, that are found by their
                :func:`own_name`. Classes of another kind are ignored.

        Raises:
            CfqaError: If there is no class of that name, or it cannot be imported.
        """
        if isinstance(name, str):
            if name in self.builtin:
                return RegistryEntry(name, resolve_name(self.builtin[name]), PACKAGE)
            for plugin in as_plugins(plugins):
                candidate = self._plugin(plugin)
                if own_name(candidate.target) == name and self._fits(candidate.target):
                    return self._checked(replace(candidate, name=name, given=True))
            if (entry := self._installed().get(name)) is not None:
                dist = (entry.dist.name, entry.dist.version) if entry.dist else (entry.module, "")
                return self._checked(self._load(name, entry.value, *dist))
            if classes and ":" in name:
                return self._checked(self._plugin(name))
            if classes and re.fullmatch(r"\w+(\.\w+)+", name):
                module, _, attribute = name.rpartition(".")
                hint = f"did you mean '{module}:{attribute}' (module:Class)?"
                raise self.error(f"unknown {self.kind} {name!r}: {hint}")
        message = unknown_name(self.kind, name, self.names())
        remedy = "; name a class as module:Class" if classes and not self.names() else ""
        raise self.error(message + remedy)

    def recorded(self, name: str) -> str:
        """Return the name to record in a manifest for a class that a recipe names.

        For `module:Class` it is the name of its entry point, if any, or its :func:`own_name`.
        """
        if ":" not in name:
            return name
        entries = (entry.name for entry in self._installed().values() if entry.value == name)
        return next(entries, None) or own_name(self.find(name, classes=True).target)

    def _plugin(self, plugin: str | type) -> RegistryEntry:
        """Return the entry of a class or of `module:Class`."""
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

    def _checked(self, entry: RegistryEntry) -> RegistryEntry:
        if not self._fits(entry.target):
            required = " or ".join(kind.__name__ for kind in self.contract) or "class"
            raise self.error(f"{self.kind} {entry.name!r}: {entry.target!r} is not a {required}")
        check_declared(entry.target, f"{self.kind} {entry.name!r}", self.error)
        bases = filter(self._fits, entry.target.__mro__) if self.contract else [entry.target]
        _USER_MODULES.update(base.__module__.partition(".")[0] for base in bases)
        _USER_MODULES.discard("cfqa_data")
        return entry

    def _installed(self) -> Mapping[str, metadata.EntryPoint]:
        return {entry.name: entry for entry in entry_points(self.group)}

    def _load(self, name: str, where: str, package: str, version: str) -> RegistryEntry:
        if not re.fullmatch(r"[\w.]+:[\w.]+", where):
            raise self.error(f"{self.kind} {name!r}: {where!r} is not module:Class")
        module, _, path = where.partition(":")
        try:
            target: Any = import_module(module)
        except (Exception, SystemExit) as error:  # importing runs third-party code
            why = f"{type(error).__name__}: {error}"
            if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
                why = f"no module {error.name!r} in {_import_path()}"
            raise self.error(f"{self.kind} {name!r}: cannot import {where}: {why}") from error
        for part in path.split("."):
            if not hasattr(target, part):
                available = [n for n, v in vars(target).items() if self._is_candidate(v)]
                message = unknown_name(f"class of {module}", part, available)
                raise self.error(f"{self.kind} {name!r}: {message}")
            target = getattr(target, part)
        return RegistryEntry(name, target, package, version, source_hash(where.partition(".")[0]))


def as_plugins(plugins: Plugins | None) -> tuple[str | type, ...]:
    """Return one plugin, or several, as a tuple of classes and `module:Class` strings.

    Raises:
        CfqaError: If a plugin is neither a class nor a string.
    """
    single = isinstance(plugins, str | type) or not isinstance(plugins, Iterable)
    several = (plugins,) if single and plugins is not None else tuple(plugins or ())  # type: ignore[arg-type]
    for plugin in several:
        if not isinstance(plugin, str | type):
            raise CfqaError(f"plugins must be classes or 'module:Class' strings, not {plugin!r}")
    return several  # type: ignore[return-value]


def own_name(target: Any) -> str:
    """Return the name that a class declares: `name`, `facts.name`, or its lower-case `__name__`.

    Manifests record it for a class without an entry point, and plugins are found by it.
    """
    for name in (getattr(target, "name", None), getattr(vars(target).get("facts"), "name", None)):
        if isinstance(name, str) and name:
            return name
    return str(target.__name__).lower()


def _import_path() -> str:
    """Return the folders of `sys.path`, without those of the Python installation, as text."""
    python = sys.prefix, sys.base_prefix
    folders = [os.path.abspath(path) for path in sys.path if not path.startswith(python)]
    return ", ".join([*folders, "or the installed packages"])


def check_declared(thing: Any, what: str, error: type[CfqaError]) -> None:
    """Check that a class or object has the attributes that its base lists in ``declared``.

    Args:
        thing: A class, whose properties are not checked, or an object.
        what: Name of the class or object in messages.
        error: Type of the error to raise.

    Raises:
        CfqaError: If an attribute is missing or has another type.
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
    """Return an exception of user-defined code as one line with its file, line and function.

    The location is the innermost frame in a module of a user-defined class. Return None if there is
    no such frame.
    """
    location = None
    for frame, line in traceback.walk_tb(failure.__traceback__):
        if str(frame.f_globals.get("__name__")).partition(".")[0] in _USER_MODULES:
            code = frame.f_code
            location = f"{Path(code.co_filename).name}:{line}, {code.co_qualname}"
    return location and f"{type(failure).__name__}: {failure} in {location}"


@contextmanager
def naming_user_code(error: type[CfqaError]) -> Iterator[None]:
    """Convert exceptions of user-defined code to an error that names its file and line."""
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
    """Return the name and version of a module's distribution, or the top-level module and ""."""
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
    """Return the keyword arguments to create an object from a user's options.

    Args:
        target: The class, whose signature defines the options and their types.
        options: Options from the user. A string is converted to `Path` if annotated so.
        what: Name of the object in messages.
        error: Type of the error to raise.
        given: Keyword arguments of this package, left out if the class does not accept them.

    Raises:
        CfqaError: If an option is unknown or missing, or a value has the wrong type.
    """
    signature = inspect.signature(target)
    known = {
        name: parameter
        for name, parameter in signature.parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    hints = _hints(target)
    bound = {name: value for name, value in given.items() if name in known or takes_any}
    available = [name for name in known if name not in given]
    for name, value in options.items():
        if name in given or (name not in known and not takes_any):
            none = f"unknown option {name!r}: it takes none"
            raise error(f"{what}: {unknown_name('option', name, available) if available else none}")
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
    """Return the annotations of a function, or of the constructor of a class."""
    call = target.__init__ if inspect.isclass(target) else target
    try:
        return typing.get_type_hints(call)
    except Exception:  # such as names imported under TYPE_CHECKING
        return {}


def _as_type(value: Any, hint: Any, what: str, error: type[CfqaError]) -> Any:
    """Check and convert a value to its annotated type, if the annotation can be checked."""
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
