"""Conformance suites: classes of tests (pytest) that a class of one's own is held against.

>>> from cfqa_data.testing.codecs import PlaneCodecSuite
>>> class TestMine(PlaneCodecSuite):
...     codec = Mine  # doctest: +SKIP
"""

import pytest

for _suite in ("backbones", "codecs", "sources", "tasks"):
    pytest.register_assert_rewrite(f"cfqa_data.testing.{_suite}")
