"""Conformance suite of backbones.

class TestMine(BackboneSuite):
    backbone = Mine
    inputs = ["a text", "another, longer text"]
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from cfqa_data.errors import BuildError
from cfqa_data.format.facts import Layer
from cfqa_data.registry import bind_options
from cfqa_data.testing import required

__all__ = ["BackboneSuite"]


class BackboneSuite:
    """Tests of a backbone.

    Attributes:
        backbone: The class.
        inputs: Inputs of two samples or more.
        layers: Numbers of layers.
        options: Keyword arguments of the class.
        weights: Path of its weights, if it takes any.
    """

    backbone: ClassVar[Any] = required("the class of the backbone")
    inputs: Sequence[Any] = required("the inputs of two samples or more")
    layers: ClassVar[Sequence[int]] = (0,)
    options: Mapping[str, Any] = {}
    weights: Path | None = None

    def make(self, **more: Any) -> Any:
        """Return a backbone, constructed as in a build."""
        extra = {} if self.weights is None else {"weights": self.weights}
        options = {**self.options, **more}
        bound = bind_options(self.backbone, options, "backbone", BuildError, **extra)
        return self.backbone(**bound)

    def test_features_are_finite_float32_of_one_size(self) -> None:
        backbone = self.make()
        features = [backbone.extract(inputs, self.layers) for inputs in self.inputs]
        assert len(features) > 1
        for feature, inputs in zip(features, self.inputs, strict=True):
            assert isinstance(feature, np.ndarray)
            assert feature.dtype == np.float32
            assert feature.ndim == 4
            assert np.isfinite(feature).all()
            assert feature.shape[1] == len(self.layers)
            assert backbone.width in (None, feature.shape[3])
            assert tuple(backbone.shape(inputs, self.layers)) == feature.shape
            if (grid := backbone.grid(inputs)) is not None:
                assert backbone.prefix_tokens + grid[0] * grid[1] == feature.shape[2]
        assert len({(f.shape[0], f.shape[3]) for f in features}) == 1

    def test_a_feature_depends_on_nothing_but_its_inputs(self) -> None:
        backbone = self.make()
        forth = [backbone.extract(inputs, self.layers) for inputs in self.inputs]
        back = [self.make().extract(inputs, self.layers) for inputs in reversed(self.inputs)]
        for one, other in zip(forth, reversed(back), strict=True):
            assert np.array_equal(one, other)

    def test_layers_are_the_same_alone_and_together(self) -> None:
        backbone, inputs = self.make(), self.inputs[0]
        together = backbone.extract(inputs, self.layers)
        for index, layer in enumerate(self.layers):
            assert np.array_equal(backbone.extract(inputs, (layer,))[:, 0], together[:, index])
            assert isinstance(backbone.layer(layer), Layer)

    def test_a_missing_layer_is_a_one_line_error(self) -> None:
        backbone = self.make()
        if backbone.layers is not None:
            assert max(self.layers) < backbone.layers
            return
        with pytest.raises(BuildError) as caught:
            backbone.extract(self.inputs[0], (10_000,))
        assert "\n" not in str(caught.value)

    def test_unknown_options_are_one_line_errors(self) -> None:
        with pytest.raises(BuildError, match="no_such_option") as caught:
            self.make(no_such_option=1)
        assert "\n" not in str(caught.value)

    def test_it_is_the_same_in_another_process(self) -> None:
        backbone, inputs = self.make(), self.inputs[0]
        again = pickle.loads(pickle.dumps(backbone)).extract(inputs, self.layers)
        assert np.array_equal(backbone.extract(inputs, self.layers), again)
