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
    """Scores features of one backbone.

    The arguments of a subclass are `backbone`, `blocks` (the numbers of the layers that its
    features have), `weights` (the path of its head, or None), any of which it may leave out, and a
    recipe's `options`.

    Attributes:
        facts: Title, score, loss and truth of the task.
        views: Names of the N axis of its features; none where they are not known.
        layers: C of the features that it takes; None if any.
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
        """Return the truth of a sample by its uncompressed feature, such as a prediction from it.

        A task that has this method is scored against what it returns; truths of a source are not
        looked at.

        Args:
            feature: float32 (N, C, T, D).
        """
        raise NotImplementedError

    def embed(self, feature: np.ndarray) -> np.ndarray:
        """Return what a dataset keeps of a feature of the backbone, and the task scores.

        A task that has this method has features without grid or class token.

        Args:
            feature: float32 (N, C, T, D).

        Returns:
            float32 (N, C, T, D), with one C per layer.
        """
        return feature

    def gallery(self) -> Mapping[str, np.ndarray] | None:
        """Return what all sources are scored against, such as the embeddings that are searched.

        A dataset keeps it: arrays under any names. None for a task without.
        """
        return None

    @abstractmethod
    def score(self, feature: np.ndarray, truth: Any) -> tuple[float, float | None]:
        """Return a feature's score, and its loss; None where the task has none.

        Args:
            feature: float32 (N, C, T, D).
            truth: Of the sample; None where the task has none.

        Raises:
            BuildError: The feature or the truth does not fit the task.
        """

    def prepare(self, truth: Any) -> Any:
        """Return a truth as :meth:`score` takes it: what all features of a sample have in common.

        What it returns may be given to it again, and is then returned as it is.

        Args:
            truth: Of the sample; None where the task has none.
        """
        return truth

    @torch_state()
    def scores(self, features: np.ndarray, truth: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return scores and losses, float64 (B,) each, of versions of one sample's feature.

        Losses are NaN where the task has none.

        Args:
            features: float32 (B, N, C, T, D).
            truth: Of the sample.

        Raises:
            BuildError: :meth:`score` does not return what it has to.
        """
        truth = self.prepare(truth)
        found = [self._pair(self.score(feature, truth)) for feature in features]
        scores, losses = np.array(found, np.float64).T
        return scores, losses

    def _pair(self, found: Any) -> tuple[Any, Any]:
        """Check what `score` returned, and return it with NaN for no loss."""
        what = f"{type(self).__name__}.score must return"
        if not isinstance(found, tuple | list) or len(found) != 2:
            raise BuildError(f"{what} a pair (score, loss), got {found!r:.200}")
        score, loss = found
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
        """Return the reason to reject a sample, in a few words; None to accept it.

        Args:
            feature: Extracts the sample's feature when called (slow).
            sample: The next one of the source.
            accepted: The samples accepted so far, without their inputs.
        """
        return None

    def predict(self, feature: np.ndarray) -> Any:
        """Return the task's prediction from a feature, for display."""
        raise NotImplementedError

    def draw(
        self, feature: np.ndarray | None, truth: Any, classes: Sequence[str] = ()
    ) -> Drawing | None:
        """Draw for people what the task makes of a feature; by default, nothing.

        Args:
            feature: float32 (N, C, T, D); None to draw the truth itself.
            truth: Of the sample, as it is stored; None where there is none, or it is not known.
            classes: Names of the classes, as far as the source knows them.
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
