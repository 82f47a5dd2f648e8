"""Classification by hypervectors: a head's output is compared with a key vector of each class.

Keys are random vectors of -1 and 1, nearly orthogonal where they are long. A class more is a key
more: the network stays as it is. What is far from every key is of no known class.
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

    A class's key depends on its number, the length and the seed, not on how many classes there are.
    """
    rows = [np.random.default_rng([seed, label]).integers(0, 2, dims) for label in range(classes)]
    return np.float32(2) * np.stack(rows).astype(np.float32) - 1


class HypervectorHead(ClsHead):
    """A hidden layer and an output of the keys' length, on what a linear head of `cls` takes.

    Attributes:
        keys: float32 (classes, dims); scores are cosine similarities with them.

    Args:
        inputs: What :meth:`ClsHead.pooled` gives.
        sizes: Of the hidden layer, of the output, and the number of classes.
        layers: C of the features.
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
        """Return the similarities that are not negative."""
        return predicted.clamp(0, 1).numpy()

    def loss(self, predicted: Tensor, label: int) -> Tensor:
        """Return the cosine distance to the key of a class, 0 to 2."""
        return 1 - predicted[label]

    def novelty(self, feature: Tensor | np.ndarray) -> float:
        """Return the cosine distance to the nearest key: the larger, the less of a known class."""
        return 1 - float(self.predict(feature).max())

    @torch_state(grad=False)
    def with_class(self, features: Sequence[Tensor | np.ndarray]) -> HypervectorHead:
        """Return a head that knows one class more, by a few features of it, without training."""
        if not features:
            raise self.wrong("a new class needs at least one feature")
        return self.with_key(torch.stack([self.output(feature) for feature in features]))

    def with_key(self, outputs: Tensor) -> HypervectorHead:
        """Return a head with a key more: the mean direction of outputs (B, dims).

        Twice as many images of new classes are told by it as by the majority of their signs.
        """
        key = nn.functional.normalize(outputs, dim=1).mean(dim=0)
        head = copy.deepcopy(self)
        head.keys = torch.vstack([self.keys, key])
        return head


class Hypervector(Classification):
    """Rank of the true class by similarity with its key, and the distance to that.

    Args and samples as of `Classification`.
    """

    facts = replace(
        TASKS["cls"],
        name="hypervector",
        title="image classification by hypervectors",
        loss=Loss("cosine distance", noticeable=0.05),
    )
    head_kind = HypervectorHead
