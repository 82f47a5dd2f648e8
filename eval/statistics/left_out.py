"""How well metrics place the versions of a codec that trained ones have not seen.

A trained metric is trained once more without each codec; what these trainings say of a codec that
they did without is what counts. The figure is the share of pairs, a version of that codec and one
of another codec of the same source, which the scores order as the label does, ties counting half:
within a codec's own ladder nearly every metric is right, and what one has learned of kinds of
damage shows between codecs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cfqa_data.eval.statistics.bootstrap import interval, resampled_means
from cfqa_data.eval.statistics.columns import Rows
from cfqa_data.eval.statistics.comparison import compare, orientation
from cfqa_data.eval.statistics.correlations import signs

if TYPE_CHECKING:
    from cfqa_data.eval.metrics import Metric
    from cfqa_data.eval.statistics.grids import Grid

__all__ = ["left_out_figures"]

Floats = NDArray[np.float64]


def left_out_figures(
    grid: Grid, metrics: Sequence[Metric], scores: Floats, truth: Floats, counts: Floats
) -> tuple[list[Rows], list[Rows]]:
    """Return rows of the tables ``left_out`` and ``comparisons``, of one task.

    Args:
        grid: The task's.
        metrics: M metrics, each in all its trainings.
        scores: (M, S, V) scores, NaN where there is none.
        truth: (S, V) labels, larger is worse.
        counts: (1 + R, S) resamples of the sources, the data itself first.
    """
    places = {(metric.base_name, metric.left_out): place for place, metric in enumerate(metrics)}
    trained = {metric.base_name for metric in metrics if metric.left_out is not None}
    plain = [metric for metric in metrics if metric.left_out is None]
    directions = [metric.lower_better for metric in plain]
    names = np.array([metric.name for metric in plain], object)
    known = np.flatnonzero(~np.isnan(orientation(directions)))
    shares = {codec: np.full((len(plain), len(truth)), np.nan) for codec in grid.codecs}
    for codec, versions in grid.codecs.items():
        for row in known:
            name = plain[row].name
            place = places.get((name, codec if name in trained else None))
            if place is not None:
                harm = scores[place] * orientation(directions)[row]
                shares[codec][row] = _ordered(harm, truth, versions)
    # The mean over the codecs that have pairs; a metric that lacks one of them has none.
    every = np.stack(list(shares.values()))  # (codecs, metrics, S)
    lacking = np.isnan(every)
    number = (~lacking).any(axis=1).sum(axis=0)
    complete = ((~lacking).sum(axis=0) == number) & (number > 0)
    mean = np.where(complete, np.nansum(every, axis=0) / np.maximum(number, 1), np.nan)
    rows: list[Rows] = []
    comparisons: list[Rows] = []
    for codec, of_codec in {**shares, "all": mean}.items():
        cell: Rows = {"task": grid.task, "codec": codec}
        means = np.stack([resampled_means(one, counts) for one in of_codec])
        low, high = interval(means)
        alone = [len(np.unique(grid.groups[~np.isnan(one)])) < 2 for one in of_codec]
        low[alone] = high[alone] = np.nan
        found = compare(of_codec[known], counts, grid.groups)
        groups, compared = np.full(len(plain), np.nan), found.compared(len(known))
        groups[known[compared]] = found.groups(len(known))[compared]
        rows.append(
            cell
            | {"metric": names, "lower_better": directions}
            | {"trained": [name in trained for name in names]}
            | {"pairs": means[:, 0], "pairs_low": low, "pairs_high": high, "pairs_group": groups}
            | {"n_valid": (~np.isnan(of_codec)).sum(axis=1)}
        )
        pairs = {"metric": names[known][found.first], "other": names[known][found.second]}
        comparisons.append({**cell, "figure": "pairs", **pairs, **found._asdict()})
    return rows, comparisons


def _ordered(harm: Floats, truth: Floats, versions: slice) -> Floats:
    """Return for each source the share of pairs with some versions that harm orders right.

    Args:
        harm: (S, V) oriented scores.
        truth: (S, V) labels.
        versions: Those whose pairs with all others are looked at.

    Returns:
        (S,); NaN where a score is missing, or no pair differs in its label.
    """
    others = np.delete(np.arange(truth.shape[1]), versions)
    right, wanted = (
        signs(v[:, versions, None], v[:, None, others]).reshape(len(v), -1) for v in (harm, truth)
    )
    pairs = np.count_nonzero(wanted, axis=1)
    agree = (right * wanted).sum(axis=1, dtype=np.int64)
    share = np.divide(agree, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)
    return np.where(np.isnan(harm).any(axis=1), np.nan, 0.5 + share / 2)
