"""Retrieval of the same identity by other cameras, as Market-1501 evaluates it.

A gallery's images of the query's identity *and* camera are left out of the ranking, and so is junk,
of identity -1. Average precision is the mean, over all images of the identity that are left, of the
precision at its place; where distances are equal, its expectation over the orders of the equal
ones. Distances are Euclidean.

References: Zheng et al., Scalable person re-identification: a benchmark, ICCV 2015; McSherry and
Najork, Computing information retrieval performance measures efficiently in the presence of tied
scores, ECIR 2008; Brown et al., Smooth-AP: smoothing the path towards large-scale image retrieval,
ECCV 2020.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cfqa_data.builders.sources.instances import JUNK
from cfqa_data.builders.tasks.classification import ClsHead
from cfqa_data.builders.tasks.drawing import SHOWN, Bar, Drawing
from cfqa_data.builders.tasks.linear import LinearTask
from cfqa_data.errors import BuildError, prefixed
from cfqa_data.extras import extras
from cfqa_data.format.checkpoints import load_tensors, required_tensor
from cfqa_data.format.facts import Loss, Score, TaskFacts, Truth

with extras("build"):
    from torch import Tensor, nn
    from torch.nn import functional

__all__ = ["GALLERY", "Embedder", "Retrieval", "average_precision", "ranked"]

GALLERY = ("gallery", "gallery_truths")
"""Tensors of a head's file: embeddings (images, D), and (identity, camera) of each image."""

TEMPERATURE = 0.01


def average_precision(distances: np.ndarray, found: np.ndarray) -> float:
    """Return the average precision of a ranking, in expectation over the orders of ties.

    Args:
        distances: (images,), the nearest first.
        found: bool (images,), which of them are to be found; one at least.
    """
    _, tie = np.unique(distances, return_inverse=True)
    sizes, hits = np.bincount(tie), np.bincount(tie, found)
    place, of = np.arange(1, len(tie) + 1), np.repeat(np.arange(len(sizes)), sizes)
    within = place - 1 - (np.cumsum(sizes) - sizes)[of]  # images of the tie before each
    before = (np.cumsum(hits) - hits)[of] + within * (hits[of] - 1) / np.maximum(sizes[of] - 1, 1)
    return float(np.sum(hits[of] / sizes[of] * (before + 1) / place) / hits.sum())


def smooth_precision(distances: np.ndarray, found: np.ndarray) -> float:
    """Return the smooth average precision: steps are logistic functions of a temperature of 0.01.

    Args:
        distances: (images,), of embeddings of length 1.
        found: bool (images,), which of them are to be found; one at least.
    """
    gaps = distances[found][:, None] - distances
    ahead = 0.5 + 0.5 * np.tanh(gaps / (2 * TEMPERATURE))  # half of each image itself
    hits = 0.5 + ahead[:, found].sum(axis=1)
    return float(np.mean(hits / (hits + ahead[:, ~found].sum(axis=1))))


