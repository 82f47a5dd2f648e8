"""All codecs pass the public conformance suites."""

from __future__ import annotations

import struct
import zlib
from typing import Any, ClassVar

import numpy as np
from reference_streams import feature_like_plane, recorded_streams

from cfqa_data.codecs.base import (
    Bitstream,
    FeatureCodec,
    InputCodec,
    check_bitstream,
    check_feature,
    check_plane,
)
from cfqa_data.codecs.features.channels import LowRank, Prune, Slice, TopK
from cfqa_data.codecs.features.product import ProductQuantizer
from cfqa_data.codecs.features.scalar import Int, Minifloat, Mxfp, Nvfp4
from cfqa_data.codecs.h26x.hevc import X265
from cfqa_data.codecs.h26x.reference import HM, VTM, ReferenceCodec
from cfqa_data.codecs.h26x.vvc import VVenC
from cfqa_data.codecs.hyperprior.codec import MultiTask, TaskSpecific
from cfqa_data.errors import CodecError
from cfqa_data.format.facts import Parameter
from cfqa_data.testing.codecs import FeatureCodecSuite, InputCodecSuite, PlaneCodecSuite


class TestX265(PlaneCodecSuite):
    codec = X265


class TestVVenC(PlaneCodecSuite):
    codec = VVenC


class TestMultiTask(PlaneCodecSuite):
    codec = MultiTask
    parameters = MultiTask().lambdas[::-9]


class TestTaskSpecific(PlaneCodecSuite):
    codec = TaskSpecific
    options: ClassVar = {"task": "cls"}
    parameters = TaskSpecific(task="cls").lambdas[::-9]


class Recorded(ReferenceCodec):
    """A reference encoder that replays recorded bitstreams."""

    def encode(self, plane: np.ndarray, parameter: float) -> bytes:
        qp = int(self.check_parameter(parameter))
        plane = check_plane(self.name, plane, self.peak, self.dtype)
        for stream in recorded_streams():
            if (stream.codec, stream.rows, stream.cols, stream.qp) == (self.name, *plane.shape, qp):
                assert stream.data is not None
                return stream.data
        raise CodecError(f"{self.name}: was not recorded")

    def version(self) -> dict[str, str]:
        return {"encoder": "recorded"}


class RecordedHM(Recorded, HM):
    pass


class RecordedVTM(Recorded, VTM):
    pass


class ReferenceSuite(PlaneCodecSuite):
    parameters = (2, 20)

    @classmethod
    def items(cls) -> list[np.ndarray]:
        return [feature_like_plane(17, 31)] * 2


class TestHM(ReferenceSuite):
    codec = RecordedHM


class TestVTM(ReferenceSuite):
    codec = RecordedVTM


class Largest(FeatureCodec):
    """Keeps the largest values of a feature, and states the bits of their positions."""

    name = "largest"
    title = "largest values"
    parameter = Parameter("kept", "higher", whole=True, lowest=1)
    bits = "stated"

    def __init__(self, tables: dict[str, np.ndarray] | None = None) -> None:
        self.mean = None if tables is None else tables["mean"]

    def fit(self, items: Any, seed: int) -> None:
        self.mean = np.mean([item.mean() for item in items], dtype=np.float32).reshape(1)

    def tables(self) -> dict[str, np.ndarray]:
        return {} if self.mean is None else {"mean": self.mean}

    def encode(self, feature: np.ndarray, parameter: float) -> bytes:
        kept = int(self.check_parameter(parameter))
        values = check_feature(self.name, feature).ravel() - self.mean
        places = np.sort(np.argsort(-np.abs(values), kind="stable")[:kept]).astype("<u4")
        return zlib.compress(places.tobytes() + values[places].astype("<f4").tobytes())

    def decode(self, bitstream: Bitstream, shape: tuple[int, ...]) -> np.ndarray:
        try:
            data = zlib.decompress(check_bitstream(self.name, bitstream))
            places, values = np.split(np.frombuffer(data, "<u4"), 2)
            feature = np.zeros(int(np.prod(shape)), np.float32)
            feature[places] = values.view("<f4")
        except (zlib.error, ValueError, IndexError) as error:
            raise CodecError(f"{self.name}: the bitstream is damaged ({error})") from None
        return feature.reshape(shape) + self.mean

    def stated_bits(self, bitstream: bytes, what: Any) -> int:
        kept = len(zlib.decompress(bitstream)) // 8
        return kept * (32 + int(np.prod(what)).bit_length())

    def version(self) -> dict[str, str]:
        return {"encoder": "largest 1"}


class TestLargest(FeatureCodecSuite):
    codec = Largest
    parameters = (200, 50, 5)


class TestSlice(FeatureCodecSuite):
    codec = Slice
    parameters = (24, 10, 1)


class OneKindSuite(FeatureCodecSuite):
    """Return features with one number of layers, to which tables are fitted."""

    @classmethod
    def items(cls) -> list[np.ndarray]:
        generator = np.random.default_rng(0)
        spread = np.linspace(1, 5, 24)
        shapes = [(2, 3, 17, 24)] * 2 + [(1, 3, 1, 24), (1, 3, 5, 24)]
        return [(spread * generator.standard_normal(s) + 1).astype("f4") for s in shapes]


class TestPrune(OneKindSuite):
    codec = Prune
    options: ClassVar = {"values": "int8"}
    parameters = (24, 10, 1)


class TestLowRank(OneKindSuite):
    codec = LowRank
    parameters = (24, 10, 1)


class TestTopK(FeatureCodecSuite):
    codec = TopK
    options: ClassVar = {"values": "bfloat16"}
    parameters = (24, 10, 3, 1)


class TestInt(FeatureCodecSuite):
    codec = Int
    parameters = (8, 5, 2)


class TestIntOfChannels(TestInt):
    options: ClassVar = {"scale": "channel", "symmetric": False}


class TestMinifloat(FeatureCodecSuite):
    codec = Minifloat


class TestMxfp(FeatureCodecSuite):
    codec = Mxfp
    parameters = (8, 6, 4)


class TestNvfp4(FeatureCodecSuite):
    codec = Nvfp4
    parameters = (16, 32)


class TestProductQuantizer(OneKindSuite):
    codec = ProductQuantizer
    parameters = (8, 5, 1)


class Steps(InputCodec):
    """A codec on inputs that deflates an image of fewer grey levels."""

    name = "steps"
    title = "fewer grey levels, deflated"
    parameter = Parameter("step", "lower", whole=True, lowest=1, highest=64)

    def encode(self, inputs: np.ndarray, parameter: float) -> bytes:
        step = int(self.check_parameter(parameter))
        coarse = np.clip(np.rint(inputs / step) * step, 0, 255).astype(np.uint8)
        return zlib.compress(struct.pack("<3H", *inputs.shape) + coarse.tobytes())

    def decode(self, bitstream: Bitstream) -> np.ndarray:
        try:
            data = zlib.decompress(check_bitstream(self.name, bitstream))
            return np.frombuffer(data, np.uint8, offset=6).reshape(struct.unpack("<3H", data[:6]))
        except (zlib.error, ValueError, struct.error) as error:
            raise CodecError(f"{self.name}: the bitstream is damaged ({error})") from None

    def version(self) -> dict[str, str]:
        return {"encoder": "steps 1"}


class TestSteps(InputCodecSuite):
    codec = Steps

    @classmethod
    def items(cls) -> list[np.ndarray]:
        generator = np.random.default_rng(0)
        return [generator.integers(0, 256, (size, 9, 3), np.uint8) for size in (7, 7, 20)]
