"""Depth estimation: RMSE in metres."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cfqa_data.builders.sources.geometry import DEPTH_RANGE, DepthGeometry
from cfqa_data.builders.tasks.drawing import Drawing, draw_depth
from cfqa_data.builders.tasks.linear import Head, LinearTask
from cfqa_data.extras import extras
from cfqa_data.format.format_1 import TASKS, VIEWS

with extras("build"):
    import torch
    from torch import Tensor, nn
    from torch.nn import functional as F

__all__ = ["Depth", "DepthHead"]


class DepthHead(Head):
    """1x1 convolution to depth bins on [patch, class token] of every layer, without a norm."""

    task, views, layers = "dpt", 2, 4
    known_by, geometry_kind = ("conv_depth.weight", 4), DepthGeometry

    def __init__(
        self, inputs: int, bins: int, geometry: DepthGeometry, layers: int | None = None
    ) -> None:
        super().__init__(inputs, layers)
        self.geometry = geometry
        self.conv_depth = nn.Conv2d(inputs, bins, 1)
        self.register_buffer("centres", torch.linspace(*DEPTH_RANGE, bins), persistent=False)

    @classmethod
    def share(cls, layers: int) -> int:
        """Return the number of concatenated tokens: a patch and the class token of each layer."""
        return 2 * layers

    def takes(self, layers: int, dim: int) -> bool:
        """Whether the concatenated layers fit the convolution."""
        return 2 * layers * dim == self.conv_depth.in_channels

    def depth(self, layers: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the depth in metres, (B, h, w) at four times the grid, of layers (B, C, T, D).

        The published code upsamples the tokens and then convolves. A 1x1 convolution commutes with
        bilinear interpolation, whose weights sum to one, so the few logits are upsampled instead.
        """
        batch, _, tokens, _ = layers.shape
        rows, columns = size
        if rows * columns != tokens - 1:
            raise self.wrong(f"{tokens} tokens are not 1 + {rows}x{columns} patches")
        patches = layers[:, :, 1:]
        pairs = torch.cat([patches, layers[:, :, :1].expand_as(patches)], dim=-1)
        inputs = pairs.permute(0, 2, 1, 3).reshape(batch, tokens - 1, -1)
        weight, bias = self.conv_depth.weight.flatten(1), self.conv_depth.bias
        grid = F.linear(inputs, weight, bias).transpose(1, 2).reshape(batch, -1, rows, columns)
        logits = F.interpolate(grid, (4 * rows, 4 * columns), mode="bilinear", align_corners=False)
        weights = F.relu(logits) + 0.1
        weights = weights / weights.sum(dim=1, keepdim=True)
        return torch.einsum("bkhw,k->bhw", weights, self.centres)

    def _predict(self, feature: Tensor | np.ndarray) -> Tensor:
        """Return the depth in metres, float32 (height, width): the mean over unflipped views."""
        height, width = self.geometry.height, self.geometry.width
        size = (math.ceil(height / 14), math.ceil(width / 14))
        feature = self.checked(feature)
        depth = self.depth(feature, size).clamp(*DEPTH_RANGE)
        depth = F.interpolate(
            depth[:, None], (height, width), mode="bilinear", align_corners=False
        )[:, 0]
        views = [depth[0]] + [view.flip(-1) for view in depth[1:]]
        return torch.stack(views).mean(dim=0)

    def draw(
        self, feature: Tensor | np.ndarray | None, truth: Any, classes: Sequence[str] = ()
    ) -> Drawing | None:
        """Draw the depth, with colours for the range of the truth."""
        limits, metres = DEPTH_RANGE, None if truth is None else np.asarray(truth) / 1000.0
        if metres is not None and (metres > 0).any():
            limits = float(metres[metres > 0].min()), float(metres.max())
        if feature is not None:
            metres = self.predict(feature).numpy()
        return None if metres is None else draw_depth(metres, *limits)

    def _score(self, feature: Tensor | np.ndarray, truth: Any) -> tuple[float, float]:
        truth = np.asarray(truth)
        depth = self._predict(feature).double().numpy()
        if truth.shape != depth.shape:
            raise self.wrong(f"the ground truth is {truth.shape}, not {depth.shape}")
        if truth.dtype.kind not in "iu":
            raise self.wrong(f"the ground truth is {truth.dtype}, not whole millimetres")
        window = (slice(*self.geometry.rows), slice(*self.geometry.columns))
        predicted, target = depth[window], truth[window].astype(np.float64) / 1000.0
        valid = (target > DEPTH_RANGE[0]) & (target < DEPTH_RANGE[1])
        if not valid.any():
            raise self.wrong("the ground truth has no valid depth")
        error = predicted[valid] - target[valid]
        return float(np.sqrt(np.mean(error**2))), float(np.mean(np.abs(error) / target[valid]))


class Depth(LinearTask):
    """RMSE and mean absolute relative error of the depth."""

    facts, views, layers, head_kind = TASKS["dpt"], VIEWS["dpt"], DepthHead.layers, DepthHead
