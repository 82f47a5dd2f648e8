"""Conformance suites: pytest classes to subclass for testing one's own tasks, codecs and so on.

>>> from cfqa_data.testing.codecs import PlaneCodecSuite
>>> class TestMine(PlaneCodecSuite):
...     codec = Mine  # doctest: +SKIP
"""

from pkgutil import iter_modules
from typing import Any

import pytest

__all__ = ["required"]


class _Required:
    """An attribute that a subclass must set; reading it before fails with one line."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: object, owner: type) -> Any:
        pytest.fail(f"{owner.__name__} lacks `{self.name}`: set it to {self.what}", pytrace=False)


def required(what: str) -> Any:
    """Return the default of an attribute that a subclass must set.

    Args:
        what: Description of the value, for the message.
    """
    return _Required(what)


pytest.register_assert_rewrite(*(f"{__name__}.{module.name}" for module in iter_modules(__path__)))
