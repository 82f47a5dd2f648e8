"""The three task heads, linear as in DINOv2's evaluation, and the score of each against the truth.

A head takes a feature (N, C, T, D), block outputs before the backbone's final norm, and needs
nothing else: where the head starts from normalised tokens, the norm is part of it. Tensor names are
those of the published checkpoints. Geometry (windows, crops) is data in the file's metadata; where
a file has none, it is that of the published evaluation.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cfqa_data.builders.tasks.geometry import (
    DepthGeometry,
    SegGeometry,
    from_metadata,
    window_starts,
)
from cfqa_data.errors import BuildError
from cfqa_data.extras import extras
from cfqa_data.format.tasks import get_task
from cfqa_data.paths import absolute_path
from cfqa_data.torch_inputs import as_tensor
from cfqa_data.torch_state import torch_state

with extras("build"):
    import torch
    from torch import Tensor, nn
    from torch.nn import functional as F

    from cfqa_data.builders.backbones.checkpoints import (
        check_tensors,
        read_tensors,
        state_of,
        weight_files,
    )
    from cfqa_data.builders.backbones.dinov2 import NORM_EPS

__all__ = ["DepthGeometry", "Head", "SegGeometry", "load_head", "window_starts"]

IGNORE = 255
#: Published range of depths, in metres.
DEPTH_RANGE = (0.001, 10.0)


class Head(nn.Module):
    """Common part of the heads: a feature's prediction, and its score against the truth.

    Attributes:
        task: name of the task.
        dim: width D of the features that the head takes.
    """

    task: str
    dim: int

    def takes(self, layers: int, dim: int) -> bool:
        """Whether the head is for features of so many layers and such a width."""
        return (layers, dim) == (1, self.dim)

    def checked(self, feature: Tensor | np.ndarray) -> Tensor:
        """The feature as float32, if it is finite and of the shape (N, C, T, D) the head takes.

        Raises:
            BuildError: it is not; a score of NaN would pass for a good one.
        """
        try:
            feature = as_tensor(feature)
        except TypeError as error:
            raise BuildError(f"{self.task} head: {error}") from None
        layers, shape = get_task(self.task).layers, tuple(feature.shape)
        if len(shape) != 4 or shape[2] < 2 or not self.takes(shape[1], shape[3]):
            wanted = f"(N, {layers}, T, {self.dim})"
            raise BuildError(f"{self.task} head: a feature must be {wanted}, not {shape}")
        if not feature.is_floating_point():
            raise BuildError(f"{self.task} head: a feature is floating point, not {feature.dtype}")
        feature = feature.float()
        if not bool(feature.isfinite().all()):
            raise BuildError(f"{self.task} head: the feature has NaN or infinite values")
        return feature

    def check_views(self, feature: Tensor) -> None:
        """See that a feature (N, C, T, D) has the task's number of views N.

        Raises:
            BuildError: it has another.
        """
        if len(feature) != (views := get_task(self.task).views):
            raise BuildError(f"{self.task} head: a feature has {views} view(s), not {len(feature)}")

    def predict(self, feature: Tensor | np.ndarray) -> Tensor:
        """Prediction from one feature, float32 (N, C, T, D).

        Like scores, it does not depend on the state of torch around the call.
        """
        raise NotImplementedError

    def evaluate(
        self, features: Tensor | np.ndarray, truth: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
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
            raise BuildError(
                f"{self.task} head: features must be (B, N, C, T, D), not {tuple(features.shape)}"
            )
        rows = [self.score(feature, truth) for feature in features]
        return np.array([row[0] for row in rows]), np.array([row[1] for row in rows])

    def score(self, feature: Tensor | np.ndarray, truth: np.ndarray) -> tuple[float, float]:
        """Score and loss of one feature, float32 (N, C, T, D)."""
        raise NotImplementedError

    def correct(self, feature: Tensor | np.ndarray, truth: np.ndarray) -> bool:
        """Whether the source is usable for the dataset; only classification is choosy."""
        return True


class ClsHead(Head):
    """Linear on [class token, mean patch token] after the final norm."""

    task = "cls"

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.dim = dim
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.linear = nn.Linear(2 * dim, classes)

    def logits(self, tokens: Tensor) -> Tensor:
        """Class logits (B, classes) of tokens (B, T, D)."""
        tokens = self.norm(tokens)
        return self.linear(torch.cat([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=-1))

    @torch_state(grad=False)
    def predict(self, feature: Tensor | np.ndarray) -> Tensor:
        """Class logits, float32 (classes,), of a feature (1, 1, T, D)."""
        feature = self.checked(feature)
        self.check_views(feature)
        return self.logits(feature[:, 0])[0]

    @torch_state(grad=False)
    def score(self, feature: Tensor | np.ndarray, truth: np.ndarray) -> tuple[float, float]:
        truth = np.asarray(truth)
        if truth.ndim or truth.dtype.kind not in "iu":
            raise BuildError(
                f"cls head: a label is one whole number, not {truth.dtype} {truth.shape}"
            )
        logits, label = self.predict(feature).double(), int(truth)
        if not 0 <= label < len(logits):
            raise BuildError(f"cls head: label {label} is not in 0..{len(logits) - 1}")
        # A tie counts as in a stable descending sort.
        ahead = (logits > logits[label]).sum() + (logits[:label] == logits[label]).sum()
        loss = torch.logsumexp(logits, 0) - logits[label]
        return float(1 + ahead), float(loss)

    def correct(self, feature: Tensor | np.ndarray, truth: np.ndarray) -> bool:
        """Whether the true class comes first."""
        return self.score(feature, truth)[0] == 1


class SegHead(Head):
    """Batch norm and 1x1 convolution on the normalised patch tokens of each window."""

    task = "seg"

    def __init__(self, dim: int, classes: int, geometry: SegGeometry) -> None:
        super().__init__()
        self.dim, self.geometry = dim, geometry
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.bn = nn.BatchNorm2d(dim)
        self.conv_seg = nn.Conv2d(dim, classes, 1)

    def logits(self, tokens: Tensor) -> Tensor:
        """Class logits on the grid of patches, (B, classes, g, g), of tokens (B, T, D)."""
        patches = self.norm(tokens)[:, 1:]
        side = math.isqrt(patches.shape[1])
        if side * side != patches.shape[1]:
            raise BuildError(f"seg head: {tokens.shape[1]} tokens are not 1 + a square of patches")
        grid = patches.transpose(1, 2).reshape(len(patches), -1, side, side)
        return self.conv_seg(self.bn(grid))

    @torch_state(grad=False)
    def predict_logits(self, feature: Tensor | np.ndarray, height: int, width: int) -> Tensor:
        """Class logits of the whole image, float32 (classes, height, width)."""
        feature = self.checked(feature)
        window, stride = self.geometry.window, self.geometry.stride
        rows, columns = self.geometry.scaled(height, width)
        if min(rows, columns) < window:
            raise BuildError(
                f"seg head: an image of {height}x{width} scales to {rows}x{columns}, "
                f"which is smaller than a window of {window}"
            )
        corners = [
            (top, left)
            for top in window_starts(rows, window, stride)
            for left in window_starts(columns, window, stride)
        ]
        if len(corners) != len(feature):
            raise BuildError(
                f"seg head: an image of {height}x{width} has {len(corners)} windows, "
                f"the feature has {len(feature)}"
            )
        logits = F.interpolate(
            self.logits(feature[:, 0]), (window, window), mode="bilinear", align_corners=False
        )
        total = logits.new_zeros(logits.shape[1], rows, columns)
        count = logits.new_zeros(1, rows, columns)
        for (top, left), part in zip(corners, logits, strict=True):
            total[:, top : top + window, left : left + window] += part
            count[:, top : top + window, left : left + window] += 1
        mean = total / count
        if (rows, columns) == (height, width):
            return mean
        return F.interpolate(mean[None], (height, width), mode="bilinear", align_corners=False)[0]

    @torch_state(grad=False)
    def predict(self, feature: Tensor | np.ndarray, size: tuple[int, int] | None = None) -> Tensor:
        """Label map int64 (H, W) for an image of `size`; one window when None."""
        height, width = size or (self.geometry.window, self.geometry.window)
        return self.predict_logits(feature, height, width).max(dim=0).indices

    @torch_state(grad=False)
    def score(self, feature: Tensor | np.ndarray, truth: np.ndarray) -> tuple[float, float]:
        truth = np.asarray(truth)
        if truth.ndim != 2 or truth.dtype.kind not in "iu":
            raise BuildError(f"seg head: a mask is whole numbers (H, W), not {truth.dtype}")
        logits = self.predict_logits(feature, *truth.shape)
        classes = len(logits)
        target = torch.from_numpy(truth.astype(np.int64))
        valid = target != IGNORE
        if not bool(valid.any()):
            raise BuildError("seg head: the mask has no pixel that counts")
        if not 0 <= int(target[valid].min()) <= int(target[valid].max()) < classes:
            raise BuildError(f"seg head: the mask has a class that is not in 0..{classes - 1}")
        chosen = logits.gather(0, target.clamp(max=classes - 1)[None])[0]
        loss = (logits.logsumexp(dim=0) - chosen)[valid].mean()
        # Over a leading axis `max` takes a quarter of the time of `argmax`, for the same indices.
        pairs = target[valid] * classes + logits.max(dim=0).indices[valid]
        table = torch.bincount(pairs, minlength=classes**2).reshape(classes, classes).double()
        union = table.sum(0) + table.sum(1) - table.diagonal()
        iou = table.diagonal()[union > 0] / union[union > 0]
        return float(iou.mean()), float(loss)


class DepthHead(Head):
    """1x1 convolution to depth bins on [patch, class token] of every layer, without a norm."""

    task = "dpt"

    def __init__(self, inputs: int, bins: int, geometry: DepthGeometry) -> None:
        super().__init__()
        self.dim, self.geometry = inputs // (2 * get_task("dpt").layers), geometry
        self.conv_depth = nn.Conv2d(inputs, bins, 1)
        self.register_buffer("centres", torch.linspace(*DEPTH_RANGE, bins), persistent=False)

    def takes(self, layers: int, dim: int) -> bool:
        """Whether all layers side by side are what the convolution takes."""
        return 2 * layers * dim == self.conv_depth.in_channels

    def depth(self, layers: Tensor, size: tuple[int, int]) -> Tensor:
        """Depth in metres, (B, h, w) with four times the grid, of layers (B, C, T, D).

        The published order upsamples the tokens and then convolves; a 1x1 convolution commutes
        with bilinear interpolation, whose weights sum to one, so the few logits are upsampled here.
        """
        batch, count, tokens, dim = layers.shape
        rows, columns = size
        if rows * columns != tokens - 1:
            raise BuildError(f"dpt head: {tokens} tokens are not 1 + {rows}x{columns} patches")
        if not self.takes(count, dim):
            raise BuildError(
                f"dpt head: {count} layers of width {dim} give {2 * dim * count} inputs, "
                f"the head takes {self.conv_depth.in_channels}"
            )
        patches = layers[:, :, 1:]
        pairs = torch.cat([patches, layers[:, :, :1].expand_as(patches)], dim=-1)
        inputs = pairs.permute(0, 2, 1, 3).reshape(batch, tokens - 1, -1)
        weight, bias = self.conv_depth.weight.flatten(1), self.conv_depth.bias
        grid = F.linear(inputs, weight, bias).transpose(1, 2).reshape(batch, -1, rows, columns)
        logits = F.interpolate(grid, (4 * rows, 4 * columns), mode="bilinear", align_corners=False)
        weights = F.relu(logits) + 0.1
        weights = weights / weights.sum(dim=1, keepdim=True)
        return torch.einsum("bkhw,k->bhw", weights, self.centres)

    @torch_state(grad=False)
    def predict(self, feature: Tensor | np.ndarray) -> Tensor:
        """Depth in metres, float32 (height, width): mean of the view and the un-flipped view."""
        height, width = self.geometry.height, self.geometry.width
        size = (math.ceil(height / 14), math.ceil(width / 14))
        feature = self.checked(feature)
        self.check_views(feature)
        depth = self.depth(feature, size).clamp(*DEPTH_RANGE)
        depth = F.interpolate(
            depth[:, None], (height, width), mode="bilinear", align_corners=False
        )[:, 0]
        views = [depth[0]] + [view.flip(-1) for view in depth[1:]]
        return torch.stack(views).mean(dim=0)

    @torch_state(grad=False)
    def score(self, feature: Tensor | np.ndarray, truth: np.ndarray) -> tuple[float, float]:
        truth = np.asarray(truth)
        depth = self.predict(feature).double().numpy()
        if truth.shape != depth.shape:
            raise BuildError(f"dpt head: the truth is {truth.shape}, not {depth.shape}")
        if truth.dtype.kind not in "iu":
            raise BuildError(f"dpt head: the truth is {truth.dtype}, not whole millimetres")
        window = (slice(*self.geometry.rows), slice(*self.geometry.columns))
        found, wanted = depth[window], truth[window].astype(np.float64) / 1000.0
        valid = (wanted > DEPTH_RANGE[0]) & (wanted < DEPTH_RANGE[1])
        if not valid.any():
            raise BuildError("dpt head: the truth has no valid depth")
        error = found[valid] - wanted[valid]
        return float(np.sqrt(np.mean(error**2))), float(np.mean(np.abs(error) / wanted[valid]))


#: The tensor by which a task's head is known, and its axes: outputs and inputs first.
_KNOWN_BY = {"cls": ("weight", 2), "seg": ("conv_seg.weight", 4), "dpt": ("conv_depth.weight", 4)}
_PREFIX = "decode_head."
#: What a whole published model holds beside its head.
_BESIDE = ("backbone.", "auxiliary_head.")


def _geometry(path: Path) -> object:
    """What safetensors files say about windows and crops."""
    from safetensors import safe_open

    text = "{}"
    for part in weight_files(path):
        if part.suffix == ".safetensors":
            with safe_open(part, framework="pt") as file:
                text = (file.metadata() or {}).get("geometry", text)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise BuildError(f"{path}: the geometry in its metadata is not JSON") from None


@torch_state(grad=False)
def load_head(
    task: str, path_or_dict: str | Path | Mapping[str, Any], norm: nn.LayerNorm | None = None
) -> Head:
    """Build a task's head from its checkpoint, in evaluation mode, float32.

    Args:
        task: "cls", "seg" or "dpt".
        path_or_dict: file as published or safetensors, index or folder as of `load_backbone`, or
            what they hold: ``weight`` and ``bias``
            (cls); ``conv_seg.*`` and ``bn.*`` (seg) or ``conv_depth.*`` (dpt), alone or behind
            ``decode_head.``, where the rest of a whole model may stand beside them.
        norm: the backbone's final norm, for files that do not carry it as ``norm.*``; the
            published ones of cls and seg do not.

    Returns:
        The head, on the CPU.

    Raises:
        BuildError: unknown task, or a tensor is missing, left over or misshapen.
    """
    if task not in _KNOWN_BY:
        raise BuildError(f"no head for task '{task}'; known are {', '.join(_KNOWN_BY)}")
    geometry: object = {}
    if isinstance(path_or_dict, Mapping):
        origin = f"{task} head"
        tensors = state_of(path_or_dict, origin)
    else:
        tensors, origin = read_tensors(path_or_dict), str(path_or_dict)
        geometry = _geometry(absolute_path(path_or_dict))
    prefix = ""
    if task != "cls" and any(name.startswith(_PREFIX) for name in tensors):
        prefix = _PREFIX
        tensors = {k: v for k, v in tensors.items() if not k.startswith(_BESIDE)}
    name, ndim = prefix + _KNOWN_BY[task][0], _KNOWN_BY[task][1]
    if name not in tensors:
        raise BuildError(f"{origin}: tensor '{name}' is missing, so it is no {task} head")
    if tensors[name].ndim != ndim or not tensors[name].numel():
        raise BuildError(f"{origin}: tensor '{name}' is misshapen: {tuple(tensors[name].shape)}")
    outputs, inputs = tensors[name].shape[:2]
    share = {"cls": 2, "seg": 1, "dpt": 2 * get_task("dpt").layers}[task]
    if inputs % share:
        raise BuildError(f"{origin}: tensor '{name}' takes {inputs} inputs, no multiple of {share}")
    head: Head
    if task == "cls":
        head = ClsHead(inputs // 2, outputs)
    elif task == "seg":
        head = SegHead(inputs, outputs, from_metadata(SegGeometry, geometry, origin))
        tensors.setdefault(f"{prefix}bn.num_batches_tracked", torch.zeros((), dtype=torch.long))
    else:
        head = DepthHead(inputs, outputs, from_metadata(DepthGeometry, geometry, origin))
    if task != "dpt" and "norm.weight" not in tensors:
        if norm is None:
            raise BuildError(
                f"{origin}: tensor 'norm.weight' is missing; published {task} heads start from "
                f"normalised tokens: give the backbone's norm, load_head(..., norm=backbone.norm)"
            )
        if tuple(norm.normalized_shape) != (head.dim,):
            width = norm.normalized_shape[0]
            raise BuildError(f"{origin}: the norm's width is {width}, the head's {head.dim}")
        tensors |= {f"norm.{k}": v.detach().cpu() for k, v in norm.state_dict().items()}

    def own(module_name: str) -> str:
        """What the file calls a tensor of the head."""
        if module_name.startswith("norm."):
            return module_name
        return prefix + module_name.removeprefix("linear.")

    expected = head.state_dict()
    check_tensors(tensors, {own(k): v for k, v in expected.items()}, origin, f"{task} head")
    head.load_state_dict({k: tensors[own(k)] for k in expected})
    return head.eval().requires_grad_(False)
