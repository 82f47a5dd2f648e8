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
        source_id: Stable name, unique over all tasks of a dataset.
        inputs: Whatever the backbone takes, such as normalised images, float32 (N, 3, H, W).
        truth: What features are scored against, an array; None where the task has none.
        group: Id of related samples, such as crops of one photograph; None if it is alone.
    """

    source_id: str
    inputs: Any
    truth: Any = None
    group: str | None = None

    @property
    def views(self) -> Any:
        """The inputs, by their name in version 0.1."""
        warnings.warn("Sample.views is now Sample.inputs", DeprecationWarning, stacklevel=2)
        return self.inputs


class Source(ABC):
    """Gives the samples of one task.

    The arguments of a subclass are `task`, the task's name, and `seed`, either of which it may
    leave out, and a recipe's `options`.

    Attributes:
        terms: Licence terms of inputs and truths; None if unknown.
        classes: Names of the truth's classes, for pictures; none where they are not known.
        worst_score: A dataset uses only samples whose uncompressed features score so, or better;
            None: whatever they score.
    """

    terms: Terms | None = None
    classes: Sequence[str] = ()
    worst_score: float | None = None
    declared: ClassVar[Mapping[str, Any]] = {"terms": Terms | None, "worst_score": Real | None}

    @abstractmethod
    def samples(self) -> Iterator[Sample]:
        """Yield the samples in a fixed order; a dataset uses the first ones that its task accepts.

        Raises:
            BuildError: One is damaged.
        """

    @abstractmethod
    def sample(self, source_id: str) -> Sample:
        """Return one sample by its name, as :meth:`samples` gives it.

        Raises:
            BuildError: There is no such sample, or it is damaged.
        """

    def image(self, source_id: str) -> np.ndarray | None:
        """Return the image of a sample, uint8 RGB (H, W, 3), for people; None if it is none.

        By default, what the views of normalised inputs (N, 3, H, W) show together.

        Raises:
            BuildError: There is no such sample, or it is damaged.
        """
        return picture_of(self.sample(source_id).inputs)

    def training_inputs(self, count: int, seed: int) -> Iterator[Any]:
        """Yield the inputs of `count` samples that :meth:`samples` never gives.

        Args:
            count: How many.
            seed: Of the choice.

        Raises:
            BuildError: The source has fewer.
        """
        raise BuildError(f"source {type(self).__name__} has no training material")

    def training_samples(self, seed: int) -> Iterator[Sample]:
        """Yield samples that :meth:`samples` never gives, with their truths, in a seed's order.

        They are for the calibration of levels. Of a task without truths, :meth:`training_inputs`
        are enough.

        Raises:
            BuildError: The source has none.
        """
        raise BuildError(f"source {type(self).__name__} has no training samples with ground truth")

    def decides(self) -> tuple[Sequence[Path], Any]:
        """Return what determines the samples and their truth, for the digest of a build.

        Returns:
            Files, and a JSON-serialisable value such as the names of images, or None.
        """
        return (), None


def picture_of(inputs: Any) -> np.ndarray | None:
    """Return what normalised views (N, 3, H, W) show together, uint8 (H, W, 3); None of others."""
    from cfqa_data.codecs.inputs.picture import lay_out

    if not isinstance(inputs, np.ndarray) or inputs.ndim != 4 or inputs.shape[1] != 3:
        return None
    found = lay_out(inputs)
    return found and found[0]


def check_image(image: Any, what: str) -> np.ndarray:
    """Return an image that a source gave.

    Raises:
        BuildError: It is not uint8 RGB (H, W, 3).
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
    """Return a source, to be called with a task's name, a seed and its options.

    Args:
        kind: Its name, or `module:Class`.

    Raises:
        BuildError: No such source; when it is called: no such option, or one of another type.
    """
    target = SOURCES.find(kind, classes=True).target

    def make(task: str, seed: int, **options: Any) -> Source:
        what = f"source {kind}"
        bound = bind_options(target, options, what, BuildError, task=task, seed=seed)
        source: Source = target(**bound)
        return source

    return make
