"""Image classification: the rank of the true class, or of the class predicted from the original."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from cfqa_data.builders.backbones.base import Backbone
from cfqa_data.builders.sources.base import Sample
from cfqa_data.builders.tasks.drawing import Bar, Drawing, answers, class_name
from cfqa_data.builders.tasks.linear import Head, LinearTask
from cfqa_data.extras import extras
from cfqa_data.format.format_1 import TASKS, VIEWS

with extras("build"):
    import torch
    from torch import Tensor, nn

    from cfqa_data.builders.backbones.dinov2 import NORM_EPS

__all__ = ["Classification", "ClsHead", "Fidelity"]


class ClsHead(Head):
    """Linear on [class token of each layer, mean patch token of the last] after the final norm."""

    task, views, known_by = "cls", 1, ("weight", 2)
    # Names in the files of the Hub's classifiers:
    prefix, beside, whole_norm = "classifier.", ("dinov2.",), "dinov2.layernorm."

    def __init__(self, inputs: int, classes: int, layers: int | None = None) -> None:
        super().__init__(inputs, layers)
        self.norm = nn.LayerNorm(self.dim, eps=NORM_EPS)
        self.linear = nn.Linear(inputs, classes)

    @classmethod
    def share(cls, layers: int) -> int:
        """Return the number of class tokens, plus 1 for the mean."""
        return layers + 1

    def pooled(self, feature: Tensor) -> Tensor:
        """Pool features (B, C, T, D) into the inputs of the linear part, (B, inputs)."""
        tokens = self.norm(feature)
        return torch.cat([tokens[:, :, 0].flatten(1), tokens[:, -1, 1:].mean(dim=1)], dim=-1)

    def _predict(self, feature: Tensor | np.ndarray) -> Tensor:
        """Return the class logits, float32 (classes,), of a feature (1, 1, T, D)."""
        return self.linear(self.pooled(self.checked(feature)))[0]

    def _score(self, feature: Tensor | np.ndarray, truth: Any) -> tuple[float, float]:
        truth = np.asarray(truth)
        if truth.ndim or truth.dtype.kind not in "iu":
            raise self.wrong(f"a label must be one whole number, not {truth.dtype} {truth.shape}")
        predicted, label = self._predict(feature).double(), int(truth)
        if not 0 <= label < len(predicted):
            raise self.wrong(f"label {label} is not in 0..{len(predicted) - 1}")
        # Ties are ranked as in a stable descending sort.
        ahead = (predicted > predicted[label]).sum()
        ahead += (predicted[:label] == predicted[label]).sum()
        return float(1 + ahead), float(self.loss(predicted, label))

    def shares(self, predicted: Tensor) -> np.ndarray:
        """Return the probability of each class, for drawings."""
        return predicted.softmax(0).numpy()

    def draw(
        self, feature: Tensor | np.ndarray | None, truth: Any, classes: Sequence[str] = ()
    ) -> Drawing:
        """Draw the most likely classes, or the true one."""
        label, name = None if truth is None else int(truth), partial(class_name, classes=classes)
        if feature is None:
            return Drawing(bars=() if label is None else (Bar(name(label), 1.0, "", True),))
        return Drawing(bars=answers(self.shares(self.predict(feature)), label, name))

    def loss(self, predicted: Tensor, label: int) -> Tensor:
        """Return the negative log-likelihood of a class."""
        return torch.logsumexp(predicted, 0) - predicted[label]


class Classification(LinearTask):
    """Rank and negative log-likelihood of the true class, for correctly classified samples.

    Args:
        backbone: Backbone of the features.
        weights: Path of the head.
        blocks: Indices of the features' layers.
        per_class: Maximum number of samples of a class; 0 for no limit.
    """

    facts, views, layers = TASKS["cls"], VIEWS["cls"], ClsHead.layers
    head_kind: ClassVar[type[Head]] = ClsHead

    def __init__(
        self,
        backbone: Backbone,
        weights: Path,
        blocks: Sequence[int] | None = None,
        per_class: int = 1,
    ) -> None:
        super().__init__(backbone, weights, blocks)
        self.per_class = per_class

    def accepts(
        self, feature: Callable[[], np.ndarray], sample: Sample, accepted: Sequence[Sample]
    ) -> str | None:
        """Reject samples of a class that has enough, and samples that are classified wrongly."""
        if reason := super().accepts(feature, sample, accepted):
            return reason
        label = int(sample.truth)
        count = sum(int(other.truth) == label for other in accepted)
        if self.per_class and count >= self.per_class:
            return f"of class {label}, which is already taken"
        return None if self.score(feature(), sample.truth)[0] == 1 else "classified wrongly"


class Fidelity(LinearTask):
    """Rank and negative log-likelihood of the class predicted from the uncompressed feature."""

    facts = replace(
        TASKS["cls"],
        name="fidelity",
        title="image classification, against the class predicted from the uncompressed feature",
    )
    views, layers, head_kind = VIEWS["cls"], ClsHead.layers, ClsHead

    def infer_truth(self, feature: Tensor | np.ndarray) -> Any:
        """Return the class predicted from a feature."""
        return np.array(int(self.head.predict(feature).argmax()), np.int64)
