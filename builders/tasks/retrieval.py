"""Retrieval of images of the same identity by other cameras, evaluated as on Market-1501.

Images of the gallery with the query's identity *and* camera, and junk images (identity -1), are
excluded from the ranking. Average precision is the mean of the precision at the ranks of all
remaining images of the identity; ties are averaged over all their orders. Distances are Euclidean.

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
"""Tensors in a head's file: embeddings (images, D), and (identity, camera) of each image."""

TEMPERATURE = 0.01


def average_precision(distances: np.ndarray, relevant: np.ndarray) -> float:
    """Return the average precision of a ranking, in expectation over the orders of ties.

    Args:
        distances: Distance of each image, (images,).
        relevant: Whether each image is relevant, bool (images,); at least one is.
    """
    _, tie = np.unique(distances, return_inverse=True)
    sizes, hits = np.bincount(tie), np.bincount(tie, relevant)
    rank, t = np.arange(1, len(tie) + 1), np.repeat(np.arange(len(sizes)), sizes)  # t: tie of rank
    within = rank - 1 - (np.cumsum(sizes) - sizes)[t]  # images of the same tie before each
    before = (np.cumsum(hits) - hits)[t] + within * (hits[t] - 1) / np.maximum(sizes[t] - 1, 1)
    return float(np.sum(hits[t] / sizes[t] * (before + 1) / rank) / hits.sum())


def smooth_precision(distances: np.ndarray, relevant: np.ndarray) -> float:
    """Return the smooth average precision, with logistic functions of temperature 0.01 as steps.

    Args:
        distances: Distance of each image, (images,), between embeddings of length 1.
        relevant: Whether each image is relevant, bool (images,); at least one is.
    """
    gaps = distances[relevant][:, None] - distances
    ahead = 0.5 + 0.5 * np.tanh(gaps / (2 * TEMPERATURE))  # 1/2 for an image and itself
    hits = 0.5 + ahead[:, relevant].sum(axis=1)
    return float(np.mean(hits / (hits + ahead[:, ~relevant].sum(axis=1))))


def ranked(
    query: np.ndarray, truth: np.ndarray, gallery: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the distances of the gallery's images that are ranked, and which are relevant.

    Args:
        query: Embedding of the query, (D,).
        truth: Identity and camera of the query.
        gallery: Arrays ``embeddings`` (images, D), ``identities`` and ``cameras`` (images,).
    """
    mask = ranked_mask(truth, gallery)
    gaps = gallery["embeddings"][mask].astype(np.float64) - query
    return np.sqrt(np.square(gaps).sum(axis=1)), gallery["identities"][mask] == truth[0]


def ranked_mask(truth: np.ndarray, gallery: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return which of the gallery's images are ranked for a query, bool (images,)."""
    same = (gallery["identities"] == truth[0]) & (gallery["cameras"] == truth[1])
    return (gallery["identities"] != JUNK) & ~same


class Embedder(ClsHead):
    """Embedding of length 1 from the class tokens and mean patch token, by a residual unit.

    Attributes:
        gallery: Gallery that queries are searched in, as for :func:`ranked`.
    """

    task = "retrieval"
    gallery: Mapping[str, np.ndarray]

    def __init__(self, inputs: int, hidden: int, layers: int | None = None) -> None:
        super().__init__(inputs, hidden, layers)
        self.back = nn.Linear(hidden, inputs)
        self.last = nn.LayerNorm(inputs)

    def forward(self, pooled: Tensor) -> Tensor:
        """Return the embeddings (B, D) of pooled features (B, inputs)."""
        return functional.normalize(self.unit(pooled), dim=-1)

    def unit(self, pooled: Tensor) -> Tensor:
        """Return the output of the residual unit; embeddings are its direction."""
        residual = self.back(functional.gelu(self.linear(pooled)))
        output: Tensor = self.last(pooled + residual)
        return output

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
        """Load the embedder and the gallery from a file."""
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
        backbone: Backbone of the features, whose class token and mean patch token are embedded.
        weights: Path of the embedder and the gallery.
        blocks: Index of the features' layer.
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
        """Return the embeddings, identities and cameras of the images that are searched."""
        return dict(self.head.gallery)

    def draw(
        self, feature: Tensor | np.ndarray | None, truth: Any, classes: Sequence[str] = ()
    ) -> Drawing:
        """Draw the nearest images of the gallery, except those of the same identity and camera."""
        gallery = self.head.gallery
        own = np.asarray((JUNK, JUNK) if truth is None else truth)
        if feature is None:
            text = f"identity {own[0]}, by other cameras than {own[1]}"
            return Drawing(bars=() if truth is None else (Bar(text, 1.0, "", True),))
        distances, relevant = ranked(np.asarray(feature)[0, 0, 0], own, gallery)
        mask = ranked_mask(own, gallery)
        identities, cameras = gallery["identities"][mask], gallery["cameras"][mask]
        return Drawing(
            bars=tuple(
                Bar(
                    f"identity {identities[k]}, camera {cameras[k]}",
                    max(0.0, 1 - distances[k] / 2),
                    f"{distances[k]:.2f}",
                    bool(relevant[k]),
                )
                for k in np.argsort(distances, kind="stable")[:SHOWN]
            )
        )

    def score(self, feature: Tensor | np.ndarray, truth: Any) -> tuple[float, float]:
        """Return the average precision of a query, and 1 minus the smooth one."""
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
        distances, relevant = ranked(query[0, 0, 0], truth, self.head.gallery)
        if not relevant.any():
            identity, camera = truth.tolist()
            raise self.head.wrong(
                f"the gallery has no image of identity {identity} by another camera than {camera}"
            )
        return average_precision(distances, relevant), 1 - smooth_precision(distances, relevant)
