"""The harm that a useless feature does to a task: what a codec's levels are measured by."""

from __future__ import annotations

import numpy as np

from cfqa_data.access.dataset import Dataset
from cfqa_data.builders.extending.labelling import label
from cfqa_data.extras import extras

__all__ = ["useless_harm"]


@extras("build")
def useless_harm(dataset: Dataset, task: str) -> float:
    """Return the mean distortion when every feature is replaced by the mean of the originals.

    Where features have different numbers of tokens, it is their mean token in every place.

    Args:
        dataset: an open dataset, with what scored it at hand.
        task: one of its tasks.

    Raises:
        CfqaError: what scored it is not here.
    """
    entry = dataset.manifest.tasks[task]
    total = np.zeros(())
    for source in entry.sources:
        original = dataset.original(source).astype(np.float64)
        total = total + (
            original.mean(axis=2, keepdims=True) if entry.varying_tokens else original
        )
    mean = (total / len(entry.sources)).astype(np.float32)
    harms = []
    for source in entry.sources:
        n, c, _, d = mean.shape
        tokens = dataset.original(source).shape[2] if entry.varying_tokens else mean.shape[2]
        useless = np.broadcast_to(mean, (n, c, tokens, d))
        harms.append(label(dataset, source, useless).distortion)
    return float(np.mean(harms))
