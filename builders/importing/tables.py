"""Recover the k-means tables of a release's hyperprior features from their values.

A hyperprior's feature holds only centres of its task's table, at most 256 different numbers per
layer, so the table that it needs is the set of numbers that are there; the table's centres that no
feature uses are not needed, and are filled up with numbers above the largest.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cfqa_data.builders.importing.files import CodecFiles, Release, Shape, load_feature
from cfqa_data.format.quantizers import PaperKMeansQuantizer

__all__ = ["BITS", "find_table"]

BITS = 8


def find_table(
    release: Release, ladder: CodecFiles, advance: Callable[[], None]
) -> PaperKMeansQuantizer | str:
    """Return the k-means table of a hyperprior's features, or the reason why there is none.

    Args:
        release: that the files belong to.
        ladder: of a hyperprior.
        advance: called after each feature.

    Raises:
        BuildError: a feature cannot be read, or holds NaN or infinity.
    """
    shape: Shape = release.shapes[ladder.task]
    tables = [np.empty(0, np.float32)] * shape[1]
    for path in ladder.files.values():
        feature = load_feature(path, shape)
        for layer, table in enumerate(tables):
            tables[layer] = table = np.union1d(table, feature[:, layer])
            if len(table) > 1 << BITS:
                name = path.relative_to(release.root).as_posix()
                return (
                    f"more than {1 << BITS} different values in layer {layer} by {name}: "
                    "not centres of one k-means table"
                )
        if np.signbit(feature[feature == 0]).any():  # a table has one zero, and it is positive
            return f"{path.relative_to(release.root).as_posix()} holds a negative zero"
        advance()
    return PaperKMeansQuantizer(BITS, tuple(tuple(_filled(table).tolist()) for table in tables))


def _filled(table: np.ndarray) -> np.ndarray:
    """Return an increasing table of 2**BITS numbers that begins with ``table``."""
    lacking = (1 << BITS) - len(table)
    step = max(1.0, float(abs(table[-1])))
    return np.append(table, table[-1] + step * np.arange(1, lacking + 1, dtype=np.float32))
