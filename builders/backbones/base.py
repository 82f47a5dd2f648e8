"""The `Backbone` base class and the registry of backbones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np

from cfqa_data.errors import BuildError
from cfqa_data.format.facts import Layer
from cfqa_data.registry import Registry

__all__ = ["BACKBONES", "Backbone", "join_layers"]


class Backbone(ABC):
    """Extracts features (N, C, T, D) from the inputs of samples.

    The arguments of a subclass are a recipe's `weights`, a path or None, and its `options`.

    Attributes:
        name: of the backbone, as manifests record it.
        width: D; None if it is only known from a feature.
        layers: number of layers to choose from; None if it is only known from a feature.
        prefix_tokens: leading tokens, such as a class token, without a position in the input.
        parameters: number of weights, for estimates of time.
        norm: its final norm, for tasks that start from normalised tokens; None if it has none.
    """

    name: str = ""
    width: int | None = None
    layers: int | None = None
    prefix_tokens: int = 0
    parameters: int = 0
    norm: Any = None
    declared: ClassVar[Mapping[str, Any]] = {
        "name": str,
        "width": Integral | None,
        "layers": Integral | None,
        "prefix_tokens": Integral,
        "parameters": Real,
    }

    @abstractmethod
    def extract(self, inputs: Any, layers: Sequence[int]) -> np.ndarray:
        """Return the feature of one sample's inputs: the same bytes for the same inputs.

        Args:
            inputs: of a sample.
            layers: their numbers, from 0, rising.

        Returns:
            float32 (N, C, T, D), with one C per layer; T may depend on the inputs.

        Raises:
            BuildError: the backbone does not accept these inputs.
        """

    def shape(self, inputs: Any, layers: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of the feature of inputs, for estimates; by default it is extracted."""
        return self.extract(inputs, layers).shape

    def grid(self, inputs: Any) -> tuple[int, int] | None:
        """Return (rows, columns) of a view's tokens without the prefix; None without a grid."""
        return None

    def layer(self, index: int) -> Layer:
        """Return the description of a layer for the manifest."""
        return Layer(f"layer {index}")


def join_layers(name: str, layers: Sequence[np.ndarray]) -> np.ndarray:
    """Return the feature (N, C, T, D) of layers (N, T, D) each.

    Raises:
        BuildError: they differ in T or D.
    """
    if len({layer.shape for layer in layers}) > 1:
        shapes = [layer.shape[1:] for layer in layers]
        raise BuildError(f"{name}: layers of one feature have one (T, D), not {shapes}")
    return np.stack(layers, axis=1)


BACKBONES = Registry(
    "backbone",
    {
        "dinov2": "cfqa_data.builders.backbones.dinov2:DinoV2",
        "stored": "cfqa_data.builders.backbones.stored:Stored",
        "timm": "cfqa_data.builders.backbones.timm:Timm",
        "transformers": "cfqa_data.builders.backbones.transformers:Transformers",
    },
    BuildError,
    Backbone,
)
"""All backbones by name."""
