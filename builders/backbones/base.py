"""The `Backbone` base class and the registry of backbones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from cfqa_data.builders.sources.geometry import renormalise
from cfqa_data.errors import BuildError
from cfqa_data.format.facts import Layer
from cfqa_data.format.limits import LARGEST_JSON, parse_json, read_limited
from cfqa_data.registry import Registry

__all__ = [
    "BACKBONES",
    "Backbone",
    "LibraryModel",
    "join_layers",
    "library_errors",
    "read_config",
]


class Backbone(ABC):
    """Extracts features (N, C, T, D) from the inputs of samples.

    The arguments of a subclass are a recipe's `weights`, a path or None, and its `options`.

    Attributes:
        name: Of the backbone, as manifests record it.
        width: D; None if it is only known from a feature.
        layers: Number of layers to choose from; None if it is only known from a feature.
        prefix_tokens: Leading tokens, such as a class token, without a position in the input.
        parameters: Number of weights, for estimates of time.
        norm: Its final norm, for tasks that start from normalised tokens; None if it has none.
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
            inputs: Of a sample.
            layers: Their numbers, from 0, rising.

        Returns:
            float32 (N, C, T, D), with one C per layer; T may depend on the inputs.

        Raises:
            BuildError: The backbone does not accept these inputs.
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
        BuildError: They differ in T or D.
    """
    if len({layer.shape for layer in layers}) > 1:
        shapes = [layer.shape[1:] for layer in layers]
        raise BuildError(f"{name}: layers of one feature have one (T, D), not {shapes}")
    return np.stack(layers, axis=1)


class LibraryModel(Backbone):
    """A model of a library: a layer per block, and one more of its final norm, where it has one.

    Attributes:
        made_of: Makes it again, where it is unpickled.
        blocks: How many there are.
        block: What one is called.
        patch: Rows and columns of pixels for a token; None where there is no grid.
        mean_std: Of the images that the model takes; None as they come.
    """

    made_of: Callable[[], Any]
    blocks: int
    block: str = "block"
    patch: tuple[int, int] | None = None
    mean_std: tuple[Any, Any] | None = None

    def __reduce__(self) -> Any:
        return self.made_of, ()

    def grid(self, inputs: Any) -> tuple[int, int] | None:
        """Return the rows and columns of patches, where all layers have the same."""
        if not self.patch:
            return None
        images = inputs["pixel_values"] if isinstance(inputs, Mapping) else inputs
        height, width = np.shape(images)[-2:]
        return height // self.patch[0], width // self.patch[1]

    def layer(self, index: int) -> Layer:
        """Return a block's name, and whether its output is from before the final norm."""
        if index == self.blocks:
            return Layer("final norm", "after")
        return Layer(f"{self.block} {index}", "before" if self.norm is not None else None)

    def check_layers(self, layers: Sequence[int]) -> None:
        """Check that there are such layers.

        Raises:
            BuildError: There are not.
        """
        assert self.layers is not None
        if not layers or not all(0 <= layer < self.layers for layer in layers):
            raise BuildError(f"{self.name}: layers are 0 to {self.layers - 1}, not {list(layers)}")

    def images(self, values: Any) -> np.ndarray:
        """Return images, float32 (N, 3, H, W), by the statistics that the model was trained with.

        Raises:
            BuildError: They are none.
        """
        values = np.asarray(values)
        if values.dtype.kind != "f" or values.ndim != 4:
            raise BuildError(f"{self.name}: inputs must be normalised images, float32 (N, 3, H, W)")
        values = np.asarray(values, np.float32)
        return renormalise(values, *self.mean_std) if self.mean_std else values


@contextmanager
def library_errors(what: str, *, kind: bool = True) -> Iterator[None]:
    """Raise what a library raises, which may be anything, in one line.

    Args:
        what: Names the model in the error.
        kind: Whether the kind of the library's error is told.

    Raises:
        BuildError: Instead.
    """
    try:
        yield
    except Exception as error:
        why = str(error).strip().partition("\n")[0]
        raise BuildError(f"{what}: {type(error).__name__ + ': ' if kind else ''}{why}") from error


def read_config(path: Path) -> dict[str, Any]:
    """Return what a file of JSON beside weights says.

    Raises:
        BuildError: It holds no table.
    """
    try:
        return dict(parse_json(read_limited(path, LARGEST_JSON)))
    except Exception as error:
        raise BuildError(f"{path}: not a JSON object") from error


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
