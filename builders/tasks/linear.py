"""Base classes of linear heads, as in DINOv2's evaluation, and of tasks that score with one.

The only input of a head is a feature (N, C, T, D): block outputs before the backbone's final norm.
A head that starts from normalised tokens includes that norm. Tensors have the names of the
published checkpoints. The geometry (windows, crops) is read from the file's metadata; by default it
is that of the published evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from cfqa_data.builders.backbones.base import Backbone
from cfqa_data.builders.sources.base import Sample
from cfqa_data.builders.sources.geometry import from_metadata
from cfqa_data.builders.tasks.base import Task
from cfqa_data.builders.tasks.drawing import Drawing
from cfqa_data.errors import BuildError
from cfqa_data.extras import extras
from cfqa_data.torch_inputs import as_tensor
from cfqa_data.torch_state import torch_state

with extras("build"):
    from torch import Tensor, nn

    from cfqa_data.format import checkpoints

__all__ = ["Head", "LinearTask"]


class Head(nn.Module):
    """Base class of heads, which predict from a feature and score the prediction.

    The constructor of a subclass takes the number of inputs and of outputs, the geometry, if the
    task has one, and the number of layers.

    Attributes:
        task: Name of the task.
        views, layers: Required N and C of features.
        known_by: Name and number of axes of the tensor whose first two axes are outputs and inputs.
        prefix: Prefix of the head's tensors in a file of a whole model.
        beside: Prefixes of the other tensors in such a file.
        whole_norm: Prefix in such a file of the norm that the head starts from; empty if none.
        geometry_kind: Class of the windows or crops of a dense task; None for other tasks.
        dim: Required width D of features.

    Args:
        inputs: Number of inputs of the linear part.
        layers: Number of layers of features, C; that of the published evaluation if None.
    """

    task: ClassVar[str]
    views: ClassVar[int]
    layers: int = 1
    known_by: ClassVar[tuple[str, int]]
    prefix: ClassVar[str] = "decode_head."
    beside: ClassVar[tuple[str, ...]] = ("backbone.", "auxiliary_head.")
    whole_norm: ClassVar[str] = ""
    geometry_kind: ClassVar[type[Any] | None] = None

    def __init__(self, inputs: int, layers: int | None = None) -> None:
        super().__init__()
        self.layers = layers or self.layers
        self.dim = inputs // self.share(self.layers)

    @classmethod
    def share(cls, layers: int) -> int:
        """Return the number of inputs of the linear part per channel of a token."""
        return 1

    @classmethod
    def sizes(cls, shape_of: Callable[[str, int], Sequence[int]]) -> tuple[int, Any]:
        """Return the number of inputs and of outputs, from the shapes of tensors.

        Args:
            shape_of: Function from a tensor's name and number of axes to its shape.
        """
        outputs, inputs = shape_of(*cls.known_by)[:2]
        return inputs, outputs

    def wrong(self, reason: str) -> BuildError:
        """Return an error that names the head."""
        return BuildError(f"{self.task} head: {reason}")

    def takes(self, layers: int, dim: int) -> bool:
        """Whether the head accepts features of this number of layers and width."""
        return (layers, dim) == (self.layers, self.dim)

    def checked(self, feature: Tensor | np.ndarray, views: bool = True) -> Tensor:
        """Validate a feature and return it as float32.

        Values must be finite, since a score of NaN could pass for a good one.

        Raises:
            BuildError: If the feature has another shape than the head takes, or is not finite.
        """
        try:
            feature = as_tensor(feature)
        except TypeError as error:
            raise self.wrong(str(error)) from None
        shape = tuple(feature.shape)
        if len(shape) != 4 or shape[2] < 2 or not self.takes(shape[1], shape[3]):
            expected_shape = f"(N, {self.layers}, T, {self.dim})"
            raise self.wrong(f"a feature must be {expected_shape}, not {shape}")
        if not feature.is_floating_point():
            raise self.wrong(f"a feature must be floating point, not {feature.dtype}")
        feature = feature.float()
        if not bool(feature.isfinite().all()):
            raise self.wrong("the feature has NaN or infinite values")
        if views and len(feature) != self.views:
            raise self.wrong(f"a feature has {self.views} view(s), not {len(feature)}")
        return feature

    @torch_state(grad=False)
    def predict(self, feature: Tensor | np.ndarray, *size: Any, **sizes: Any) -> Tensor:
        """Return the prediction from one feature, float32 (N, C, T, D).

        It does not depend on torch's global settings. The kind of prediction, and further
        arguments, are those of :meth:`_predict`.
        """
        return self._predict(feature, *size, **sizes)

    def _predict(self, feature: Tensor | np.ndarray) -> Tensor:
        """Implement :meth:`predict`; torch's settings are already fixed."""
        raise NotImplementedError

    @torch_state(grad=False)
    def score(self, feature: Tensor | np.ndarray, truth: Any) -> tuple[float, float]:
        """Return score and loss of one feature, float32 (N, C, T, D)."""
        return self._score(feature, truth)

    def _score(self, feature: Tensor | np.ndarray, truth: Any) -> tuple[float, float]:
        """Implement :meth:`score`; torch's settings are already fixed."""
        raise NotImplementedError

    def prepare(self, truth: Any) -> Any:
        """Convert a truth for `score`; a converted truth is returned unchanged."""
        return truth

    def draw(
        self, feature: Tensor | np.ndarray | None, truth: Any, classes: Sequence[str] = ()
    ) -> Drawing | None:
        """Draw a prediction, or the truth: see :meth:`Task.draw`."""
        return None

    @torch_state(grad=False)
    def evaluate(self, features: Tensor | np.ndarray, truth: Any) -> tuple[np.ndarray, np.ndarray]:
        """Score several versions of one source's feature.

        Args:
            features: Features, float32 (B, N, C, T, D).
            truth: Truth of the source: int () for cls; uint8 (H, W) with 255 for ignored pixels
                for seg; uint16 (H, W) in millimetres for dpt.

        Returns:
            The task's scores and losses, float64 (B,) each: rank and negative log-likelihood in
            nats (cls), mIoU and pixel cross-entropy in nats (seg), RMSE in metres and mean absolute
            relative error (dpt).

        Raises:
            BuildError: If the features or the truth do not fit the head.
        """
        if features.ndim != 5:
            raise self.wrong(f"features must be (B, N, C, T, D), not {tuple(features.shape)}")
        truth = self.prepare(truth)
        rows = [self._score(feature, truth) for feature in features]
        return np.array([row[0] for row in rows]), np.array([row[1] for row in rows])

    @classmethod
    @torch_state(grad=False)
    def load(
        cls,
        path_or_dict: str | Path | Mapping[str, Any],
        norm: nn.LayerNorm | None = None,
        layers: int | None = None,
    ) -> Any:
        """Load the head from a checkpoint; see `load_head`."""
        what = f"{cls.task} head"
        tensors, origin = checkpoints.load_tensors(path_or_dict, what)
        prefix = ""
        if any(name.startswith(cls.prefix) for name in tensors):
            prefix, norm_at = cls.prefix, cls.whole_norm
            own = {k: v for k, v in tensors.items() if norm_at and k.startswith(norm_at)}
            tensors = {k: v for k, v in tensors.items() if not k.startswith(cls.beside)}
            tensors |= {f"norm.{k.removeprefix(norm_at)}": v for k, v in own.items()}

        def shape_of(name: str, ndim: int) -> Sequence[int]:
            return checkpoints.required_tensor(tensors, prefix + name, ndim, origin, what).shape

        inputs, outputs = cls.sizes(shape_of)
        if inputs % (share := cls.share(layers or cls.layers)):
            message = (
                f"tensor '{prefix}{cls.known_by[0]}' takes {inputs} inputs, not a multiple of "
                f"{share}"
            )
            if layers not in (None, cls.layers):
                message += f", for features of {layers} layers"
            raise BuildError(f"{origin}: {message}")
        arguments: list[Any] = [inputs, outputs]
        if cls.geometry_kind:
            arguments.append(from_metadata(cls.geometry_kind, _geometry(path_or_dict), origin))
        arguments.append(layers)
        head = cls(*arguments)
        expected = {  # name in the file -> tensor of the head
            key if key.startswith("norm.") else prefix + key.removeprefix("linear."): tensor
            for key, tensor in head.state_dict(keep_vars=True).items()
        }
        if (batches := f"{prefix}bn.num_batches_tracked") in expected:
            tensors.setdefault(batches, expected[batches])
        if "norm.weight" in expected and "norm.weight" not in tensors:
            tensors |= head.norm_tensors(norm, origin)
        checkpoints.check_tensors(tensors, expected, origin, what)
        for key, tensor in expected.items():
            tensor.data.copy_(tensors[key])
        return head.eval().requires_grad_(False)

    def norm_tensors(self, norm: nn.LayerNorm | None, origin: str) -> dict[str, Tensor]:
        """Return the tensors of the backbone's norm, for a file without them."""
        if norm is None:
            raise BuildError(
                f"{origin}: tensor 'norm.weight' is missing; published {self.task} heads start "
                "from normalised tokens: give the backbone's norm, "
                "load_head(..., norm=backbone.norm)"
            )
        if tuple(norm.normalized_shape) != (self.dim,):
            width = norm.normalized_shape[0]
            raise BuildError(f"{origin}: the norm's width is {width}, the head's {self.dim}")
        return {f"norm.{k}": v.detach().cpu() for k, v in norm.state_dict().items()}


