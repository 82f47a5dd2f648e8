"""Trained metrics: weights fitted to the labels of other folds.

`gap_mean` is the baseline for trained metrics, with only three parameters per task.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from cfqa_data.errors import MetricError
from cfqa_data.eval.features.batch import Features, derived
from cfqa_data.eval.features.lazy_torch import Tensor, torch
from cfqa_data.eval.metrics.angle import cosine, cosine_class
from cfqa_data.eval.metrics.base import Metric, metric
from cfqa_data.eval.metrics.kernel import cka
from cfqa_data.eval.statistics.correlations import spearman

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cfqa_data.eval.features.training import TrainingSet

__all__ = ["fit_gap_mean", "gap_mean", "labelled_sources"]

GAPS = (cosine, cosine_class, cka)
"""Similarities whose gaps to 1 are weighted: all tokens, the class token, and structure."""

FLOOR = 1e-9
"""Minimum gap; smaller gaps are replaced by it before the logarithm."""

STEPS = 5
"""The candidate weights are the multiples of 1/5 that sum to 1."""

SOURCES = 40
"""Maximum number of training sources, which suffice for three parameters."""


def fit_gap_mean(training: TrainingSet, device: str) -> Metric:
    """Choose the exponents for which the scores best rank the versions of each source.

    A grid search over weights of the gaps' logarithms, scaled to unit standard deviation within
    sources, maximises the mean SROCC over the training sources. The exponents are the weights
    divided by the standard deviations, scaled to sum to 1.

    Args:
        training: Labelled sources of one task.
        device: Torch device for computing gaps.

    Raises:
        MetricError: If no source has varying labels, varying gaps and enough tokens.
    """
    gaps, truth = _training_rows(training, device)
    deviations = np.sqrt(np.mean([np.var(of_source, axis=0) for of_source in gaps], axis=0))
    deviations[deviations < FLOOR] = np.inf  # a constant gap gets weight 0
    if np.isinf(deviations).all():
        raise MetricError("the training features are all the same")
    best, chosen = -np.inf, np.zeros(len(GAPS))
    for parts in itertools.product(range(STEPS + 1), repeat=len(GAPS)):
        weights = np.array(parts) / STEPS / deviations
        if sum(parts) == STEPS and weights.any():
            value = _agreement([of_source @ weights for of_source in gaps], truth)
            if value > best:
                best, chosen = value, weights
    exponents = tuple(float(weight) for weight in chosen / chosen.sum())
    weights = {gap.name: exponent for gap, exponent in zip(GAPS, exponents, strict=True)}
    return replace(gap_mean.with_options(exponents=exponents), weights=weights)


def _training_rows(
    training: TrainingSet, device: str
) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
    """Return the logarithms of the gaps, (versions, 3), and the labels of each source."""
    sources, truth = labelled_sources(training)
    rows = np.concatenate(sources := sources[:SOURCES])
    scores = np.full((len(truth), len(GAPS)), np.inf)
    scores[rows] = training.scores(GAPS, rows, device)
    defined = [of_source for of_source in sources if np.isfinite(scores[of_source]).all()]
    if not defined:
        raise MetricError("all training sources have too few tokens")
    gaps = np.log(np.maximum(1.0 - scores, FLOOR))
    return [gaps[of_source] for of_source in defined], [truth[of_source] for of_source in defined]


def labelled_sources(training: TrainingSet) -> tuple[list[NDArray[np.intp]], NDArray[Any]]:
    """Return the rows of each source whose label varies, and the labels of all rows.

    Raises:
        MetricError: If no source has a label that varies.
    """
    labels, name = training.labels, training.target
    ids, truth = np.array(labels["source_id"].to_pylist()), labels[name].to_numpy()
    sources = [np.flatnonzero(ids == source) for source in dict.fromkeys(ids.tolist())]
    varying = [rows for rows in sources if len(np.unique(truth[rows])) > 1]
    if not varying:
        raise MetricError(f"no training source has a {name} that varies")
    return varying, truth


def _agreement(scores: list[NDArray[Any]], truth: list[NDArray[Any]]) -> float:
    """Return the mean SROCC over sources; one with constant scores counts as 0."""
    values = [spearman(a[None], b[None])[0] for a, b in zip(scores, truth, strict=True)]
    return float(np.mean(np.nan_to_num(values)))


@metric(
    formula="(1 - cosine)^a (1 - cosine_class)^b (1 - cka)^c, a + b + c = 1",
    score_range=(FLOOR, 2.0),
    invariances={"scale"},
    cost="T2D",
    least_tokens=2,
    citation="this project",
    fit=fit_gap_mean,
    inputs=GAPS,
)
def gap_mean(x: Features, y: Features, exponents: Sequence[float] | None = None) -> Tensor:
    """Geometric mean of three gaps, 1 - cosine, 1 - cosine_class and 1 - cka.

    Args:
        x: Original.
        y: Compressed.
        exponents: One per gap, not negative, with a sum of 1; `fit_gap_mean` fits them.

    Raises:
        MetricError: If exponents are missing or invalid.
    """
    weights = torch.tensor(_checked(exponents), dtype=torch.float64, device=y.values.device)
    return (_log_gaps(x, y) @ weights).exp()


@derived
def _log_gaps(x: Features, y: Features) -> Tensor:
    """Return the logarithms of the gaps, (B, 3), cached for all exponents."""
    gaps = torch.stack([1.0 - similarity.function(x, y) for similarity in GAPS], dim=1)
    return gaps.clamp(min=FLOOR).log()


def _checked(exponents: Any) -> list[float]:
    """Return exponents as floats after checking them."""
    try:
        checked = [float(exponent) for exponent in exponents]
    except (TypeError, ValueError):
        checked = []
    if len(checked) != len(GAPS) or min(checked) < 0 or not abs(sum(checked) - 1.0) <= 1e-6:
        requirement = f"{len(GAPS)} numbers from 0 that sum to 1, not {exponents!r}"
        raise MetricError(f"gap_mean: exponents are {requirement}")
    return checked
