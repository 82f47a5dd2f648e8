"""A backbone that is no vision transformer: a vector per word, and one of it and its neighbours."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from cfqa_data.builders.backbones.base import Backbone
from cfqa_data.errors import BuildError
from cfqa_data.format.facts import Layer

__all__ = ["HashedWords"]


class HashedWords(Backbone):
    """Words hashed to vectors; block 1 is tanh of a random map of a word and its neighbours' mean.

    Args:
        width: D, channels of a token.
    """

    name = "hashed-words"
    prefix_tokens = 0
    layers = 2

    def __init__(self, width: int = 32) -> None:
        self.width = width
        self._map = np.random.default_rng(7).normal(size=(2 * width, width)) / np.sqrt(width)

    def extract(self, inputs: str, layers: Sequence[int]) -> np.ndarray:
        """Return the tokens of a sentence, float32 (1, C, words, D)."""
        if not all(0 <= layer < self.layers for layer in layers):
            raise BuildError(f"{self.name}: layers are 0 to {self.layers - 1}, not {list(layers)}")
        words = np.stack([self._vector(word) for word in inputs.split()])
        around = np.pad(words, ((1, 1), (0, 0)))
        neighbours = (around[:-2] + around[2:]) / 2
        blocks = [words, np.tanh(np.hstack([words, neighbours]) @ self._map)]
        return np.stack([blocks[layer] for layer in layers])[None].astype(np.float32)

    def layer(self, index: int) -> Layer:
        """Return the name of a layer."""
        return Layer(("words", "mixed")[index])

    def _vector(self, word: str) -> np.ndarray:
        # Of its first letters, so that a codec that keeps only these is not all harm.
        vectors = []
        for end in range(1, len(word) + 1):
            seed = hashlib.sha256(word[:end].encode()).digest()[:8]
            rng = np.random.default_rng(int.from_bytes(seed, "little"))
            vectors.append(rng.normal(size=self.width))
        return np.mean(vectors, axis=0)
