"""Evaluate quality metrics on a CFQA dataset: scores, and their correlation with the labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cfqa_data.eval.evaluator import evaluate
from cfqa_data.eval.metrics import Metric, create_metric, list_metrics, load_metric, save_metric
from cfqa_data.eval.provenance import Provenance, TrainedOn
from cfqa_data.eval.results import Evaluation
from cfqa_data.eval.score_reading import from_scores, read_evaluation
from cfqa_data.lazy import lazy_modules

if TYPE_CHECKING:
    from cfqa_data.eval.features.training import TrainingSet as TrainingSet

__all__ = [
    "Evaluation",
    "Metric",
    "Provenance",
    "TrainedOn",
    "create_metric",
    "evaluate",
    "from_scores",
    "list_metrics",
    "load_metric",
    "read_evaluation",
    "save_metric",
]

_LATE = {"TrainingSet": "cfqa_data.eval.features.training"}  # the module imports torch
__getattr__, __dir__ = lazy_modules(__name__, __path__, _LATE)
