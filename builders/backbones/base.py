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
    """Base class of backbones, which extract features (N, C, T, D) from the inputs of samples.

    The constructor of a subclass takes a recipe's `weights` (a path or None) and `options`.

    Attributes:
        name: Name of the backbone, recorded in manifests.
        width: Width D; None if it is known from features only.
        layers: Number of layers to choose from; None if it is known from features only.
        prefix_tokens: Number of leading tokens without a position, such as a class token.
        parameters: Number of weights, for estimates of time.
        norm: Final norm, for tasks that start from normalised tokens; None if it has none.
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
        """Return the feature of one sample; equal inputs must give equal bytes.

        Args:
            inputs: Inputs of the sample.
            layers: Indices of the layers, from 0, increasing.

        Returns:
            Feature, float32 (N, C, T, D), with one C per layer; T may depend on the inputs.

        Raises:
            BuildError: If the backbone does not accept these inputs.
        """

    def shape(self, inputs: Any, layers: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of a feature, for estimates; by default, the feature is extracted."""
        return self.extract(inputs, layers).shape

    def grid(self, inputs: Any) -> tuple[int, int] | None:
        """Return (rows, columns) of a view's tokens after the prefix; None without a grid."""
        return None

    def layer(self, index: int) -> Layer:
        """Return the description of a layer for the manifest."""
        return Layer(f"layer {index}")


def join_layers(name: str, layers: Sequence[np.ndarray]) -> np.ndarray:
    """Stack layers (N, T, D) into a feature (N, C, T, D).

    Raises:
        BuildError: If the layers differ in T or D.
    """
    if len({layer.shape for layer in layers}) > 1:
        shapes = [layer.shape[1:] for layer in layers]
        raise BuildError(f"{name}: layers of one feature have one (T, D), not {shapes}")
    return np.stack(layers, axis=1)


class LibraryModel(Backbone):
    """Model of another library: a layer per block, and one for the final norm, if it has one.

    Attributes:
        recreate: Function that recreates the model when it is unpickled.
        blocks: Number of blocks.
        block: Name for a block.
        patch: Rows and columns of pixels per token; None without a grid.
        mean_std: Normalisation of the model's images; None for that of the sources.
    """

    recreate: Callable[[], Any]
    blocks: int
    block: str = "block"
    patch: tuple[int, int] | None = None
    mean_std: tuple[Any, Any] | None = None

    def __reduce__(self) -> Any:
        return self.recreate, ()

    def grid(self, inputs: Any) -> tuple[int, int] | None:
        """Return the rows and columns of patches; None if layers differ in them."""
        if not self.patch:
            return None
        images = inputs["pixel_values"] if isinstance(inputs, Mapping) else inputs
        height, width = np.shape(images)[-2:]
        return height // self.patch[0], width // self.patch[1]

    def layer(self, index: int) -> Layer:
        """Return the name of a layer, and whether it is before or after the final norm."""
        if index == self.blocks:
            return Layer("final norm", "after")
        return Layer(f"{self.block} {index}", "before" if self.norm is not None else None)

    def check_layers(self, layers: Sequence[int]) -> None:
        """Check that layers exist.

        Raises:
            BuildError: If a layer does not exist, or there are none.
        """
        assert self.layers is not None
        if not layers or not all(0 <= layer < self.layers for layer in layers):
            raise BuildError(f"{self.name}: layers are 0 to {self.layers - 1}, not {list(layers)}")

    def images(self, values: Any) -> np.ndarray:
        """Return images, float32 (N, 3, H, W), normalised as the model expects.

        Raises:
            BuildError: If the inputs are not normalised images.
        """
        values = np.asarray(values)
        if values.dtype.kind != "f" or values.ndim != 4:
            raise BuildError(f"{self.name}: inputs must be normalised images, float32 (N, 3, H, W)")
        values = np.asarray(values, np.float32)
        return renormalise(values, *self.mean_std) if self.mean_std else values


@contextmanager
def library_errors(what: str, *, kind: bool = True) -> Iterator[None]:
    """Turn any error of a library into a BuildError of one line.

    Args:
        what: Description of the model for the error message.
        kind: Whether the message includes the type of the library's error.
    """
    try:
        yield
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        prefix = f"{type(error).__name__}: " if kind else ""
        raise BuildError(f"{what}: {prefix}{reason}") from error


def read_config(path: Path) -> dict[str, Any]:
    """Return the JSON object in a configuration file beside weights.

    Raises:
        BuildError: If the file does not contain a JSON object.
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
