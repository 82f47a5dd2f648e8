"""How well metrics order versions of a codec that trained metrics have not seen.

Each trained metric is also trained without each codec, and evaluated on that codec. The figure is
the share of pairs, of a version by that codec and one by another codec of the same source, that the
scores order as the labels do, ties counting half. Within a codec's own ladder nearly every metric
is right; pairs between codecs show what a metric has learned about kinds of distortion.
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
    """Return rows of the tables ``left_out`` and ``comparisons`` for one task.

    Args:
        grid: Grid of the task.
        metrics: M metrics, including those trained without a codec.
        scores: (M, S, V) scores; NaN where missing.
        truth: (S, V) labels, larger is worse.
        counts: (1 + R, S) bootstrap counts of the sources, the data itself first.
    """
    index = {(metric.base_name, metric.left_out): n for n, metric in enumerate(metrics)}
    trained = {metric.base_name for metric in metrics if metric.left_out is not None}
    plain = [metric for metric in metrics if metric.left_out is None]
    directions = [metric.lower_better for metric in plain]
    names = np.array([metric.name for metric in plain], object)
    known = np.flatnonzero(~np.isnan(orientation(directions)))
    shares = {codec: np.full((len(plain), len(truth)), np.nan) for codec in grid.codecs}
    for codec, versions in grid.codecs.items():
        for row in known:
            name = plain[row].name
            column = index.get((name, codec if name in trained else None))
            if column is not None:
                oriented = scores[column] * orientation(directions)[row]
                shares[codec][row] = _ordered_pairs(oriented, truth, versions)
    # The mean over the codecs that have pairs, for metrics that have a share for all of these.
    stacked = np.stack(list(shares.values()))  # (codecs, metrics, S)
    defined = ~np.isnan(stacked)
    number = defined.any(axis=1).sum(axis=0)
    complete = (defined.sum(axis=0) == number) & (number > 0)
    mean = np.where(complete, np.nansum(stacked, axis=0) / np.maximum(number, 1), np.nan)
    rows: list[Rows] = []
    comparisons: list[Rows] = []
    for codec, share in {**shares, "all": mean}.items():
        keys: Rows = {"task": grid.task, "codec": codec}
        means = np.stack([resampled_means(one, counts) for one in share])
        low, high = interval(means)
        single = [len(np.unique(grid.groups[~np.isnan(one)])) < 2 for one in share]
        low[single] = high[single] = np.nan
        differences = compare(share[known], counts, grid.groups)
        groups, compared = np.full(len(plain), np.nan), differences.compared(len(known))
        groups[known[compared]] = differences.groups(len(known))[compared]
        rows.append(
            keys
            | {"metric": names, "lower_better": directions}
            | {"trained": [name in trained for name in names]}
            | {"pairs": means[:, 0], "pairs_low": low, "pairs_high": high, "pairs_group": groups}
            | {"n_valid": (~np.isnan(share)).sum(axis=1)}
        )
        pairs = {
            "metric": names[known][differences.first],
            "other": names[known][differences.second],
        }
        comparisons.append({**keys, "figure": "pairs", **pairs, **differences._asdict()})
    return rows, comparisons


def _ordered_pairs(oriented: Floats, truth: Floats, versions: slice) -> Floats:
    """Return the share of correctly ordered pairs for each source.

    Args:
        oriented: (S, V) scores, larger is worse.
        truth: (S, V) labels, larger is worse.
        versions: Versions whose pairs with all other versions are counted.

    Returns:
        (S,) float64; NaN if a score is missing or no pair differs in its label.
    """
    others = np.delete(np.arange(truth.shape[1]), versions)
    right, wanted = (
        signs(v[:, versions, None], v[:, None, others]).reshape(len(v), -1)
        for v in (oriented, truth)
    )
    pairs = np.count_nonzero(wanted, axis=1)
    agree = (right * wanted).sum(axis=1, dtype=np.int64)
    share = np.divide(agree, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)
    return np.where(np.isnan(oriented).any(axis=1), np.nan, 0.5 + share / 2)
