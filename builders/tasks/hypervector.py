"""Classification by hypervectors: a head's output is compared with a key vector of each class.

Keys are random vectors of -1 and 1, which are nearly orthogonal if they are long. A new class needs
a new key only; the network stays unchanged. An output far from every key is of an unknown class.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cfqa_data.builders.tasks.classification import Classification, ClsHead
from cfqa_data.extras import extras
from cfqa_data.format.facts import Loss
from cfqa_data.format.format_1 import TASKS
from cfqa_data.torch_state import torch_state

with extras("build"):
    import torch
    from torch import Tensor, nn

__all__ = ["Hypervector", "HypervectorHead", "random_keys"]


def random_keys(classes: int, dims: int, seed: int = 0) -> np.ndarray:
    """Return a key per class, float32 (classes, dims) of -1 and 1.

    The key of a class depends on its number, `dims` and `seed`, not on the number of classes.
    """
    rows = [np.random.default_rng([seed, label]).integers(0, 2, dims) for label in range(classes)]
    return np.float32(2) * np.stack(rows).astype(np.float32) - 1


class HypervectorHead(ClsHead):
    """Hidden layer and output layer of the keys' length, on the inputs of a linear head of `cls`.

    Attributes:
        keys: Keys, float32 (classes, dims); predictions are cosine similarities with them.

    Args:
        inputs: Number of inputs, as :meth:`ClsHead.pooled` returns.
        sizes: Width of the hidden layer, width of the output, number of classes.
        layers: Number of layers of the features, C.
    """

    task, known_by = "hypervector", ("hidden.weight", 2)
    keys: Tensor

    def __init__(self, inputs: int, sizes: Sequence[int], layers: int | None = None) -> None:
        super().__init__(inputs, 1, layers)
        hidden, dims, classes = sizes
        self.hidden = nn.Linear(inputs, hidden)
        self.linear = nn.Linear(hidden, dims)
        self.register_buffer("keys", torch.ones(classes, dims))

    @classmethod
    def sizes(cls, shape_of: Callable[[str, int], Sequence[int]]) -> tuple[int, Any]:
        hidden, inputs = shape_of(*cls.known_by)
        classes, dims = shape_of("keys", 2)
        return inputs, (hidden, dims, classes)

    @torch_state(grad=False)
    def output(self, feature: Tensor | np.ndarray) -> Tensor:
        """Return the hypervector of a feature (1, C, T, D), float32 (dims,)."""
        return self.respond(self.pooled(self.checked(feature)))[0]

    def respond(self, pooled: Tensor) -> Tensor:
        """Return the hypervectors, (B, dims), of pooled features (B, inputs)."""
        return self.linear(torch.relu(self.hidden(pooled)))

    def _predict(self, feature: Tensor | np.ndarray) -> Tensor:
        """Return the cosine similarity with each class's key, float32 (classes,)."""
        return self.similarities(self.respond(self.pooled(self.checked(feature))))[0]

    def similarities(self, outputs: Tensor) -> Tensor:
        """Return the cosine similarities, (B, classes), of outputs (B, dims)."""
        return nn.functional.normalize(outputs, dim=1) @ nn.functional.normalize(self.keys, dim=1).T

    def shares(self, predicted: Tensor) -> np.ndarray:
        """Return the similarities, with negative ones replaced by 0."""
        return predicted.clamp(0, 1).numpy()

    def loss(self, predicted: Tensor, label: int) -> Tensor:
        """Return the cosine distance to the key of a class, 0 to 2."""
        return 1 - predicted[label]

    def novelty(self, feature: Tensor | np.ndarray) -> float:
        """Return the cosine distance to the nearest key; it is large for unknown classes."""
        return 1 - float(self.predict(feature).max())

    @torch_state(grad=False)
    def with_class(self, features: Sequence[Tensor | np.ndarray]) -> HypervectorHead:
        """Return a head with an additional class, from a few of its features, without training."""
        if not features:
            raise self.wrong("a new class needs at least one feature")
        return self.with_key(torch.stack([self.output(feature) for feature in features]))

    def with_key(self, outputs: Tensor) -> HypervectorHead:
        """Return a head with an additional key: the mean direction of outputs (B, dims).

        It recognises twice as many images of new classes as a key of majority signs.
        """
        key = nn.functional.normalize(outputs, dim=1).mean(dim=0)
        head = copy.deepcopy(self)
        head.keys = torch.vstack([self.keys, key])
        return head


class Hypervector(Classification):
    """Rank of the true class by similarity with its key, and the cosine distance to the key.

    The arguments and the accepted samples are those of `Classification`.
    """

    facts = replace(
        TASKS["cls"],
        name="hypervector",
        title="image classification by hypervectors",
        loss=Loss("cosine distance", noticeable=0.05),
    )
    head_kind = HypervectorHead
