"""What a source gives: samples with normalised views and the truth of one task."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from cfqa_data.errors import BuildError

__all__ = ["MEAN", "STD", "Sample", "Source", "get_source", "normalise"]

#: ImageNet's statistics of RGB in 0..1, as every published DINOv2 evaluation normalises.
MEAN = np.array((0.485, 0.456, 0.406), np.float32)
STD = np.array((0.229, 0.224, 0.225), np.float32)


def normalise(images: np.ndarray) -> np.ndarray:
    """Normalise uint8 RGB images (..., H, W, 3) to float32 (..., 3, H, W)."""
    scaled = (images.astype(np.float32) / np.float32(255) - MEAN) / STD
    return np.ascontiguousarray(np.moveaxis(scaled, -1, -3))


@dataclass(frozen=True)
class Sample:
    """One source image of a task.

    Attributes:
        source_id: stable name, unique over all tasks of a dataset.
        views: float32 (N, 3, H, W), normalised: the windows or flips that the backbone sees.
        truth: cls int64 (); seg uint8 (H, W), 255 ignored; dpt uint16 (H, W), millimetres.
    """

    source_id: str
    views: np.ndarray
    truth: np.ndarray

    def __post_init__(self) -> None:
        if self.views.ndim != 4 or self.views.shape[1] != 3 or self.views.dtype != np.float32:
            raise BuildError(f"{self.source_id}: views must be float32 (N, 3, H, W)")


class Source(Protocol):
    """Where a task's samples come from."""

    def candidates(self) -> Iterator[Sample]:
        """Samples in a fixed order, for the selection to choose from."""
        ...

    def sample(self, source_id: str) -> Sample:
        """One sample by its name."""
        ...

    def training_views(self, count: int, seed: int) -> np.ndarray:
        """Views float32 (count, N, 3, H, W) that no evaluation sample shares."""
        ...


def _scenes(task: str, seed: int, **options: Any) -> Source:
    from cfqa_data.builders.sources.rendered import RenderedScenes

    return RenderedScenes(task, seed, **options)


def _imagenet(task: str, seed: int, **options: Any) -> Source:
    from cfqa_data.builders.sources.imagenet import ImageNet

    return ImageNet(task, seed, **options)


def _voc2012(task: str, seed: int, **options: Any) -> Source:
    from cfqa_data.builders.sources.voc2012 import Voc2012

    return Voc2012(task, seed, **options)


def _nyuv2(task: str, seed: int, **options: Any) -> Source:
    from cfqa_data.builders.sources.nyuv2 import Nyuv2

    return Nyuv2(task, seed, **options)


_SOURCES: dict[str, Callable[..., Source]] = {
    "scenes": _scenes,
    "imagenet": _imagenet,
    "voc2012": _voc2012,
    "nyuv2": _nyuv2,
}


def get_source(kind: str) -> Callable[..., Source]:
    """The source registered as `kind`: called with a task's name, a seed and its options.

    Raises:
        BuildError: no such source.
    """
    if kind not in _SOURCES:
        raise BuildError(f"no source '{kind}'; known are {', '.join(_SOURCES)}")
    return _SOURCES[kind]
