"""Dataclasses that are validated against their annotations, and converted to and from tables.

A number in an annotation is a minimum of the value, or of the length of a string or list:
`Annotated[int, 1]`. The metadata of a field determine how tables represent it: under another key,
omitted if empty (:data:`OMIT`), as the key of the table itself (:data:`NAME`), or by its own keys
(:data:`INLINE`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, fields
from functools import cache
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, Self, get_args, get_origin, get_type_hints

from cfqa_data.errors import CfqaError, FormatError, check_known, prefixed

__all__ = [
    "INLINE",
    "NAME",
    "OMIT",
    "Amount",
    "Checked",
    "Count",
    "Number",
    "Text",
    "check_keys",
    "is_number",
    "plain",
]

Text = Annotated[str, 1]
Count = Annotated[int, 1]
Number = Annotated[int, 0]
Amount = Annotated[float, 0]

NAME = {"key": ""}
"""Metadata of the name of an object, which is its table's key in the enclosing table."""

INLINE = {"key": "*"}
"""Metadata of a dataclass whose keys are merged into the enclosing table; it gets the name, too."""

OMIT = {"omit": True}


class Checked:
    """Base class of dataclasses whose fields are validated; lists become tuples.

    A field whose annotation is such a class also accepts a table of that class's fields.

    Attributes:
        error: The exception to raise.
        complete: Whether tables must also contain the keys of fields with defaults.
        where_format: Format string of the object's name in messages, with its attributes as
            ``{0.name}``; the name of the class by default.
    """

    error: ClassVar[type[CfqaError]] = FormatError
    complete: ClassVar[bool] = True
    where_format: ClassVar[str] = ""

    @property
    def where(self) -> str:
        return self.where_format.format(self) or type(self).__name__.lower()

    def __post_init__(self) -> None:
        for name, hint in _hints(type(self)).items():  # type: ignore[arg-type]
            try:
                value = _convert(name, getattr(self, name), hint)
            except ValueError as error:
                raise self.error(f"{self.where}.{error}") from None
            except CfqaError as error:
                raise self.error(
                    f"{self.where}: {error}" if self.where_format else str(error)
                ) from None
            object.__setattr__(self, name, value)

    def require(self, condition: object, message: str) -> None:
        """Raise an error with this message, after :attr:`where`, unless the condition is true."""
        if not condition:
            raise self.error(f"{self.where}{message}")

    @classmethod
    def from_dict(cls, data: object, name: str = "", where: str = "") -> Self:
        """Return the object that :meth:`to_dict` describes.

        Args:
            data: A table with exactly the keys of the fields.
            name: Value of the :data:`NAME` field.
            where: Name of the table in messages.

        Raises:
            CfqaError: If a key is missing or unknown, or a value is invalid.
        """
        keys = _keys(cls)  # type: ignore[arg-type]
        required = [
            key
            for key, entry in keys.items()
            if cls.complete or (entry.init and entry.default is entry.default_factory is MISSING)
        ]
        table = check_keys(where or f"the {cls.__name__.lower()}", data, required, keys, cls.error)
        values: dict[str, Any] = {}
        for field, hint in _hints(cls).items():  # type: ignore[arg-type]
            key = _key(cls.__dataclass_fields__[field])  # type: ignore[attr-defined]
            if key == NAME["key"]:
                values[field] = name
            elif key == INLINE["key"]:
                inline = {key: table[key] for key in _keys(hint) if key in table}
                with prefixed(where, cls.error):
                    values[field] = hint.from_dict(inline, name, where)
            elif key in table:
                values[field] = table[key]
        instance = cls(**values)
        for key, entry in keys.items():
            if not entry.init and key in table:  # a field that is computed from the others
                value, got = getattr(instance, entry.name), table[key]
                instance.require(got == value, f": {key} must be {value}, got {got!r}")
        return instance

    def to_dict(self) -> dict[str, Any]:
        """Return the object as JSON-serialisable data."""
        table: dict[str, Any] = {}
        for entry in fields(self):  # type: ignore[arg-type]
            key, value = _key(entry), getattr(self, entry.name)
            if key == INLINE["key"]:
                table |= value.to_dict()
            elif key and (value or not entry.metadata.get("omit")):
                table[key] = plain(value)
        return table


