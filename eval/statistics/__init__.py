"""Statistics of metrics against labels: correlations, confidence intervals, comparisons."""

from __future__ import annotations

from cfqa_data.eval.statistics.correlations import average_ranks, kendall, pearson, spearman
from cfqa_data.eval.statistics.grids import check_labels
from cfqa_data.eval.statistics.tables import DRAWS, Statistics, statistics

__all__ = [
    "DRAWS",
    "Statistics",
    "average_ranks",
    "check_labels",
    "kendall",
    "pearson",
    "spearman",
    "statistics",
]
