"""A trained metric: boosted trees over the gaps of cheap metrics, increasing with each gap.

A gap is the distance of a metric's score from that of a perfect reconstruction. The forest is
fitted to the ranks of labels within each source, so that sources need no common scale. Requiring it
to be monotonic in every gap keeps it from learning to recognise codecs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from cfqa_data.errors import MetricError
from cfqa_data.eval.features.batch import Features, derived
from cfqa_data.eval.features.lazy_torch import Tensor, torch
from cfqa_data.eval.metrics import angle, distributional, signal
from cfqa_data.eval.metrics.base import Metric, metric
from cfqa_data.eval.metrics.forest import Forest, fit_forest
from cfqa_data.eval.metrics.kernel import cka
from cfqa_data.eval.metrics.trained import labelled_sources
from cfqa_data.eval.statistics.correlations import average_ranks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cfqa_data.eval.features.training import TrainingSet

__all__ = ["INPUTS", "fit_stack", "stack"]

INPUTS = (
    *(signal.mse, signal.mae, signal.nmse, signal.snr_distance),
    *(angle.cosine, angle.cosine_class, angle.cosine_flat, angle.cosine_p5),
    *(angle.norm_error, angle.angle, angle.pearson_token, angle.ccc),
    *(distributional.kl_softmax, distributional.js_softmax, distributional.moments, cka),
)
"""Metrics whose gaps are the inputs of the trees. All but CKA are a few passes over the values; for
a single token, where CKA is undefined, its gap counts as 0."""

FLOOR = 1e-12
"""Minimum gap; smaller gaps are replaced by it before the logarithm."""

GROWTH = {"max_iter": 120, "max_depth": 3, "learning_rate": 0.05, "min_samples_leaf": 50}
"""Options of scikit-learn's boosting: few, shallow trees with many rows per leaf."""


def fit_stack(training: TrainingSet, device: str) -> Metric:
    """Fit the forest to the rank of each version's label within its source.

    Args:
        training: Labelled sources of one task.
        device: Torch device for computing gaps.
    """
    sources, truth = labelled_sources(training)
    rows = np.concatenate(sources)
    ranks = [(average_ranks(truth[None, of])[0] - 0.5) / len(of) for of in sources]
    forest = fit_forest(
        _log_gaps(training.scores(INPUTS, rows, device)),
        np.concatenate(ranks),
        [one.name for one in INPUTS],
        **GROWTH | {"min_samples_leaf": min(GROWTH["min_samples_leaf"], len(rows) // 8 + 1)},
    )
    weights = dict(zip(forest.inputs, forest.gains, strict=True))
    return replace(stack.with_options(forest=forest), weights=weights)


def _log_gaps(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the logarithms of the gaps of scores (..., 16), which are infinite where undefined."""
    gaps = np.abs(scores - [one.identity for one in INPUTS])
    return np.log(np.maximum(np.where(np.isinf(gaps), 0.0, gaps), FLOOR))


@metric(
    formula="F(log gaps) - F(no gaps), F boosted trees that rise with each of 16 gaps",
    family="trained",
    cost="T2D",
    differentiable=False,
    citation="this project; trees: Friedman, Greedy Function Approximation, Ann. Statist. 2001",
    fit=fit_stack,
    inputs=INPUTS,
)
def stack(x: Features, y: Features, forest: Forest | None = None) -> Tensor:
    """Boosted trees over the gaps of `INPUTS`; 0 for a perfect reconstruction.

    Args:
        x: Original.
        y: Compressed.
        forest: Forest fitted by `fit_stack`.

    Raises:
        MetricError: If this is not a forest with these inputs.
    """
    if not isinstance(forest, Forest) or forest.inputs != tuple(one.name for one in INPUTS):
        raise MetricError("stack: forest is what training finds, or `load_metric` reads")
    perfect = np.full((1, len(INPUTS)), np.log(FLOOR))
    predicted = forest.predict(np.concatenate([perfect, _log_gaps(_scores(x, y))]))
    return torch.from_numpy(predicted[1:] - predicted[0]).to(y.values.device)


@derived
def _scores(x: Features, y: Features) -> NDArray[np.float64]:
    """Return the scores of the inputs, (B, 16), cached; infinite where undefined."""
    undefined = torch.full((len(y),), torch.inf, dtype=torch.float64, device=y.values.device)
    scores = [one.function(x, y) if y.shape[3] >= one.least_tokens else undefined for one in INPUTS]
    return np.asarray(torch.stack(scores, dim=1).detach().cpu())
