"""Datasets as they are given to functions: open, or as a path."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfqa_data.errors import MetricError

if TYPE_CHECKING:
    from cfqa_data.eval.reading import FeatureSource

__all__ = ["opened"]


def opened(dataset: FeatureSource | str | Path, **options: Any) -> FeatureSource:
    """Return an open dataset as it is, and that at a path opened.

    Args:
        dataset: The dataset, or its path.
        options: Of `cfqa_data.load`, for a path only.

    Raises:
        MetricError: An option was given, and the dataset is open.
        FormatError: The folder is not a dataset.
    """
    if isinstance(dataset, str | Path):
        from cfqa_data.access.dataset import load

        return load(dataset, **options)
    given = [name for name, value in options.items() if value is not None and value is not False]
    if given:
        told = f"{' and '.join(given)} say how to open a path"
        raise MetricError(f"{told}; open the dataset with them instead")
    return dataset
