"""Map the tensor names of DINOv2 checkpoints in other layouts to the official names.

Three layouts are recognised by their keys: the official one; the official one with blocks in
chunks, as training writes it (``blocks.CHUNK.N.``); and that of the Hub's `transformers` models,
which splits `qkv` in three. `Naming` maps official tensor names to those of the file, so that
error messages use the file's names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cfqa_data.format.checkpoints import check_tensors, find_network

__all__ = ["Naming", "recognise", "to_official"]

#: Tensors by which a backbone is recognised, after any prefix.
_MARKS = ("cls_token", "pos_embed", "patch_embed.proj.weight")
#: Patterns of official names -> their replacements in the Hub's layout.
_HUB = {
    r"^(cls|mask)_token": r"embeddings.\1_token",
    r"^pos_embed": "embeddings.position_embeddings",
    r"^patch_embed\.proj": "embeddings.patch_embeddings.projection",
    r"^norm\.": "layernorm.",
    r"^blocks\.": "encoder.layer.",
    r"\.attn\.proj\.": ".attention.output.dense.",
    r"\.ls([12])\.gamma": r".layer_scale\1.lambda1",
    r"\.mlp\.w12\.": ".mlp.weights_in.",
    r"\.mlp\.w3\.": ".mlp.weights_out.",
}
_HUB_QKV = tuple(f".attention.attention.{part}." for part in ("query", "key", "value"))


@dataclass(frozen=True)
class Naming:
    """Names in a file of the tensors of the official checkpoint.

    Attributes:
        hub: Whether the names are those of the Hub's layout.
        prefix: Prefix of every name.
        chunks: Block -> chunk; empty if the blocks are not in chunks.
    """

    hub: bool = False
    prefix: str = ""
    chunks: Mapping[int, int] = field(default_factory=dict)

    def __call__(self, official: str) -> tuple[str, ...]:
        """Return the names of the tensors that, stacked along axis 0, give the official one."""
        if self.chunks:
            official = re.sub(r"^blocks\.(\d+)", self._in_chunk, official)
        if self.hub:
            for pattern, hub in _HUB.items():
                official = re.sub(pattern, hub, official)
            if ".attn.qkv." in official:
                parts = (official.replace(".attn.qkv.", part) for part in _HUB_QKV)
                return tuple(self.prefix + part for part in parts)
        return (self.prefix + official,)

    def _in_chunk(self, match: re.Match[str]) -> str:
        # A missing block is expected in the chunk of the block before it.
        before = [block for block in self.chunks if block <= int(match[1])]
        return f"blocks.{self.chunks[max(before)] if before else 0}.{match[1]}"

    def blocks(self, names: Iterable[str]) -> set[int]:
        """Return the indices, below 1000, of the blocks that the names belong to."""
        if self.chunks:
            return set(self.chunks)
        stem = re.escape(self.prefix) + (r"encoder\.layer" if self.hub else "blocks")
        pattern = re.compile(stem + r"\.([0-9]{1,3})\.")
        return {int(match[1]) for name in names if (match := pattern.match(name))}


def recognise(state: Mapping[str, Tensor], origin: str) -> tuple[dict[str, Tensor], Naming]:
    """Find a backbone in a state dict, and the naming of its tensors.

    Args:
        state: State dict of the backbone, or of a model that contains it.
        origin: Origin of the state dict, for messages.

    Returns:
        The backbone's tensors, and their naming; the official one if no other is recognised.

    Raises:
        BuildError: If there are several backbones, and none of them is a teacher's.
    """
    hub_marks = tuple(Naming(hub=True)(mark)[0] for mark in _MARKS)
    hub = any(name.endswith(hub_marks) for name in state)
    state, prefix = find_network(state, hub_marks if hub else _MARKS, origin)
    if hub:
        return state, Naming(hub=True, prefix=prefix)
    pattern = re.compile(re.escape(prefix) + r"blocks\.([0-9]{1,3})\.([0-9]{1,3})\.")
    matches = filter(None, map(pattern.match, state))
    return state, Naming(prefix=prefix, chunks={int(m[2]): int(m[1]) for m in matches})


def to_official(
    tensors: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    naming: Naming,
    origin: str,
    what: str,
) -> dict[str, Tensor]:
    """Check a file's tensors against the official ones, and return them under official names.

    Only tensors that the file splits are copied; all others stay views of the file.

    Args:
        tensors: Tensors of the file, by its names.
        expected: Official name -> tensor of the required shape.
        naming: Naming of the file.
        origin: Path of the file, for messages.
        what: Description of the model, for messages.

    Raises:
        BuildError: If a tensor is missing, left over or misshapen; the message has the file's name.
    """
    in_file: dict[str, Tensor] = {}
    for name, tensor in expected.items():
        parts = naming(name)
        in_file |= zip(parts, tensor.chunk(len(parts)), strict=True)
    check_tensors(tensors, in_file, origin, what)
    parts_of = {name: [tensors[part] for part in naming(name)] for name in expected}
    return {name: p[0] if len(p) == 1 else torch.cat(p) for name, p in parts_of.items()}
