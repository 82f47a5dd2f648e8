"""The plugin's classes on the conformance suites of cfqa-data."""

from __future__ import annotations

from itertools import islice

from cfqa_example_text.codecs import Deflate, Keep, Stems
from cfqa_example_text.metric import mean_token
from cfqa_example_text.sentences import Sentences
from cfqa_example_text.topic import Topic
from cfqa_example_text.words import HashedWords

from cfqa_data.testing.backbones import BackboneSuite
from cfqa_data.testing.codecs import FeatureCodecSuite, InputCodecSuite, PlaneCodecSuite
from cfqa_data.testing.metrics import MetricSuite
from cfqa_data.testing.sources import SourceSuite
from cfqa_data.testing.tasks import TaskSuite

SAMPLES = tuple(islice(Sentences("topic", seed=0).samples(), 4))


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


class TestSentences(SourceSuite):
    source = Sentences


class TestHashedWords(BackboneSuite):
    backbone, layers = HashedWords, (0, 1)
    inputs = tuple(sample.inputs for sample in SAMPLES)


class TestTopic(TaskSuite):
    task, backbone, blocks = Topic, HashedWords(), (0, 1)
    cases = tuple((HashedWords().extract(s.inputs, (0, 1)), s.truth) for s in SAMPLES)
    inputs = tuple(sample.inputs for sample in SAMPLES)


class TestMeanToken(MetricSuite):
    metric = mean_token
