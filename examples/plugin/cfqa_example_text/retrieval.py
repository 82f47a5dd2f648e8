"""A task with a gallery: which passage a question is about, found by its embedding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cfqa_data.builders.backbones.base import Backbone
from cfqa_data.builders.sources.base import Sample
from cfqa_data.builders.tasks.base import Task
from cfqa_data.errors import BuildError
from cfqa_data.format.facts import Loss, Score, TaskFacts, Truth

from .passages import passages

__all__ = ["Retrieval"]


class Retrieval(Task):
    """The rank of a question's passage in a gallery, by the cosine of mean-pooled embeddings.

    Args:
        backbone: that gives the features.
        blocks: numbers of the layers that features have.
        count: passages of the gallery; that of the source.
    """

    facts = TaskFacts(
        name="retrieval",
        title="retrieval of a passage",
        score=Score("rank", lower_better=True, noticeable=0.5),
        loss=Loss("1 - cosine", noticeable=0.01),
        truth=Truth("int64", 0),
    )

    def __init__(self, backbone: Backbone, blocks: Sequence[int], count: int = 40) -> None:
        features = [backbone.extract(passage, blocks) for passage in passages(count)]
        self.embeddings = np.stack([_embedding(feature) for feature in features])

    def gallery(self) -> Mapping[str, np.ndarray]:
        """Return the embeddings of the passages, float64 (passages, C*D), of length 1."""
        return {"embeddings": self.embeddings}

    def score(self, feature: Any, truth: np.ndarray) -> tuple[float, float]:
        """Return the rank of the true passage, 1 for the first, and its distance.

        Of passages that are equally near, the rank is the mean over their orders.
        """
        embedding = _embedding(feature)
        if embedding.shape != self.embeddings.shape[1:] or not np.isfinite(embedding).all():
            raise BuildError(f"retrieval: not a feature of these blocks: {np.shape(feature)}")
        cosines = self.embeddings @ embedding
        true = cosines[int(truth)]
        others = np.delete(cosines, int(truth))
        rank = 1 + np.sum(others > true) + np.sum(others == true) / 2
        return float(rank), float(1 - true)

    def accepts(
        self, feature: Callable[[], np.ndarray], sample: Sample, accepted: Sequence[Sample]
    ) -> str | None:
        """Take the questions whose passage comes first by the uncompressed feature."""
        rank, _ = self.score(feature(), sample.truth)
        return None if rank == 1 else "not found first"


def _embedding(feature: Any) -> np.ndarray:
    """Return the mean over tokens of (1, C, T, D), as one vector (C*D,) of length 1."""
    mean = np.asarray(feature, np.float64).mean(axis=2).reshape(-1)
    return mean / max(float(np.linalg.norm(mean)), 1e-12)
