"""Figures of the official DINOv2 code for two small backbones with deterministic weights.

The figures in official_backbone.json come from the public repository facebookresearch/dinov2 at
commit b8931f7 (14 August 2025), without xFormers, in float64 on torch 2.13.0 (the position
embedding is resized in float32 there, as always). To make them again:

    python tests/official_backbone.py CHECKOUT_OF_DINOV2
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FIGURES = Path(__file__).with_suffix(".json")
DIM, DEPTH, HEADS, GRID, PATCH = 32, 2, 2, 37, 14
KINDS = ("mlp", "swiglu")
#: Rows and columns of patches: the source grid, cls, dpt, and small ones.
GRIDS = ((37, 37), (16, 16), (35, 46), (5, 3), (1, 1))


def _uniform(seed: int, shape: tuple[int, ...]) -> Tensor:
    """Return uniform numbers in [-1, 1) from NumPy's frozen stream, exact in float32."""
    values = np.random.RandomState(seed).uniform(-1, 1, shape)
    return torch.from_numpy(values.astype(np.float32))


def weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return deterministic float32 weights by official name and shape."""
    made = {}
    for seed, name in enumerate(sorted(shapes)):
        noise, leaf = _uniform(seed, tuple(shapes[name])), name.rsplit(".", 2)[-2:]
        if leaf[-1] == "gamma" or (leaf[0].startswith("norm") and leaf[-1] == "weight"):
            made[name] = 1 + 0.5 * noise
        else:
            made[name] = noise if "." not in name else 0.3 * noise
    return made


def image(rows: int, columns: int) -> Tensor:
    """Return a deterministic float32 image (1, 3, H, W)."""
    return _uniform(1000 + 100 * rows + columns, (1, 3, PATCH * rows, PATCH * columns)) * 2


def figures(outputs: Tensor) -> list[list[float]]:
    """Return, per block of outputs (1, C, T, D), six values and the mean weighted by a wave."""
    found = []
    for block in outputs[0].double():
        last, flat = len(block) - 1, block.flatten()
        places = ((0, 0), (0, DIM - 1), (1, 1), (last // 2, 7), (last * 3 // 4, 20), (last, 31))
        wave = torch.cos(torch.arange(len(flat), dtype=torch.double))
        found.append([float(block[place]) for place in places] + [float((flat * wave).mean())])
    return found


def _official(kind: str, checkout: Path) -> tuple[Any, dict[str, Tensor]]:
    os.environ["XFORMERS_DISABLED"] = "1"
    sys.path.insert(0, str(checkout))
    from dinov2.models.vision_transformer import DinoVisionTransformer

    model = DinoVisionTransformer(
        img_size=GRID * PATCH,
        patch_size=PATCH,
        embed_dim=DIM,
        depth=DEPTH,
        num_heads=HEADS,
        init_values=1.0,
        ffn_layer={"mlp": "mlp", "swiglu": "swiglufused"}[kind],
        block_chunks=0,
    )
    state = weights({name: tuple(t.shape) for name, t in model.state_dict().items()})
    model.load_state_dict(state)
    return model.eval(), state


def main(checkout: Path) -> None:
    """Write the figures of the official code; print the difference of our float32 code."""
    from cfqa_data.builders.backbones.dinov2 import load_backbone

    written: dict[str, Any] = {}
    for kind in KINDS:
        official, state = _official(kind, checkout)
        ours = load_backbone(state, num_heads=HEADS)
        shapes = {name: list(tensor.shape) for name, tensor in state.items()}
        written[kind] = {"shapes": shapes, "grids": {}}
        for rows, columns in GRIDS:
            images, blocks = image(rows, columns), list(range(DEPTH))
            with torch.inference_mode():
                take = official.float()._get_intermediate_layers_not_chunked
                single = torch.stack(take(images, blocks), dim=1)
                take = official.double()._get_intermediate_layers_not_chunked
                double = torch.stack(take(images.double(), blocks), dim=1)
            official.load_state_dict(state)
            apart = (ours.extract(images, blocks) - single).abs().max() / single.abs().max()
            print(f"{kind} {rows}x{columns}: largest difference in float32 {float(apart):.1e}")
            rounded = [[round(v, 10) for v in row] for row in figures(double)]
            written[kind]["grids"][f"{rows}x{columns}"] = rounded
    text = json.dumps(written, indent=1)
    FIGURES.write_text(text + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
