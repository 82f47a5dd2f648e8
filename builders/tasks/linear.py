"""Base classes of linear heads, as in DINOv2's evaluation, and of tasks that score with one.

A head takes a feature (N, C, T, D), block outputs before the backbone's final norm, and needs
nothing else: where the head starts from normalised tokens, the norm is part of it. Tensor names are
those of the published checkpoints. Geometry (windows, crops) is data in the file's metadata; where
a file has none, it is that of the published evaluation.
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
    """A feature's prediction, and its score against the truth.

    A subclass is made from its inputs, its outputs and, where it has one, the geometry.

    Attributes:
        task: name of the task.
        views, layers: N and C of the features that the head takes.
        known_by: the tensor by which it is known, and its axes: outputs and inputs first.
        prefix: of its tensors in a file of a whole model.
        beside: prefixes of what such a file holds beside the head.
        whole_norm: what such a file calls the norm that the head starts from; empty if it may not.
        geometry_kind: windows or crops of a dense task; None for any other.
        dim: width D of the features that the head takes.

    Args:
        inputs: of its linear part.
        layers: C of the features; as in the published evaluation if None.
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
        """Return how many inputs the linear part has per channel of a token."""
        return 1

    @classmethod
    def sizes(cls, shape_of: Callable[[str, int], Sequence[int]]) -> tuple[int, Any]:
        """Return the inputs and outputs of a head by the shapes of its tensors.

        Args:
            shape_of: gives the shape of a tensor of a name and so many axes.
        """
        outputs, inputs = shape_of(*cls.known_by)[:2]
        return inputs, outputs

    def wrong(self, why: str) -> BuildError:
        """Return the error that says what does not fit the head."""
        return BuildError(f"{self.task} head: {why}")

    def takes(self, layers: int, dim: int) -> bool:
        """Whether the head is for features of so many layers and such a width."""
        return (layers, dim) == (self.layers, self.dim)

    def checked(self, feature: Tensor | np.ndarray, views: bool = True) -> Tensor:
        """Return the feature as float32, if it is finite and of the shape that the head takes.

        Raises:
            BuildError: it is not; a score of NaN would pass for a good one.
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

        Like scores, it does not depend on the state of torch around the call. What it is, and
        which sizes it takes, says :meth:`_predict`.
        """
        return self._predict(feature, *size, **sizes)

    def _predict(self, feature: Tensor | np.ndarray) -> Tensor:
        """Do it, in a state of torch that is set already."""
        raise NotImplementedError

    @torch_state(grad=False)
    def score(self, feature: Tensor | np.ndarray, truth: Any) -> tuple[float, float]:
        """Return score and loss of one feature, float32 (N, C, T, D)."""
        return self._score(feature, truth)

    def _score(self, feature: Tensor | np.ndarray, truth: Any) -> tuple[float, float]:
        """Do it, in a state of torch that is set already."""
        raise NotImplementedError

    def prepare(self, truth: Any) -> Any:
        """Return a truth as `score` takes it; given again, it is returned as it is."""
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
            features: float32 (B, N, C, T, D).
            truth: cls int (); seg uint8 (H, W), 255 ignored; dpt uint16 (H, W), millimetres.

        Returns:
            The task's scores and losses, float64 (B,) each: rank and negative log-likelihood in
            nats (cls), mIoU and pixel cross-entropy in nats (seg), RMSE in metres and mean absolute
            relative error (dpt).

        Raises:
            BuildError: the features or the truth do not fit the head.
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
        """Return the head of a checkpoint; see `load_head`."""
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
        expected = {  # by the names of the file
            key if key.startswith("norm.") else prefix + key.removeprefix("linear."): tensor
            for key, tensor in head.state_dict(keep_vars=True).items()
        }
        if (batches := f"{prefix}bn.num_batches_tracked") in expected:
            tensors.setdefault(batches, expected[batches])
        if "norm.weight" in expected and "norm.weight" not in tensors:
            tensors |= head.given_norm(norm, origin)
        checkpoints.check_tensors(tensors, expected, origin, what)
        for key, tensor in expected.items():
            tensor.data.copy_(tensors[key])
        return head.eval().requires_grad_(False)

    def given_norm(self, norm: nn.LayerNorm | None, origin: str) -> dict[str, Tensor]:
        """Return the tensors of the backbone's norm, for a file that has none."""
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
    """What safetensors files say about windows and crops, as JSON."""
    from safetensors import safe_open

    text = "{}"
    for part in () if isinstance(path_or_dict, Mapping) else checkpoints.weight_files(path_or_dict):
        if part.suffix == ".safetensors":
            with safe_open(part, framework="pt") as file:
                text = (file.metadata() or {}).get("geometry", text)
    return text


class LinearTask(Task):
    """A task that scores by a linear head.

    Args:
        backbone: whose features it takes.
        weights: of the head.
        blocks: the layers of the features; as many as in the published evaluation if None.

    Raises:
        BuildError: the head is for features of another width or number of layers.
    """

    head_kind: ClassVar[type[Head]]

    def __init__(
        self, backbone: Backbone, weights: Path, blocks: Sequence[int] | None = None
    ) -> None:
        layers = None if blocks is None else len(blocks)
        self.head = self.head_kind.load(weights, backbone.norm, layers)
        if backbone.width not in (None, self.head.dim):
            of = f" and {layers} layer(s)" if layers else ""
            raise BuildError(f"{weights}: not a head for features of width {backbone.width}{of}")

    def score(self, feature: Tensor | np.ndarray, truth: Any) -> tuple[float, float]:
        """Return the head's score and loss."""
        return self.head.score(feature, truth)

    def prepare(self, truth: Any) -> Any:
        """Return a truth as the head takes it."""
        return self.head.prepare(truth)

    def scores(self, features: np.ndarray, truth: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return the head's scores and losses, or those of a subclass that scores otherwise."""
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
        """Pass over a sample of another number of views."""
        views = len(sample.inputs)
        return None if views == self.head.views else f"of {views} views"