def ranked(
    query: np.ndarray, truth: np.ndarray, gallery: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the distances of the gallery's images that count, and which are to be found.

    Args:
        query: embedding (D,).
        truth: its identity and camera.
        gallery: ``embeddings`` (images, D), ``identities`` and ``cameras`` (images,).
    """
    counted = counts(truth, gallery)
    gaps = gallery["embeddings"][counted].astype(np.float64) - query
    return np.sqrt(np.square(gaps).sum(axis=1)), gallery["identities"][counted] == truth[0]


def counts(truth: np.ndarray, gallery: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return which of the gallery's images count for a query, bool (images,)."""
    same = (gallery["identities"] == truth[0]) & (gallery["cameras"] == truth[1])
    return (gallery["identities"] != JUNK) & ~same


class Embedder(ClsHead):
    """Class tokens and mean patch token as one vector of length 1, through a residual unit.

    Attributes:
        gallery: what queries are searched in, as :func:`ranked` takes it.
    """

    task = "retrieval"
    gallery: Mapping[str, np.ndarray]

    def __init__(self, inputs: int, hidden: int, layers: int | None = None) -> None:
        super().__init__(inputs, hidden, layers)
        self.back = nn.Linear(hidden, inputs)
        self.last = nn.LayerNorm(inputs)

    def forward(self, pooled: Tensor) -> Tensor:
        """Return embeddings (B, D) of what :meth:`pooled` returns."""
        return functional.normalize(self.unit(pooled), dim=-1)

    def unit(self, pooled: Tensor) -> Tensor:
        """Return what embeddings are the directions of."""
        changed = self.back(functional.gelu(self.linear(pooled)))
        found: Tensor = self.last(pooled + changed)
        return found

    def _predict(self, feature: Tensor | np.ndarray) -> Tensor:
        """Return the embedding, float32 (D,), of a feature (1, C, T, D) of the backbone."""
        return self(self.pooled(self.checked(feature)))[0]

    @classmethod
    def load(
        cls,
        path_or_dict: str | Path | Mapping[str, Any],
        norm: nn.LayerNorm | None = None,
        layers: int | None = None,
    ) -> Any:
        """Return the embedder of a file that holds the gallery, too."""
        tensors, origin = load_tensors(path_or_dict, "retrieval head")
        gallery = [required_tensor(tensors, name, 2, origin, "retrieval head") for name in GALLERY]
        rest = {name: tensor for name, tensor in tensors.items() if name not in GALLERY}
        with prefixed(origin, BuildError):
            head = super().load(rest, norm, layers)
        vectors, truths = gallery[0].float().numpy(), gallery[1].numpy()
        if vectors.shape[1] != head.linear.in_features or truths.shape != (len(vectors), 2):
            shapes = f"{vectors.shape} and {truths.shape}"
            raise BuildError(
                f"{origin}: gallery and ground truth are {shapes}, not (images, D) and 2"
            )
        identities, cameras = np.ascontiguousarray(truths.T)
        head.gallery = {"embeddings": vectors, "identities": identities, "cameras": cameras}
        return head


class Retrieval(LinearTask):
    """Average precision of a query; features are embeddings (1, 1, 1, D).

    Args:
        backbone: whose class token and mean patch token are embedded.
        weights: of the embedding, with the gallery.
        blocks: the layer of them.
    """

    facts = TaskFacts(
        name="retrieval",
        title="retrieval of images of the same identity by other cameras",
        score=Score("average precision", lower_better=False, noticeable=0.01),
        loss=Loss("1 - smooth average precision", noticeable=0.01),
        truth=Truth("int64", 1),
    )
    views, layers, head_kind = ("image",), 1, Embedder

    def embed(self, feature: Tensor | np.ndarray) -> np.ndarray:
        """Return the embedding (1, 1, 1, D) of a feature of the backbone."""
        return self.head.predict(feature).numpy()[None, None, None]

    def gallery(self) -> Mapping[str, np.ndarray]:
        """Return the embeddings of the images that are searched, their identities and cameras."""
        return dict(self.head.gallery)

    def draw(
        self, feature: Tensor | np.ndarray | None, truth: Any, classes: Sequence[str] = ()
    ) -> Drawing:
        """Draw the nearest images of the gallery, without those of the same identity and camera."""
        gallery = self.head.gallery
        own = np.asarray((JUNK, JUNK) if truth is None else truth)
        if feature is None:
            text = f"identity {own[0]}, by other cameras than {own[1]}"
            return Drawing(bars=() if truth is None else (Bar(text, 1.0, "", True),))
        distances, found = ranked(np.asarray(feature)[0, 0, 0], own, gallery)
        counted = counts(own, gallery)
        names = [
            f"identity {identity}, camera {camera}"
            for identity, camera in zip(
                gallery["identities"][counted], gallery["cameras"][counted], strict=True
            )
        ]
        return Drawing(
            bars=tuple(
                Bar(names[k], max(0.0, 1 - distances[k] / 2), f"{distances[k]:.2f}", bool(found[k]))
                for k in np.argsort(distances, kind="stable")[:SHOWN]
            )
        )

    def score(self, feature: Tensor | np.ndarray, truth: Any) -> tuple[float, float]:
        """Return the average precision of a query, and 1 less the smooth one."""
        query, truth = np.asarray(feature), np.asarray(truth)
        width = self.head.gallery["embeddings"].shape[1]
        if query.shape != (1, 1, 1, width) or not np.isfinite(query).all():
            raise self.head.wrong(
                f"an embedding must be finite and of shape (1, 1, 1, {width}), not {query.shape}"
            )
        if truth.shape != (2,) or truth.dtype.kind not in "iu":
            raise self.head.wrong(
                f"the ground truth must be identity and camera, not {truth.dtype} {truth.shape}"
            )
        distances, found = ranked(query[0, 0, 0], truth, self.head.gallery)
        if not found.any():
            identity, camera = truth.tolist()
            lacking = f"identity {identity} by another camera than {camera}"
            raise self.head.wrong(f"the gallery has no image of {lacking}")
        return average_precision(distances, found), 1 - smooth_precision(distances, found)
