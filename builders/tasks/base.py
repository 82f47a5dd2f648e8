"""The `Task` base class, which scores features against the truth, and the registry of tasks."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any, ClassVar

import numpy as np

from cfqa_data.builders.sources.base import Sample
from cfqa_data.builders.tasks.drawing import Drawing
from cfqa_data.errors import BuildError
from cfqa_data.format.facts import TaskFacts
from cfqa_data.registry import Registry
from cfqa_data.torch_state import torch_state

__all__ = ["TASKS", "Task"]


class Task(ABC):
    """Base class of tasks, which score features against the truth.

    The constructor of a subclass takes a recipe's `options` and, if it declares them, `backbone`,
    `blocks` (indices of the features' layers) and `weights` (path of the head, or None).

    Attributes:
        facts: Title, score, loss and truth of the task.
        views: Names of the views, along axis N of features; empty if unknown.
        layers: Required number of layers, C; None for any.
    """

    facts: ClassVar[TaskFacts]
    views: ClassVar[tuple[str, ...]] = ()
    layers: ClassVar[int | None] = None
    declared: ClassVar[Mapping[str, Any]] = {
        "facts": TaskFacts,
        "views": tuple | list,
        "layers": Integral | None,
    }

    def infer_truth(self, feature: np.ndarray) -> Any:
        """Return the truth of a sample, inferred from its original, such as a prediction.

        If a task overrides this method, the truths of the source are not used.

        Args:
            feature: Original, float32 (N, C, T, D).
        """
        raise NotImplementedError

    def embed(self, feature: np.ndarray) -> np.ndarray:
        """Embed a feature of the backbone; a dataset stores the embedding, and the task scores it.

        If a task overrides this method, its features have no token grid and no class token.

        Args:
            feature: Feature of the backbone, float32 (N, C, T, D).

        Returns:
            Embedding, float32 (N, C, T, D), with the same C.
        """
        return feature

    def gallery(self) -> Mapping[str, np.ndarray] | None:
        """Return arrays by name that all sources are scored against; None if there are none.

        An example are the embeddings that a retrieval searches. A dataset stores the arrays.
        """
        return None

    @abstractmethod
    def score(self, feature: np.ndarray, truth: Any) -> tuple[float, float | None]:
        """Return the score and the loss of a feature; the loss is None if the task has none.

        Args:
            feature: Feature to score, float32 (N, C, T, D).
            truth: Truth of the sample; None if the task has none.

        Raises:
            BuildError: If the feature or the truth does not fit the task.
        """

    def prepare(self, truth: Any) -> Any:
        """Convert a truth for :meth:`score`, once for all features of a sample.

        The method must return a converted truth unchanged.

        Args:
            truth: Truth of the sample; None if the task has none.
        """
        return truth

    @torch_state()
    def scores(self, features: np.ndarray, truth: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return scores and losses, float64 (B,) each, of versions of one sample's feature.

        Losses are NaN if the task has none.

        Args:
            features: Features, float32 (B, N, C, T, D).
            truth: Truth of the sample.

        Raises:
            BuildError: If :meth:`score` returns something invalid.
        """
        truth = self.prepare(truth)
        pairs = [self._pair(self.score(feature, truth)) for feature in features]
        scores, losses = np.array(pairs, np.float64).T
        return scores, losses

    def _pair(self, result: Any) -> tuple[Any, Any]:
        """Validate what `score` returned, and replace a missing loss by NaN."""
        what = f"{type(self).__name__}.score must return"
        if not isinstance(result, tuple | list) or len(result) != 2:
            raise BuildError(f"{what} a pair (score, loss), got {result!r:.200}")
        score, loss = result
        if not _is_number(score):
            raise BuildError(f"{what} a number as score, got {score!r:.200}")
        if self.facts.loss is None and loss is not None:
            raise BuildError(
                f"{what} None as loss, since its facts declare none; got {loss!r:.200}"
            )
        if self.facts.loss is not None and not _is_number(loss):
            raise BuildError(
                f"{what} a number as loss, since its facts declare one; got {loss!r:.200}"
            )
        return score, math.nan if loss is None else loss

    def accepts(
        self, feature: Callable[[], np.ndarray], sample: Sample, accepted: Sequence[Sample]
    ) -> str | None:
        """Return None to accept a sample, or the reason to reject it, in a few words.

        Args:
            feature: Function that extracts the sample's feature (slow).
            sample: Next sample of the source.
            accepted: Samples accepted so far, without their inputs.
        """
        return None

    def predict(self, feature: np.ndarray) -> Any:
        """Return the task's prediction from a feature, for display."""
        raise NotImplementedError

    def draw(
        self, feature: np.ndarray | None, truth: Any, classes: Sequence[str] = ()
    ) -> Drawing | None:
        """Draw the prediction from a feature, or the truth; None if the task draws nothing.

        Args:
            feature: Feature, float32 (N, C, T, D); None to draw the truth itself.
            truth: Stored truth of the sample; None if there is none, or it is unknown.
            classes: Names of the classes that the source knows.
        """
        return None


def _is_number(value: Any) -> bool:
    array = np.asarray(value)
    return array.ndim == 0 and array.dtype.kind in "biuf"


TASKS = Registry(
    "task",
    {
        name: f"cfqa_data.builders.tasks.{name}:{name.capitalize()}"
        for name in ("classification", "hypervector", "segmentation", "depth")
    }
    | {
        "fidelity": "cfqa_data.builders.tasks.classification:Fidelity",
        "retrieval": "cfqa_data.builders.tasks.retrieval:Retrieval",
    },
    BuildError,
    Task,
)
"""All tasks by name."""
