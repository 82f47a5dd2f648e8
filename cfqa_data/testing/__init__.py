"""Conformance suites: classes of tests (pytest) that a class of one's own is held against.

>>> from cfqa_data.testing.codecs import PlaneCodecSuite
>>> class TestMine(PlaneCodecSuite):
...     codec = Mine  # doctest: +SKIP
"""

from pkgutil import iter_modules

import pytest

pytest.register_assert_rewrite(*(f"{__name__}.{module.name}" for module in iter_modules(__path__)))
