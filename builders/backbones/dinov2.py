"""DINOv2's vision transformer: pre-norm blocks with LayerScale, a class token, patch 14.

The implementation follows the description of the architecture (Oquab et al., "DINOv2: Learning
Robust Visual Features without Supervision", TMLR 2024). Parameters have the names of the official
checkpoints. Depth, width, patch and kind of MLP are inferred from the tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cfqa_data.builders.backbones import base
from cfqa_data.errors import BuildError, prefixed
from cfqa_data.extras import extras
from cfqa_data.format.facts import Layer
from cfqa_data.torch_inputs import as_tensor
from cfqa_data.torch_state import torch_state

with extras("build"):
    import torch
    from torch import Tensor, nn
    from torch.nn import functional as F

    from cfqa_data.builders.backbones.naming import recognise, to_official
    from cfqa_data.format.checkpoints import load_tensors, required_tensor

__all__ = ["PRECISIONS", "Backbone", "DinoV2", "VisionTransformer", "load_backbone"]

#: Names and dtypes of the operands of matrix products; sums are always float32.
PRECISIONS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

#: Offset of the target grid when computing the interpolation scale, as in the official code; the
#: scale, not the size, sets the sample positions.
POSITION_OFFSET = 0.1
NORM_EPS = 1e-6


class LayerScale(nn.Module):
    """Learned scale for each channel."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Attention(nn.Module):
    """Multi-head self-attention; the rows of `qkv` are queries, keys, values."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, dim // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        if self.training:
            # On CPUs, the backward pass of the fused attention would take most of a step.
            weights = (query @ key.transpose(-1, -2)) * query.shape[-1] ** -0.5
            mixed = weights.softmax(dim=-1).to(value.dtype) @ value
        else:
            mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, dim))


class Mlp(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwiGLU(nn.Module):
    """``w3(silu(a) * b)`` with ``a, b = w12(x)``."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(dim, 2 * hidden)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class Block(nn.Module):
    """Pre-norm transformer block with LayerScale on both branches."""

    def __init__(self, dim: int, num_heads: int, hidden: int, swiglu: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = Attention(dim, num_heads)
        self.ls1 = LayerScale(dim)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp: nn.Module = SwiGLU(dim, hidden) if swiglu else Mlp(dim, hidden)
        self.ls2 = LayerScale(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """Linear projection of the patches of an image, row by row."""

    def __init__(self, dim: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, patch)

    def forward(self, images: Tensor) -> Tensor:
        if images.is_cpu and not self.training:
            return self.proj(images).flatten(2).transpose(1, 2)  # bit-exact with the official code
        # One matrix product over unfolded patches is faster in the backward pass, and on GPUs it
        # avoids that cuDNN rounds the operands of a convolution to TF32.
        batch, channels, height, width = images.shape
        patch = self.proj.kernel_size[0]
        patches = images.reshape(batch, channels, height // patch, patch, width // patch, patch)
        rows = patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * patch * patch)
        return F.linear(rows, self.proj.weight.flatten(1), self.proj.bias)


class VisionTransformer(nn.Module):
    """DINOv2's transformer.

    Args:
        dim: Width D.
        depth: Number of blocks.
        num_heads: Number of attention heads; divides `dim`.
        hidden: Hidden width of the MLP (of one half, for SwiGLU).
        grid: Side of the square grid of patches of the trained position embedding.
        patch: Side of a patch in pixels.
        swiglu: Whether to use SwiGLU instead of the plain MLP.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        num_heads: int,
        hidden: int,
        grid: int,
        patch: int = 14,
        swiglu: bool = False,
    ) -> None:
        super().__init__()
        self.dim, self.grid, self.patch = dim, grid, patch
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid * grid, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, dim), requires_grad=False)
        self.patch_embed = PatchEmbed(dim, patch)
        self.blocks = nn.ModuleList(Block(dim, num_heads, hidden, swiglu) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)

    def positions(self, rows: int, columns: int) -> Tensor:
        """Return the position embedding for a grid of patches, (1, 1 + rows*columns, D)."""
        if rows == columns == self.grid:
            return self.pos_embed
        cls, patches = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        square = patches.reshape(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)
        scale = ((rows + POSITION_OFFSET) / self.grid, (columns + POSITION_OFFSET) / self.grid)
        resized = F.interpolate(
            square.float(),
            scale_factor=scale,
            mode="bicubic",
            align_corners=False,
            antialias=False,
            recompute_scale_factor=False,
        )
        return torch.cat([cls, resized.flatten(2).transpose(1, 2).to(cls.dtype)], dim=1)

    def embed(self, images: Tensor) -> Tensor:
        """Return the input tokens (B, T, D) of the first block for images (B, 3, H, W).

        Raises:
            BuildError: If the images have another shape, or are not a multiple of the patch.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise BuildError(f"images must be (B, 3, H, W), not {tuple(images.shape)}")
        height, width = images.shape[-2:]
        if height % self.patch or width % self.patch or not height * width:
            raise BuildError(
                f"the image size {height}x{width} is not a multiple of the patch size {self.patch}"
            )
        patches = self.patch_embed(images)
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), patches], dim=1)
        return tokens + self.positions(height // self.patch, width // self.patch)

    def run(self, tokens: Tensor, blocks: Sequence[int]) -> list[Tensor]:
        """Return the outputs (B, T, D) of blocks, given by increasing indices, before the norm.

        Raises:
            BuildError: If the indices are not increasing or out of range.
        """
        indices = list(blocks)
        if not indices or indices != sorted(set(indices)):
            raise BuildError(f"blocks must be increasing and at least one, not {indices}")
        if indices[0] < 0 or indices[-1] >= len(self.blocks):
            raise BuildError(f"blocks must be in 0..{len(self.blocks) - 1}, not {indices}")
        outputs = []
        for index, block in enumerate(self.blocks[: indices[-1] + 1]):
            tokens = block(tokens)
            if index in indices:
                outputs.append(tokens)
        return outputs

    @torch_state(grad=False)
    def extract(
        self, images: Tensor | np.ndarray, blocks: Sequence[int], precision: str = "float32"
    ) -> Tensor:
        """Return block outputs before the final norm, class token first.

        They do not depend on torch's global settings.

        Args:
            images: Normalised images, float32 (B, 3, H, W); H and W are divisible by the patch.
                They are moved to the backbone's device.
            blocks: Indices of the blocks, from 0, increasing.
            precision: Precision of the operands of matrix products: "float32", or "bfloat16" or
                "float16" by autocast; norms and sums stay float32.

        Returns:
            Features, float32 (B, len(blocks), T, D) with T = 1 + (H / patch) * (W / patch), on the
            images' device.

        Raises:
            BuildError: If images or blocks do not fit the backbone, or the precision is unknown.
        """
        if precision not in PRECISIONS:
            raise BuildError(f"no precision '{precision}'; known are {', '.join(PRECISIONS)}")
        with prefixed("images", BuildError, TypeError):
            images = as_tensor(images)
        if not images.is_floating_point():
            raise BuildError(f"images must be normalised floating point, not {images.dtype}")
        weights = self.cls_token
        dtype = PRECISIONS[precision]
        # Each weight is used once, so that a cache would only keep rounded copies in memory.
        with torch.autocast(
            weights.device.type, dtype, enabled=dtype != torch.float32, cache_enabled=False
        ):
            outputs = self.run(self.embed(images.to(weights)), blocks)
        return torch.stack(outputs, dim=1).to(images.device, torch.float32)


Backbone = VisionTransformer
"""Name of the class in version 0.1."""


@torch_state(grad=False)
def load_backbone(
    path_or_state_dict: str | Path | Mapping[str, Any], num_heads: int | None = None
) -> VisionTransformer:
    """Build the backbone of a checkpoint, in evaluation mode and float32.

    Files are memory-mapped, so that float32 weights take memory only when they are used.

    Args:
        path_or_state_dict: Official ``.pth`` or safetensors file; ``model.safetensors`` in the
            Hub's `transformers` layout, its index, or the folder of either; a checkpoint of a
            training that contains one of these; or their state dict.
        num_heads: Number of attention heads; ``dim / 64`` if None.

    Returns:
        The backbone, on the CPU if loaded from a file; it shares memory with float32 tensors.

    Raises:
        BuildError: If a tensor is missing, left over or misshapen; the message names it.
    """
    state, origin = load_tensors(path_or_state_dict, "state dict")
    state, naming = recognise(state, origin)
    what = "DINOv2 backbone"

    def need(official: str, ndim: int) -> Tensor:
        return required_tensor(state, naming(official)[0], ndim, origin, what)

    embed, projection = need("pos_embed", 3), need("patch_embed.proj.weight", 4)
    dim, rows = int(embed.shape[-1]), int(embed.shape[1])
    grid = math.isqrt(rows - 1)
    if grid < 1 or grid * grid != rows - 1:
        name = naming("pos_embed")[0]
        raise BuildError(f"{origin}: '{name}' has {rows} rows, not 1 + a square")
    depth = max(naming.blocks(state), default=0) + 1
    swiglu = naming("blocks.0.mlp.w12.weight")[0] in state
    heads = max(1, dim // 64) if num_heads is None else num_heads
    if heads < 1 or dim % heads:
        raise BuildError(f"{origin}: the width {dim} is not a multiple of {heads} heads")
    with torch.device("meta"):
        backbone = VisionTransformer(
            dim=dim,
            depth=depth,
            num_heads=heads,
            hidden=need(f"blocks.0.mlp.{'w3' if swiglu else 'fc2'}.weight", 2).shape[-1],
            grid=grid,
            patch=int(projection.shape[-1]),
            swiglu=swiglu,
        )
    state.setdefault(naming("mask_token")[0], torch.zeros(1, dim))
    official = to_official(state, backbone.state_dict(), naming, origin, what)
    backbone.load_state_dict({k: v.float() for k, v in official.items()}, assign=True)
    return backbone.eval()


class DinoV2(base.Backbone):
    """DINOv2 of any size: a layer is the output of a block, before the final norm.

    Inputs are normalised images, float32 (N, 3, H, W).

    Args:
        weights: Path of the weights, as for :func:`load_backbone`.
        num_heads: Number of attention heads; the width divided by 64 if None.
    """

    name = "DINOv2"
    prefix_tokens = 1

    def __init__(self, weights: Path, num_heads: int | None = None) -> None:
        self.network = load_backbone(weights, num_heads)
        self.width, self.layers = self.network.dim, len(self.network.blocks)
        self.norm = self.network.norm
        self.parameters = sum(weight.numel() for weight in self.network.parameters())

    def extract(self, inputs: Any, layers: Sequence[int]) -> np.ndarray:
        """Return the feature of one sample's images."""
        return self.network.extract(inputs, layers).numpy()

    def grid(self, inputs: Any) -> tuple[int, int]:
        """Return the rows and columns of patches."""
        height, width = inputs.shape[-2:]
        return height // self.network.patch, width // self.network.patch

    def shape(self, inputs: Any, layers: Sequence[int]) -> tuple[int, ...]:
        """Return the feature's shape, without extracting it."""
        return len(inputs), len(layers), 1 + math.prod(self.grid(inputs)), self.network.dim

    def layer(self, index: int) -> Layer:
        """Return the name of a block, whose output is taken before the final norm."""
        return Layer(f"block {index}", "before")
