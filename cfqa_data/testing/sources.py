"""Conformance suite of sources.

class TestMine(SourceSuite):
    source = Mine
    options = {"root": "data"}
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import pytest

from cfqa_data.builders.sources.base import Source, check_image
from cfqa_data.errors import BuildError
from cfqa_data.format.facts import Terms
from cfqa_data.format.invariants import check_source_ids
from cfqa_data.registry import bind_options
from cfqa_data.testing import required

__all__ = ["SourceSuite", "digest"]


def digest(value: Any) -> str:
    """Return a hash of a value from a source: arrays, strings, numbers, and containers of them."""
    if isinstance(value, np.ndarray | np.generic):
        described = f"{value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
    elif isinstance(value, Mapping):
        described = str([(key, digest(value[key])) for key in sorted(value)])
    elif isinstance(value, list | tuple):
        described = str([digest(entry) for entry in value])
    else:
        described = hashlib.sha256(pickle.dumps(value)).hexdigest()
    return f"{type(value).__name__} {described}"


class SourceSuite:
    """Tests of a source.

    Attributes:
        source: The class.
        task: Name of the task for which the source is constructed.
        options: Keyword arguments of the class.
        count: Number of samples to test, if there are that many.
        training: Number of training inputs to test; 0 if the source has none.
    """

    source: ClassVar[Any] = required("the class of the source")
    task: ClassVar[str] = "mine"
    options: Mapping[str, Any] = {}
    count: ClassVar[int] = 5
    training: ClassVar[int] = 3

    def make(self, seed: int = 0, **more: Any) -> Any:
        """Return a source, constructed as in a build."""
        extra = {"task": self.task, "seed": seed}
        options = {**self.options, **more}
        return self.source(**bind_options(self.source, options, "source", BuildError, **extra))

    def samples(self, seed: int = 0) -> list[Any]:
        """Return the first samples."""
        return list(islice(self.make(seed).samples(), self.count))

    def test_ids_are_printable_and_of_one_sample_each(self) -> None:
        samples = self.samples()
        assert samples
        check_source_ids({self.task: [sample.source_id for sample in samples]})

    def test_the_same_seed_gives_the_same_samples(self) -> None:
        first, again = self.samples(1), self.samples(1)
        assert [s.source_id for s in first] == [s.source_id for s in again]
        assert [digest(vars(s)) for s in first] == [digest(vars(s)) for s in again]

    def test_a_sample_is_given_again_by_its_id(self) -> None:
        samples, other = self.samples(), self.make()
        for sample in reversed(samples):
            assert digest(vars(other.sample(sample.source_id))) == digest(vars(sample))

    def test_an_unknown_id_is_a_one_line_error(self) -> None:
        with pytest.raises(BuildError) as caught:
            self.make().sample("no such sample")
        assert "\n" not in str(caught.value)

    def test_an_image_for_people_is_a_picture_if_there_is_one(self) -> None:
        source = self.make()
        for sample in self.samples():
            image = source.image(sample.source_id)
            assert image is None or check_image(image, "image").size
        assert all(isinstance(name, str) for name in source.classes)

    def test_truths_are_arrays_of_one_kind(self) -> None:
        truths = [sample.truth for sample in self.samples()]
        if truths[0] is None:
            assert truths == [None] * len(truths)
        else:
            assert all(isinstance(truth, np.ndarray | np.generic) for truth in truths)
            assert len({(truth.dtype, truth.ndim) for truth in truths}) == 1
            assert truths[0].dtype.kind in "biuf"

    def test_groups_are_texts_of_all_or_of_none(self) -> None:
        groups = [sample.group for sample in self.samples()]
        kinds = {type(group) for group in groups}
        assert kinds in ({str}, {type(None)})

    def test_training_shares_nothing_with_the_samples(self) -> None:
        source = self.make()
        if not self.training:
            with pytest.raises(BuildError):
                list(source.training_inputs(1, 0))
            return
        training = [digest(inputs) for inputs in source.training_inputs(self.training, 0)]
        assert len(training) == self.training
        again = self.make(1).training_inputs(self.training, 0)
        assert training == [digest(inputs) for inputs in again]
        assert not {digest(sample.inputs) for sample in self.samples()} & set(training)

    def test_training_samples_share_nothing_with_the_samples(self) -> None:
        if type(self.make()).training_samples is Source.training_samples:
            return
        try:
            training = list(islice(self.make().training_samples(0), self.count))
        except BuildError:  # the source's options name no training data
            training = []
        again = islice(self.make().training_samples(0), len(training))
        assert [digest(vars(s)) for s in training] == [digest(vars(s)) for s in again]
        samples = self.samples()
        assert not {s.source_id for s in samples} & {s.source_id for s in training}
        assert not {digest(s.inputs) for s in samples} & {digest(s.inputs) for s in training}

    def test_unknown_options_are_one_line_errors(self) -> None:
        with pytest.raises(BuildError, match="no_such_option") as caught:
            self.make(no_such_option=1)
        assert "\n" not in str(caught.value)

    def test_it_says_what_decides_and_on_what_terms(self) -> None:
        source = self.make()
        files, values = source.decides()
        assert all(path.is_file() for path in files)
        assert json.dumps(values) == json.dumps(self.make().decides()[1])
        assert source.terms is None or isinstance(source.terms, Terms)

    def test_it_is_the_same_in_another_process(self) -> None:
        samples, source = self.samples(), pickle.loads(pickle.dumps(self.make()))
        assert digest(vars(source.sample(samples[0].source_id))) == digest(vars(samples[0]))
