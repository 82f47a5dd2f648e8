"""Semantic segmentation: mIoU over sliding windows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from cfqa_data.builders.sources.geometry import IGNORE, SegGeometry
from cfqa_data.builders.tasks.drawing import Drawing, draw_mask
from cfqa_data.builders.tasks.linear import Head, LinearTask
from cfqa_data.extras import extras
from cfqa_data.format.format_1 import TASKS, VIEWS
from cfqa_data.torch_state import torch_state

with extras("build"):
    import torch
    from torch import Tensor, nn
    from torch.nn import functional as F

    from cfqa_data.builders.backbones.dinov2 import NORM_EPS

__all__ = ["SegHead", "Segmentation"]

SMALLEST = 0.01
"""Minimum share of a predicted mask for a class to appear in a drawing's key."""


class Mask(NamedTuple):
    """A truth prepared for scoring.

    Attributes:
        target: Classes, int64 (1, H, W); arbitrary at pixels that are not valid.
        valid: Whether a pixel is scored, bool (H, W).
        rows: For each valid pixel, the index of its class's row in a flattened confusion matrix.
    """

    target: Tensor
    valid: Tensor
    rows: Tensor


class SegHead(Head):
    """Batch norm and 1x1 convolution on the normalised patch tokens of each window."""

    task, views, known_by, geometry_kind = "seg", 2, ("conv_seg.weight", 4), SegGeometry

    def __init__(
        self, inputs: int, classes: int, geometry: SegGeometry, layers: int | None = None
    ) -> None:
        super().__init__(inputs, layers)
        self.geometry = geometry
        self.norm = nn.LayerNorm(inputs, eps=NORM_EPS)
        self.bn = nn.BatchNorm2d(inputs)
        self.conv_seg = nn.Conv2d(inputs, classes, 1)

    def logits(self, tokens: Tensor) -> Tensor:
        """Return class logits on the grid of patches, (B, classes, g, g), of tokens (B, T, D)."""
        patches = self.norm(tokens)[:, 1:]
        side = math.isqrt(patches.shape[1])
        if side * side != patches.shape[1]:
            raise self.wrong(f"{tokens.shape[1]} tokens are not 1 + a square of patches")
        grid = patches.transpose(1, 2).reshape(len(patches), -1, side, side)
        return self.conv_seg(self.bn(grid))

    @torch_state(grad=False)
    def predict_logits(self, feature: Tensor | np.ndarray, height: int, width: int) -> Tensor:
        """Return the class logits of the whole image, float32 (classes, height, width)."""
        return self._predict_logits(feature, height, width)

    def _predict_logits(self, feature: Tensor | np.ndarray, height: int, width: int) -> Tensor:
        feature = self.checked(feature, views=False)
        window = self.geometry.window
        rows, columns = self.geometry.scaled(height, width)
        if min(rows, columns) < window:
            raise self.wrong(
                f"an image of {height}x{width} scales to {rows}x{columns}, "
                f"smaller than a window of {window}"
            )
        corners = self.geometry.corners(rows, columns)
        if len(corners) != len(feature):
            raise self.wrong(
                f"an image of {height}x{width} has {len(corners)} windows, "
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

    def _predict(self, feature: Tensor | np.ndarray, size: tuple[int, int] | None = None) -> Tensor:
        """Return the classes, int64 (H, W), of an image of `size`; of one window if None."""
        height, width = size or (self.geometry.window, self.geometry.window)
        return self._predict_logits(feature, height, width).max(dim=0).indices

    def draw(
        self, feature: Tensor | np.ndarray | None, truth: Any, classes: Sequence[str] = ()
    ) -> Drawing | None:
        """Draw the mask; without a truth the image's size is unknown, and each window is drawn."""
        if feature is None:
            return None if truth is None else draw_mask(truth, classes)
        if truth is None:
            windows = [self.predict(window[None]).numpy() for window in feature]
            return draw_mask(np.hstack(windows), classes, SMALLEST)
        return draw_mask(self.predict(feature, np.shape(truth)).numpy(), classes, SMALLEST)

    @torch_state(grad=False)
    def prepare(self, truth: Any) -> Mask:
        """Convert a mask for `score`."""
        if isinstance(truth, Mask):
            return truth
        truth, classes = np.asarray(truth), self.conv_seg.out_channels
        if truth.ndim != 2 or truth.dtype.kind not in "iu":
            raise self.wrong(f"a mask must be whole numbers (H, W), not {truth.dtype}")
        target = torch.from_numpy(truth.astype(np.int64))
        valid = target != IGNORE
        targets = target[valid]
        if not len(targets):
            raise self.wrong("the mask has no valid pixel")
        if not 0 <= int(targets.min()) <= int(targets.max()) < classes:
            raise self.wrong(f"the mask has a class that is not in 0..{classes - 1}")
        return Mask(target.clamp(max=classes - 1)[None], valid, targets * classes)

    def _score(self, feature: Tensor | np.ndarray, truth: Any) -> tuple[float, float]:
        mask, classes = self.prepare(truth), self.conv_seg.out_channels
        logits = self._predict_logits(feature, *mask.valid.shape)
        loss = (logits.logsumexp(dim=0) - logits.gather(0, mask.target)[0])[mask.valid].mean()
        # Along the first axis, `max` takes a quarter of the time of `argmax`.
        pairs = mask.rows + logits.max(dim=0).indices[mask.valid]
        table = torch.bincount(pairs, minlength=classes**2).reshape(classes, classes).double()
        union = table.sum(0) + table.sum(1) - table.diagonal()
        iou = table.diagonal()[union > 0] / union[union > 0]
        return float(iou.mean()), float(loss)


class Segmentation(LinearTask):
    """mIoU and pixel cross-entropy of the mask."""

    facts, views, layers, head_kind = TASKS["seg"], VIEWS["seg"], SegHead.layers, SegHead
