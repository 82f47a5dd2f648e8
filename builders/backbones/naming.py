"""Map the tensor names of DINOv2 checkpoints in other layouts to the official names.

Three layouts are known, each by its keys: the official one; the official one with its blocks in
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

#: Tensors by which a backbone is known, behind any prefix.
_MARKS = ("cls_token", "pos_embed", "patch_embed.proj.weight")
#: Patterns of official names, and what the Hub's layout has for them.
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
    """What a file calls the tensors of the official checkpoint.

    Attributes:
        hub: the names are those of the Hub's layout.
        prefix: what stands before every name.
        chunks: block -> chunk, if the blocks are in chunks.
    """

    hub: bool = False
    prefix: str = ""
    chunks: Mapping[int, int] = field(default_factory=dict)

    def __call__(self, official: str) -> tuple[str, ...]:
        """Names of the tensors that make up the official one, stacked along their first axis."""
        if self.chunks:
            official = re.sub(r"^blocks\.(\d+)", self._in_chunk, official)
        if self.hub:
            for pattern, hub in _HUB.items():
                official = re.sub(pattern, hub, official)
            if ".attn.qkv." in official:
                parts = (official.replace(".attn.qkv.", part) for part in _HUB_QKV)
                return tuple(self.prefix + part for part in parts)
        return (self.prefix + official,)

    def _in_chunk(self, found: re.Match[str]) -> str:
        # A block that is missing would lie in the chunk of the one before it.
        before = [block for block in self.chunks if block <= int(found[1])]
        return f"blocks.{self.chunks[max(before)] if before else 0}.{found[1]}"

    def blocks(self, names: Iterable[str]) -> set[int]:
        """Numbers, below 1000, of the blocks that some of the names belong to."""
        if self.chunks:
            return set(self.chunks)
        stem = re.escape(self.prefix) + (r"encoder\.layer" if self.hub else "blocks")
        pattern = re.compile(stem + r"\.([0-9]{1,3})\.")
        return {int(found[1]) for name in names if (found := pattern.match(name))}


def recognise(state: Mapping[str, Tensor], origin: str) -> tuple[dict[str, Tensor], Naming]:
    """Find a backbone in a state dict, and tell by its names how it calls its tensors.

    Args:
        state: of the backbone, or of a model around it.
        origin: of the state dict, for messages.

    Returns:
        The backbone's tensors, and their naming; official where nothing else is found.

    Raises:
        BuildError: there are several, and not one of them is a teacher's.
    """
    hub_marks = tuple(Naming(hub=True)(mark)[0] for mark in _MARKS)
    hub = any(name.endswith(hub_marks) for name in state)
    state, prefix = find_network(state, hub_marks if hub else _MARKS, origin)
    if hub:
        return state, Naming(hub=True, prefix=prefix)
    pattern = re.compile(re.escape(prefix) + r"blocks\.([0-9]{1,3})\.([0-9]{1,3})\.")
    places = filter(None, map(pattern.match, state))
    return state, Naming(prefix=prefix, chunks={int(found[2]): int(found[1]) for found in places})


def to_official(
    found: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    naming: Naming,
    origin: str,
    what: str,
) -> dict[str, Tensor]:
    """Check a file's tensors against the official ones and return them under official names.

    Only tensors that the file splits are copied; all others stay views of the file.

    Args:
        found: the file's tensors.
        expected: official name -> a tensor of the right shape.
        naming: how the file calls them.
        origin: the file, for messages.
        what: what the tensors make up, for messages.

    Raises:
        BuildError: a tensor is missing, left over or misshapen, named as the file names it.
    """
    in_file: dict[str, Tensor] = {}
    for name, tensor in expected.items():
        parts = naming(name)
        in_file |= zip(parts, tensor.chunk(len(parts)), strict=True)
    check_tensors(found, in_file, origin, what)
    tensors = {name: [found[part] for part in naming(name)] for name in expected}
    return {name: of[0] if len(of) == 1 else torch.cat(of) for name, of in tensors.items()}