def _geometry(path_or_dict: str | Path | Mapping[str, Any]) -> str:
    """Return the geometry in the metadata of safetensors files, as JSON; "{}" if there is none."""
    from safetensors import safe_open

    text = "{}"
    for part in () if isinstance(path_or_dict, Mapping) else checkpoints.weight_files(path_or_dict):
        if part.suffix == ".safetensors":
            with safe_open(part, framework="pt") as file:
                text = (file.metadata() or {}).get("geometry", text)
    return text


class LinearTask(Task):
    """Base class of tasks that score with a linear head.

    Args:
        backbone: Backbone of the features.
        weights: Path of the head.
        blocks: Indices of the features' layers; None for the published number of layers.

    Raises:
        BuildError: If the head is for features of another width or number of layers.
    """

    head_kind: ClassVar[type[Head]]

    def __init__(
        self, backbone: Backbone, weights: Path, blocks: Sequence[int] | None = None
    ) -> None:
        layers = None if blocks is None else len(blocks)
        self.head = self.head_kind.load(weights, backbone.norm, layers)
        if backbone.width not in (None, self.head.dim):
            also = f" and {layers} layer(s)" if layers else ""
            raise BuildError(f"{weights}: not a head for features of width {backbone.width}{also}")

    def score(self, feature: Tensor | np.ndarray, truth: Any) -> tuple[float, float]:
        """Return the head's score and loss."""
        return self.head.score(feature, truth)

    def prepare(self, truth: Any) -> Any:
        """Convert a truth for the head."""
        return self.head.prepare(truth)

    def scores(self, features: np.ndarray, truth: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return the head's scores and losses, or those of a subclass that overrides `score`."""
        if type(self).score is not LinearTask.score:
            return super().scores(features, truth)
        return self.head.evaluate(features, truth)

    def predict(self, feature: Tensor | np.ndarray, **options: Any) -> Tensor:
        """Return the head's prediction."""
        return self.head.predict(feature, **options)

    def draw(
        self, feature: Tensor | np.ndarray | None, truth: Any, classes: Sequence[str] = ()
    ) -> Drawing | None:
        """Draw the head's prediction, or the truth."""
        return self.head.draw(feature, truth, classes)

    def accepts(
        self, feature: Callable[[], np.ndarray], sample: Sample, accepted: Sequence[Sample]
    ) -> str | None:
        """Reject samples with another number of views than the head takes."""
        views = len(sample.inputs)
        return None if views == self.head.views else f"of {views} views"