def _key(entry: Field[Any]) -> str:
    return str(entry.metadata.get("key", entry.name))


@cache
def _keys(kind: Any) -> dict[str, Field[Any]]:
    """Return the fields of a dataclass by their keys in tables."""
    keys: dict[str, Field[Any]] = {}
    for entry in fields(kind):
        inline = _key(entry) == INLINE["key"]
        keys |= _keys(_hints(kind)[entry.name]) if inline else {_key(entry): entry}
    return {key: entry for key, entry in keys.items() if key}


def _convert(where: str, value: Any, hint: Any, name: str = "") -> Any:
    """Return a value converted to the type of an annotation.

    Raises:
        ValueError: If it is of another type; the message begins with ``where``.
        CfqaError: If it is not a valid table of a dataclass.
    """
    hint, minimum, optional = _split_hint(hint)
    if optional and value is None:
        return None
    kind, args = get_origin(hint) or hint, get_args(hint)
    if hasattr(kind, "from_dict"):
        return value if isinstance(value, kind) else kind.from_dict(value, name, where)
    if kind is Literal:
        valid, what = value in args, f"one of {', '.join(args)}"
    elif kind is tuple:
        size = None if args[-1] is Ellipsis else len(args)
        valid = isinstance(value, list | tuple) and (size is None or len(value) == size)
        valid = valid and len(value) >= minimum
        what = "a list" if size is None else f"{size} values"
        if valid:
            return tuple(v if args[0] is Any else _convert(where, v, args[0]) for v in value)
    elif kind is Mapping:
        valid = isinstance(value, dict) and all(isinstance(key, str) for key in value)
        what = "a table"
        if valid and args[1] is not Any:
            inner = f"{where}." if hasattr(args[1], "from_dict") else f"{where}: "
            return {key: _convert(inner + key, v, args[1], key) for key, v in value.items()}
    elif kind in _KINDS:
        test, what = _KINDS[kind]
        valid = test(value, minimum)
        what += f" of at least {minimum}" if kind in (int, float) and minimum > -math.inf else ""
    else:
        return value
    if not valid:
        raise ValueError(f"{where} must be {what}, got {repr(value)[:200]}")
    return value


def is_number(value: Any, minimum: float = -math.inf) -> bool:
    """Return whether a value is a finite number of at least ``minimum``."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and value >= minimum


_KINDS: Mapping[Any, tuple[Callable[[Any, float], bool], str]] = {
    str: (lambda v, n: isinstance(v, str) and len(v) >= n and v.isprintable(), "a text"),
    bool: (lambda v, n: isinstance(v, bool), "true or false"),
    int: (lambda v, n: type(v) is int and v >= n, "a whole number"),
    float: (is_number, "a number"),
}


def _split_hint(hint: Any) -> tuple[Any, float, bool]:
    """Return the type of an annotation, its minimum, and whether it includes None."""
    optional = get_origin(hint) is UnionType or type(None) in get_args(hint)
    if optional:
        hint = get_args(hint)[0]
    if get_origin(hint) is Annotated:
        return *get_args(hint), optional
    return hint, -math.inf, optional


@cache
def _hints(kind: Any) -> dict[str, Any]:
    """Return the annotations of the fields that the constructor takes."""
    hints = get_type_hints(kind, include_extras=True)
    return {entry.name: hints[entry.name] for entry in fields(kind) if entry.init}


def plain(value: Any) -> Any:
    """Return objects with a `to_dict` as tables and tuples as lists, recursively."""
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return value


def check_keys(
    where: str,
    data: object,
    required: Iterable[str],
    known: Iterable[str] = (),
    error: type[CfqaError] = FormatError,
) -> dict[str, Any]:
    """Return a copy of a table after checking its keys.

    Raises:
        CfqaError: If it is not a table, lacks a key, or has an unknown key.
    """
    required = tuple(required)
    known = tuple(dict.fromkeys((*known, *required)))
    if not isinstance(data, Mapping):
        raise error(f"{where} is not a table")
    for key in data:
        check_known(f"key in {where}", key, known, error)
    if missing := [key for key in required if key not in data]:
        raise error(f"{where} lacks {', '.join(missing)}")
    return dict(data)
