"""Convert a backbone's state dict to the layout of `transformers`, in one file or in shards."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

__all__ = ["INDEX", "hub_layout", "sharded", "write_index"]

INDEX = "model.safetensors.index.json"
# Names written by `save_pretrained` of transformers 4.46.3 (Dinov2Model, with and without
# use_swiglu_ffn) -> the official tensor, or the official tensor and the third of `qkv`.
AROUND = {
    "embeddings.cls_token": "cls_token",
    "embeddings.mask_token": "mask_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
LAYER = {
    "norm1.weight": "norm1.weight",
    "norm1.bias": "norm1.bias",
    "attention.attention.query.weight": ("attn.qkv.weight", 0),
    "attention.attention.query.bias": ("attn.qkv.bias", 0),
    "attention.attention.key.weight": ("attn.qkv.weight", 1),
    "attention.attention.key.bias": ("attn.qkv.bias", 1),
    "attention.attention.value.weight": ("attn.qkv.weight", 2),
    "attention.attention.value.bias": ("attn.qkv.bias", 2),
    "attention.output.dense.weight": "attn.proj.weight",
    "attention.output.dense.bias": "attn.proj.bias",
    "layer_scale1.lambda1": "ls1.gamma",
    "norm2.weight": "norm2.weight",
    "norm2.bias": "norm2.bias",
    "layer_scale2.lambda1": "ls2.gamma",
}
MLP = {name: name for name in ("mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias")}
SWIGLU = {
    "mlp.weights_in.weight": "mlp.w12.weight",
    "mlp.weights_in.bias": "mlp.w12.bias",
    "mlp.weights_out.weight": "mlp.w3.weight",
    "mlp.weights_out.bias": "mlp.w3.bias",
}


def hub_layout(state: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Return an official state dict in the Hub's layout."""
    made = {prefix + name: state[source] for name, source in AROUND.items()}
    inner = SWIGLU if "blocks.0.mlp.w3.bias" in state else MLP
    dim = state["norm.bias"].numel()
    for block in range(sum(name.endswith(".ls1.gamma") for name in state)):
        for name, source in {**LAYER, **inner}.items():
            key = f"{prefix}encoder.layer.{block}.{name}"
            if isinstance(source, tuple):
                rows = slice(source[1] * dim, (source[1] + 1) * dim)
                made[key] = state[f"blocks.{block}.{source[0]}"][rows].clone()
            else:
                made[key] = state[f"blocks.{block}.{source}"]
    return made


def sharded(folder: Path, tensors: dict[str, Tensor], shards: int = 3) -> dict[str, str]:
    """Write shards and their index, and return which shard holds which tensor."""
    folder.mkdir(exist_ok=True)
    names = sorted(tensors)
    places = {}
    for number in range(shards):
        file, mine = f"model-{number:05}-of-{shards:05}.safetensors", names[number::shards]
        save_file({name: tensors[name] for name in mine}, folder / file)
        places |= dict.fromkeys(mine, file)
    write_index(folder, places)
    return places


def write_index(folder: Path, places: object) -> None:
    """Write the index of a folder's shards."""
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
