"""A task: which topic a sentence is about, told by the nearest prototype."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cfqa_data.builders.backbones.base import Backbone
from cfqa_data.builders.sources.base import Sample
from cfqa_data.builders.tasks.base import Task
from cfqa_data.builders.tasks.drawing import Bar, Drawing, answers
from cfqa_data.errors import BuildError
from cfqa_data.format.facts import Loss, Score, TaskFacts, Truth

from .sentences import TOPICS

__all__ = ["Topic"]


class Topic(Task):
    """Nearest prototype: the mean token of all words of a topic, in every layer.

    Args:
        backbone: that gives the features.
        blocks: numbers of the layers that features have.
        temperature: of the softmax over distances that the loss is of.
    """

    facts = TaskFacts(
        name="topic",
        title="topic of a sentence",
        score=Score("margin", lower_better=False, noticeable=0.01),
        loss=Loss("negative log-likelihood", noticeable=0.05),
        truth=Truth("int64", 0),
    )

    def __init__(self, backbone: Backbone, blocks: Sequence[int], temperature: float = 0.1) -> None:
        self.temperature = temperature
        features = [backbone.extract(words, blocks) for words in TOPICS.values()]
        self.prototypes = np.stack([_mean_token(feature) for feature in features])

    def score(self, feature: Any, truth: np.ndarray) -> tuple[float, float]:
        """Return the similarity to the true topic less that to the best other one, and the loss."""
        mean = _mean_token(np.asarray(feature, np.float64))
        if len(mean) != self.prototypes.shape[1] or not np.isfinite(mean).all():
            raise BuildError(f"topic: not a feature of these blocks: {np.shape(feature)}")
        found = self.prototypes @ mean
        label = int(truth)
        margin = found[label] - np.delete(found, label).max()
        scaled = found / self.temperature
        return float(margin), float(np.logaddexp.reduce(scaled) - scaled[label])

    def draw(self, feature: Any, truth: Any, classes: Sequence[str] = ()) -> Drawing:
        """Draw how near each topic is, or the true one."""
        names, right = list(TOPICS), None if truth is None else int(truth)
        if feature is None:
            return Drawing(bars=() if right is None else (Bar(names[right], 1.0, "", True),))
        shares = (self.prototypes @ _mean_token(np.asarray(feature, np.float64))).clip(0, 1)
        return Drawing(bars=answers(shares, right, names.__getitem__, "{:.2f}".format))

    def accepts(
        self, feature: Callable[[], np.ndarray], sample: Sample, accepted: Sequence[Sample]
    ) -> str | None:
        """Take what the uncompressed feature gets right."""
        margin, _ = self.score(feature(), sample.truth)
        return None if margin > 0 else "not recognised"


def _mean_token(feature: np.ndarray) -> np.ndarray:
    """Return the mean over tokens of (1, C, T, D), as one unit vector of C*D."""
    mean = feature.mean(axis=2).reshape(-1)
    return mean / max(float(np.linalg.norm(mean)), 1e-12)
