"""The plugin's classes on the conformance suites of cfqa-data."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from cfqa_example_text.codecs import Deflate, Keep, Stems
from cfqa_example_text.metric import mean_token
from cfqa_example_text.passages import Questions
from cfqa_example_text.retrieval import Retrieval
from cfqa_example_text.sentences import Sentences
from cfqa_example_text.topic import Topic
from cfqa_example_text.words import HashedWords

from cfqa_data.testing.backbones import BackboneSuite
from cfqa_data.testing.codecs import FeatureCodecSuite, InputCodecSuite, PlaneCodecSuite
from cfqa_data.testing.metrics import MetricSuite
from cfqa_data.testing.sources import SourceSuite
from cfqa_data.testing.tasks import TaskSuite

QUESTIONS = tuple(islice(Questions("retrieval", seed=0).samples(), 4))
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


class TestQuestions(SourceSuite):
    source = Questions


class TestRetrieval(TaskSuite):
    task, backbone, blocks = Retrieval, HashedWords(), (1,)
    cases = tuple((HashedWords().extract(s.inputs, (1,)), s.truth) for s in QUESTIONS)
    inputs = tuple(sample.inputs for sample in QUESTIONS)

    def test_passages_that_are_equally_near_share_their_ranks(self) -> None:
        task = self.make(count=4)
        (embeddings,) = task.gallery().values()
        feature = embeddings[2].astype(np.float32).reshape(1, 1, 1, -1)
        assert task.score(feature, 2) == (1, pytest.approx(0))
        assert task.score(np.zeros_like(feature), 2) == (2.5, 1)


class TestMeanToken(MetricSuite):
    metric = mean_token
