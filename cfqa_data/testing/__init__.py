"""Conformance suites: pytest classes to subclass for testing one's own tasks, codecs and so on.

>>> from cfqa_data.testing.codecs import PlaneCodecSuite
>>> class TestMine(PlaneCodecSuite):
...     codec = Mine  # doctest: +SKIP
"""

from pkgutil import iter_modules

import pytest

pytest.register_assert_rewrite(*(f"{__name__}.{module.name}" for module in iter_modules(__path__)))
