"""Full-reference metrics on batches of features, one module per family.

`signal`: the numerical error; `angle`: direction and norm of each token; `whitened`: the error
in units of how much originals vary; `kernel`: similarities among tokens; `geometry`: the shape of
their cloud; `neighbours`: nearest neighbours of each token; `distributional`: how values are
distributed; `trained`: weights fitted to labels; `paper`: the published code's versions, faults
included, which are listed on request only. The shared conventions (shapes, averaging, precision,
undefined values) are in `base`. Nothing here imports torch before a metric runs, so that listing
metrics is fast.
"""

from __future__ import annotations

from cfqa_data.eval.metrics.base import COSTS, FAMILIES, INVARIANCES, STATISTICS, Metric
from cfqa_data.eval.metrics.loss import MetricLoss
from cfqa_data.eval.metrics.registry import (
    METRICS,
    PAPER_METRICS,
    TRAINED_METRICS,
    MetricLike,
    as_metric,
    as_metrics,
    create_metric,
    list_metrics,
)
from cfqa_data.eval.metrics.saved import load_metric, save_metric

__all__ = [
    "COSTS",
    "FAMILIES",
    "INVARIANCES",
    "METRICS",
    "PAPER_METRICS",
    "STATISTICS",
    "TRAINED_METRICS",
    "Metric",
    "MetricLike",
    "MetricLoss",
    "as_metric",
    "as_metrics",
    "create_metric",
    "list_metrics",
    "load_metric",
    "save_metric",
]
