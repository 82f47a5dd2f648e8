"""The `Source` and `Sample` classes and the registry of sources."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from cfqa_data.errors import BuildError
from cfqa_data.format.facts import Terms
from cfqa_data.registry import Registry, bind_options

__all__ = ["SOURCES", "Sample", "Source", "check_image", "get_source", "picture_of"]


@dataclass(frozen=True)
class Sample:
    """One sample of a task.

    Attributes:
        source_id: Stable id, unique over all tasks of a dataset.
        inputs: Inputs of the backbone, such as normalised images, float32 (N, 3, H, W).
        truth: Ground truth, an array; None if the task has none.
        group: Id of a group of related samples, such as crops of one photograph; None if the
            sample is unrelated to others.
    """

    source_id: str
    inputs: Any
    truth: Any = None
    group: str | None = None

    @property
    def views(self) -> Any:
        """The inputs, under their name in version 0.1."""
        warnings.warn("Sample.views is now Sample.inputs", DeprecationWarning, stacklevel=2)
        return self.inputs


class Source(ABC):
    """Base class of providers of a task's samples.

    The constructor of a subclass takes a recipe's `options` and, if it declares them, `task` (the
    task's name), `seed`, and `truths` (whether the task needs the source's truths).

    Attributes:
        terms: Licence terms of inputs and truths; None if unknown.
        classes: Names of the truth's classes, for pictures; empty if unknown.
        worst_score: Worst score of originals that a dataset may use; None for no limit.
    """

    terms: Terms | None = None
    classes: Sequence[str] = ()
    worst_score: float | None = None
    declared: ClassVar[Mapping[str, Any]] = {"terms": Terms | None, "worst_score": Real | None}

    @abstractmethod
    def samples(self) -> Iterator[Sample]:
        """Yield the samples in a fixed order; a dataset uses the first ones that its task accepts.

        Raises:
            BuildError: If a sample is damaged.
        """

    @abstractmethod
    def sample(self, source_id: str) -> Sample:
        """Return the sample of an id, equal to the one that :meth:`samples` yields.

        Raises:
            BuildError: If there is no such sample, or it is damaged.
        """

    def image(self, source_id: str) -> np.ndarray | None:
        """Return a picture of a sample, uint8 RGB (H, W, 3); None if it cannot be shown as one.

        By default, normalised views (N, 3, H, W) are reassembled into the image they show.

        Raises:
            BuildError: If there is no such sample, or it is damaged.
        """
        return picture_of(self.sample(source_id).inputs)

    def training_inputs(self, count: int, seed: int) -> Iterator[Any]:
        """Yield the inputs of `count` samples that :meth:`samples` never yields.

        Args:
            count: Number of samples.
            seed: Seed of the choice.

        Raises:
            BuildError: If the source has fewer training samples.
        """
        raise BuildError(f"source {type(self).__name__} has no training material")

    def training_samples(self, seed: int) -> Iterator[Sample]:
        """Yield samples that :meth:`samples` never yields, with truths, in an order set by `seed`.

        Levels are calibrated on them. A task without truths uses :meth:`training_inputs` instead.

        Raises:
            BuildError: If the source has no training samples with truths.
        """
        raise BuildError(f"source {type(self).__name__} has no training samples with ground truth")

    def decides(self) -> tuple[Sequence[Path], Any]:
        """Return what decides the samples and their truth, for the hashes of a build.

        Returns:
            Paths of files, and a JSON-serialisable value such as the names of images, or None.
        """
        return (), None


def picture_of(inputs: Any) -> np.ndarray | None:
    """Return the image that normalised views (N, 3, H, W) show, uint8 (H, W, 3).

    Other inputs, and views that do not form one image, give None.
    """
    from cfqa_data.codecs.inputs.picture import merge_views

    if not isinstance(inputs, np.ndarray) or inputs.ndim != 4 or inputs.shape[1] != 3:
        return None
    layout = merge_views(inputs)
    return layout and layout[0]


def check_image(image: Any, what: str) -> np.ndarray:
    """Validate and return a picture that a source returned.

    Raises:
        BuildError: If the picture is not uint8 RGB (H, W, 3).
    """
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise BuildError(f"{what} must return uint8 (H, W, 3), got {image.dtype} {image.shape}")
    return image


SOURCES = Registry(
    "source",
    {
        "scenes": "cfqa_data.builders.sources.scenes:Scenes",
        "instances": "cfqa_data.builders.sources.instances:Instances",
        "imagenet": "cfqa_data.builders.sources.imagenet:ImageNet",
        "voc2012": "cfqa_data.builders.sources.voc2012:Voc2012",
        "nyuv2": "cfqa_data.builders.sources.nyuv2:Nyuv2",
        "image_folder": "cfqa_data.builders.sources.folders:ImageFolder",
        "features": "cfqa_data.builders.sources.folders:Features",
    },
    BuildError,
    Source,
)
"""All sources by name."""


def get_source(kind: str) -> Callable[..., Source]:
    """Return a function that creates a source from a task's name, a seed and options.

    Args:
        kind: Name of the source, or `module:Class`.

    Raises:
        BuildError: If there is no such source. The returned function raises it for an unknown
            option or one of the wrong type.
    """
    target = SOURCES.find(kind, classes=True).target

    def make(task: str, seed: int, **options: Any) -> Source:
        what = f"source {kind}"
        bound = bind_options(target, options, what, BuildError, task=task, seed=seed)
        source: Source = target(**bound)
        return source

    return make
