"""The three tasks, the codecs and the sizes that every CFQA dataset shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from cfqa_data.errors import CfqaError, unknown_name
from cfqa_data.format.invariants import FOLDS

__all__ = [
    "CODECS",
    "CODEC_PARAMETERS",
    "FOLDS",
    "HIGHEST_QP",
    "LEVELS",
    "TASKS",
    "Task",
    "get_task",
]

CODEC_PARAMETERS: Mapping[str, str] = MappingProxyType(
    {
        "x265": "qp",
        "vvenc": "qp",
        "hm": "qp",
        "vtm": "qp",
        "hyperprior_multi_task": "lambda",
        "hyperprior_task_specific": "lambda",
    }
)
"""What sets each codec's rate: a quantisation parameter, or a Lagrangian multiplier."""

CODECS: tuple[str, ...] = tuple(CODEC_PARAMETERS)
"""Names of the codecs, in the order every table shows them."""

HIGHEST_QP: Mapping[str, int] = MappingProxyType({"x265": 51, "vvenc": 63, "hm": 51, "vtm": 63})
"""Highest QP that each video codec's standard has; the lowest is 0."""

LEVELS = 10
"""Levels of compression per codec; level 0 is the best, level 9 the worst."""


@dataclass(frozen=True)
class Task:
    """What one task measures on a feature of shape (N, C, T, D).

    Attributes:
        name: the short name used in paths and tables.
        title: the task in words.
        score_name: the published score of the task.
        score_lower_better: whether a smaller score is a better one.
        score_unit: unit of the score, empty if it has none.
        loss_name: a continuous loss kept beside the score; smaller is always better.
        views: N, crops or windows of one source.
        layers: C, block outputs kept per view.
        truth_dtype: NumPy's name of the type of what a source is scored against.
        truth_axes: how many axes that has.
        noticeable: smallest difference of two distortions that counts when versions of a source
            are told apart, in units of the score.
        noticeable_loss: the same of two losses.
    """

    name: str
    title: str
    score_name: str
    score_lower_better: bool
    score_unit: str
    loss_name: str
    views: int
    layers: int
    truth_dtype: str
    truth_axes: int
    noticeable: float
    noticeable_loss: float

    def distortion(self, score: Any, reference: Any) -> Any:
        """Return the harm done: the score against the uncompressed one, larger is worse.

        Args:
            score: score of the compressed feature, or an array of several.
            reference: score of its original, likewise.
        """
        return score - reference if self.score_lower_better else reference - score


TASKS: Mapping[str, Task] = MappingProxyType(
    {
        task.name: task
        for task in (
            Task(
                name="cls",
                title="image classification",
                score_name="rank",
                score_lower_better=True,
                score_unit="",
                loss_name="negative log-likelihood",
                views=1,
                layers=1,
                truth_dtype="int64",
                truth_axes=0,
                noticeable=1.0,
                noticeable_loss=0.5,
            ),
            Task(
                name="seg",
                title="semantic segmentation",
                score_name="mIoU",
                score_lower_better=False,
                score_unit="",
                loss_name="cross-entropy",
                views=2,
                layers=1,
                truth_dtype="uint8",
                truth_axes=2,
                noticeable=0.02,
                noticeable_loss=0.1,
            ),
            Task(
                name="dpt",
                title="depth estimation",
                score_name="RMSE",
                score_lower_better=True,
                score_unit="m",
                loss_name="absolute relative error",
                views=2,
                layers=4,
                truth_dtype="uint16",
                truth_axes=2,
                noticeable=0.05,
                noticeable_loss=0.02,
            ),
        )
    }
)
"""The tasks by name, in the order every table shows them."""


def get_task(name: str) -> Task:
    """Return the task called ``name``.

    Raises:
        CfqaError: there is no such task.
    """
    try:
        return TASKS[name]
    except (KeyError, TypeError):
        raise CfqaError(unknown_name("task", name, TASKS)) from None
