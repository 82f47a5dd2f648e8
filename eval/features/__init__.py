"""The inputs of metrics: datasets, batches read from them, and quantities derived from batches."""

from __future__ import annotations

from cfqa_data.lazy import lazy_modules

_NAMES = ("Features", "by_rows", "derived", "slice_mean")
__getattr__, __dir__ = lazy_modules(
    __name__, __path__, dict.fromkeys(_NAMES, "cfqa_data.eval.features.batch")
)
