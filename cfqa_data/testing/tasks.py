"""Conformance suite of tasks.

class TestMine(TaskSuite):
    task = Mine
    cases = [(feature, truth), (other_feature, other_truth)]
"""

from __future__ import annotations

import math
import pickle
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from cfqa_data.errors import BuildError
from cfqa_data.format.facts import TaskFacts
from cfqa_data.format.invariants import check_truth
from cfqa_data.registry import bind_options
from cfqa_data.testing import required

__all__ = ["TaskSuite"]


class TaskSuite:
    """Tests of a task.

    Attributes:
        task: The class.
        cases: Two or more pairs of an original feature, float32 (N, C, T, D), and its truth.
        inputs: Inputs of the samples, as a source returns them, for the test of acceptance.
        backbone: The backbone of the features; by default one without known properties.
        blocks: Numbers of the layers of the features.
        options: Keyword arguments of the class.
        weights: Path of its head, if it has one.
    """

    task: ClassVar[Any] = required("the class of the task")
    cases: Sequence[tuple[np.ndarray, Any]] = required(
        "two or more pairs of a feature, float32 (N, C, T, D), and its truth"
    )
    inputs: Sequence[Any] = ()
    backbone: Any = SimpleNamespace(width=None, layers=None, norm=None, prefix_tokens=0)
    blocks: Sequence[int] = (0,)
    options: Mapping[str, Any] = {}
    weights: Path | None = None

    def make(self, **more: Any) -> Any:
        """Return a task, constructed as in a build."""
        extra: dict[str, Any] = {"backbone": self.backbone, "blocks": self.blocks}
        if self.weights is not None:
            extra["weights"] = self.weights
        options = {**self.options, **more}
        return self.task(**bind_options(self.task, options, "task", BuildError, **extra))

    def test_it_has_facts_and_its_truths_are_as_they_say(self) -> None:
        facts = self.task.facts
        assert isinstance(facts, TaskFacts)
        for feature, truth in self.cases:
            assert (feature.dtype, feature.ndim) == (np.float32, 4)
            if facts.truth is None:
                assert truth is None
            else:
                array = np.asarray(truth)
                check_truth(facts, array.dtype.name, array.ndim, "the truth")

    def test_scores_are_finite_and_losses_as_the_facts_say(self) -> None:
        task = self.make()
        for feature, truth in self.cases:
            score, loss = task.score(feature, truth)
            assert math.isfinite(score)
            assert (loss is None) == (self.task.facts.loss is None)
            assert loss is None or math.isfinite(loss)

    def test_the_same_feature_has_the_same_score(self) -> None:
        task, other = self.make(), self.make()
        forth = [task.score(*case) for case in self.cases]
        assert forth == [other.score(*case) for case in reversed(self.cases)][::-1]
        assert forth == [pickle.loads(pickle.dumps(task)).score(*case) for case in self.cases]

    def test_scores_of_a_batch_are_those_of_its_features(self) -> None:
        task = self.make()
        for feature, truth in self.cases:
            batch = np.stack([feature, feature * np.float32(0.5)])
            scores, losses = task.scores(batch, truth)
            assert scores.dtype == losses.dtype == np.float64
            alone = [task.score(version, truth) for version in batch]
            np.testing.assert_allclose(scores, [score for score, _ in alone], rtol=1e-6)
            expected = [math.nan if loss is None else loss for _, loss in alone]
            np.testing.assert_allclose(losses, expected, rtol=1e-6)

    def test_originals_are_no_worse_than_noise(self) -> None:
        task, rng = self.make(), np.random.default_rng(0)
        harm = []
        for feature, truth in self.cases:
            noise = rng.standard_normal(feature.shape).astype(np.float32)
            reference, _ = task.score(feature, truth)
            spoilt, _ = task.score(noise * feature.std() + feature.mean(), truth)
            harm.append(self.task.facts.distortion(spoilt, reference))
        assert np.mean(harm) >= 0

    def test_a_rejection_has_a_short_reason(self) -> None:
        from cfqa_data.builders.sources.base import Sample

        task = self.make()
        accepted: list[Sample] = []
        for index, (feature, truth) in enumerate(self.cases):
            inputs = self.inputs[index] if self.inputs else feature
            sample = Sample(f"sample-{index}", inputs, truth)
            why = task.accepts(lambda feature=feature: feature, sample, accepted)
            assert why is None or (why and why.isprintable() and len(why) < 80)
            if why is None:
                accepted.append(Sample(sample.source_id, None, truth))
        assert accepted

    def test_a_gallery_is_finite_arrays_by_name_and_the_same_each_time(self) -> None:
        gallery, again = self.make().gallery(), self.make().gallery()
        if gallery is None:
            return
        assert gallery.keys() == again.keys()
        for name, array in gallery.items():
            assert isinstance(name, str)
            assert np.isfinite(array).all()
            assert np.array_equal(array, again[name])

    def test_it_draws_truths_and_features_or_nothing(self) -> None:
        from cfqa_data.builders.tasks.drawing import check_drawing

        task = self.make()
        for feature, truth in self.cases:
            before = feature.copy()
            for drawn, known in ((feature, truth), (None, truth), (feature, None), (None, None)):
                check_drawing(task.draw(drawn, known, ("one", "two")), "draw")
            assert np.array_equal(feature, before)

    def test_a_feature_of_nothing_has_no_score(self) -> None:
        feature, truth = self.cases[0]
        score = math.nan
        with suppress(BuildError), warnings.catch_warnings(action="ignore"):
            score, _ = self.make().score(np.full_like(feature, np.nan), truth)
        assert not math.isfinite(score)

    def test_unknown_options_are_one_line_errors(self) -> None:
        with pytest.raises(BuildError, match="no_such_option") as caught:
            self.make(no_such_option=1)
        assert "\n" not in str(caught.value)
