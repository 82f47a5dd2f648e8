"""The plugin's classes on the conformance suites of cfqa-data."""

from __future__ import annotations

from cfqa_example_text.codecs import Deflate, Keep, Stems

from cfqa_data.testing.codecs import FeatureCodecSuite, InputCodecSuite, PlaneCodecSuite


class TestDeflate(PlaneCodecSuite):
    codec = Deflate
    parameters = (1, 8, 64)


class TestKeep(FeatureCodecSuite):
    codec = Keep
    parameters = (12, 6, 2)


class TestStems(InputCodecSuite):
    codec = Stems
    parameters = (8, 3, 1)

    @classmethod
    def items(cls) -> list[str]:
        return ["the rook takes the bishop", "rain and thunder near the harbour"]
