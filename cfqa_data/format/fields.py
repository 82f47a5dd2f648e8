"""Dataclasses of plain data: validated by their annotations, converted to and from dictionaries.

A number in an annotation is a minimum, of the value itself or of the length of a text or list:
`Annotated[int, 1]`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

from cfqa_data.errors import CfqaError, FormatError, unknown_name

__all__ = ["Amount", "Checked", "Count", "Number", "Text", "keyed", "made", "plain"]

Text = Annotated[str, 1]
Count = Annotated[int, 1]
Number = Annotated[int, 0]
Amount = Annotated[float, 0]

T = TypeVar("T")


class Checked:
    """A dataclass whose fields are validated against their annotations; lists become tuples.

    Attributes:
        error: kind of error that is raised.
        where: names it in errors.
    """

    error: ClassVar[type[CfqaError]] = FormatError

    @property
    def where(self) -> str:
        return type(self).__name__.lower()

    def __post_init__(self) -> None:
        for name, hint in _hints(type(self)).items():
            value = _checked(f"{self.where}.{name}", getattr(self, name), hint, self.error)
            object.__setattr__(self, name, value)

    def require(self, condition: object, message: str) -> None:
        """Raise an error of this message, after :attr:`where`, unless the condition holds."""
        if not condition:
            raise self.error(f"{self.where}{message}")


def _checked(where: str, value: Any, hint: Any, error: type[CfqaError]) -> Any:
    hint, least, optional = _parts(hint)
    if optional and value is None:
        return None
    kind, args = get_origin(hint) or hint, get_args(hint)
    if kind is Literal:
        ok, what = value in args, f"one of {', '.join(args)}"
    elif kind is tuple:
        size = None if args[-1] is Ellipsis else len(args)
        ok = isinstance(value, list | tuple) and (size is None or len(value) == size)
        ok, what = ok and len(value) >= least, "a list" if size is None else f"{size} values"
        if ok:
            of = args[0]
            return tuple(v if of is Any else _checked(where, v, of, error) for v in value)
    elif kind is Mapping:
        ok, what = isinstance(value, dict) and all(isinstance(key, str) for key in value), "a table"
        if ok:
            of = args[1]
            return (
                value
                if of is Any
                else {k: _checked(f"{where}: {k}", v, of, error) for k, v in value.items()}
            )
    elif kind in _KINDS:
        test, what = _KINDS[kind]
        ok = test(value, least)
        what += f" of at least {least}" if kind is int and least > -math.inf else ""
    else:
        return value
    if not ok:
        raise error(f"{where} must be {what}, got {repr(value)[:200]}")
    return value


def _is_number(value: Any, least: float) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and value >= least


_KINDS: Mapping[Any, tuple[Callable[[Any, float], bool], str]] = {
    str: (lambda v, n: isinstance(v, str) and len(v) >= n and v.isprintable(), "a text"),
    bool: (lambda v, n: isinstance(v, bool), "true or false"),
    int: (lambda v, n: type(v) is int and v >= n, "a whole number"),
    float: (_is_number, "a number"),
}


def _parts(hint: Any) -> tuple[Any, float, bool]:
    """Return the type that a hint is of, the least that a value may be, and whether None is one."""
    optional = get_origin(hint) is UnionType or type(None) in get_args(hint)
    if optional:
        hint = get_args(hint)[0]
    if get_origin(hint) is Annotated:
        return *get_args(hint), optional
    return hint, -math.inf, optional


_HINTS: dict[Any, dict[str, Any]] = {}


def _hints(kind: Any) -> dict[str, Any]:
    if kind not in _HINTS:
        hints = get_type_hints(kind, include_extras=True)
        _HINTS[kind] = {entry.name: hints[entry.name] for entry in fields(kind)}
    return _HINTS[kind]


def made(kind: type[T], where: str, data: object, **given: Any) -> T:
    """Make a dataclass from a table whose keys are exactly its fields.

    Args:
        kind: the dataclass; fields that are dataclasses are made of tables in it.
        where: names the table in errors.
        data: the table.
        given: values of further fields.

    Raises:
        FormatError: a key is missing, unknown or has an impossible value.
    """
    hints = {name: hint for name, hint in _hints(kind).items() if name not in given}
    table = keyed(where, data, hints)
    for name, hint in hints.items():
        (inner, *_), value = _parts(hint), table[name]
        if is_dataclass(inner) and value is not None:
            table[name] = made(inner, f"{where}.{name}", value)  # type: ignore[arg-type]
        elif get_origin(inner) is tuple and is_dataclass(entry := get_args(inner)[0]):
            if not isinstance(value, list | tuple):
                raise FormatError(f"{where}.{name} must be a list, got {value!r}")
            table[name] = [made(entry, f"{where}.{name}", row) for row in value]  # type: ignore[arg-type]
    return kind(**table, **given)


def plain(value: Any) -> Any:
    """Convert dataclasses to tables and tuples to lists, recursively."""
    if is_dataclass(value):
        return {entry.name: plain(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return value


def keyed(
    where: str, data: object, required: Iterable[str], optional: Iterable[str] = ()
) -> dict[str, Any]:
    """Return a copy of a table after checking its keys.

    Raises:
        FormatError: it is no table, lacks a key, or has an unknown one.
    """
    required = tuple(required)
    known = (*required, *optional)
    if not isinstance(data, Mapping):
        raise FormatError(f"{where} is not a table")
    for key in data:
        if key not in known:
            raise FormatError(unknown_name(f"key in {where}", key, known))
    if missing := [key for key in required if key not in data]:
        raise FormatError(f"{where} lacks {', '.join(missing)}")
    return dict(data)
