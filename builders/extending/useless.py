"""The harm that a useless feature does to a task: what a codec's levels are measured by."""

from __future__ import annotations

import numpy as np

from cfqa_data.access.dataset import Dataset
from cfqa_data.builders.extending.labelling import label
from cfqa_data.extras import extras

__all__ = ["useless_harm"]


@extras("build")
def useless_harm(dataset: Dataset, task: str) -> float | None:
    """Return the mean distortion when every feature is replaced by the mean of the other originals.

    Where features have different numbers of tokens, it is their mean token in every place.

    Args:
        dataset: an open dataset, with what scored it at hand.
        task: one of its tasks.

    Returns:
        None of one source.

    Raises:
        CfqaError: what scored it is not here.
    """
    entry = dataset.manifest.tasks[task]
    others = len(entry.sources) - 1
    if not others:
        return None

    def part(original: np.ndarray) -> np.ndarray:
        own = original.astype(np.float64)
        return own.mean(axis=2, keepdims=True) if entry.varying_tokens else own

    total = np.zeros(())
    for source in entry.sources:
        total = total + part(dataset.original(source))
    harms = []
    for source in entry.sources:
        original = dataset.original(source)
        useless = np.broadcast_to((total - part(original)) / others, original.shape)
        harms.append(label(dataset, source, useless.astype(np.float32)).distortion)
    return float(np.mean(harms))
