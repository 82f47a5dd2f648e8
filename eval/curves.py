"""Rate-distortion curves of codecs, and Bjøntegaard differences of rate (BD-rate) between them.

A point of a curve is a level of a codec: the mean rate and the mean quality over a task's sources.
BD-rate is the mean difference of the logarithm of the rate over the qualities that two curves
share, as a percentage: -20 means that a codec needs 20% fewer bits for the same quality.

Between points a curve is a monotonic piecewise cubic (PCHIP), the logarithm of the rate as a
function of the quality: G. Bjøntegaard, "Calculation of average PSNR differences between
RD-curves", ITU-T VCEG-M33, 2001, with the interpolation of ITU-T HSTP-VID-WPOM, 2020. Nothing is
extrapolated: curves that share no range of quality have no BD-rate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cfqa_data.arrow import pa, pc
from cfqa_data.errors import MetricError, unknown_name
from cfqa_data.eval.features.datasets import FeatureSource, facts_of, opened, task_facts
from cfqa_data.eval.results import Evaluation
from cfqa_data.eval.score_rows import row_keys
from cfqa_data.eval.statistics.bootstrap import interval, resampled_means
from cfqa_data.eval.statistics.grids import Grid, read_grids
from cfqa_data.extras import extras

if TYPE_CHECKING:
    from cfqa_data.format.facts import TaskFacts

__all__ = ["Curves", "bd_rate", "curves"]

BASELINES = {"mse": True, "cosine": False, "cka": False}
"""Metrics that are columns of the labels -> whether lower is better."""

DRAWS = 200
"""Default number of bootstrap samples for the interval of a BD-rate."""

MIN_POINTS = 2
"""Minimum number of points of a curve for interpolation."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Curves:
    """Rate-distortion curves of a dataset.

    Attributes:
        points: One row per task, codec, level and quality: ``task``, ``codec``, ``level``,
            ``parameter``, ``sources`` (how many were averaged), ``bpfp`` (mean bits per feature
            point; null if rates are unknown), ``quality`` (its name), ``better`` ("higher" or
            "lower") and ``value`` (its mean).
        bd_rates: One row per task, quality and codec other than the anchor: ``bd_rate`` in percent,
            with the 95% interval ``low`` to ``high`` of a bootstrap over the sources or their
            groups; ``from`` and ``to``, the worst and best quality that both curves reach;
            ``points`` and ``anchor_points``, the points of each curve; and ``note``, why there is
            no BD-rate. Empty without an anchor.
        anchor: The codec that the others are compared with, if any.
    """

    points: pa.Table
    bd_rates: pa.Table
    anchor: str | None = None


@extras("eval")
def bd_rate(
    anchor_rates: Sequence[float] | Floats,
    anchor_qualities: Sequence[float] | Floats,
    rates: Sequence[float] | Floats,
    qualities: Sequence[float] | Floats,
) -> float:
    """Return the BD-rate of a curve against an anchor, in percent; negative values save bits.

    Points that cost at least as much as another point of the curve but are not better are ignored.

    Args:
        anchor_rates: Rates of the anchor's points, greater than 0, in any order.
        anchor_qualities: Qualities of the anchor's points, larger is better.
        rates: Rates of the other curve's points, in the same unit.
        qualities: Qualities of the other curve's points.

    Raises:
        MetricError: If a curve has fewer than two usable points, a rate is not positive, or the
            quality ranges of the curves do not overlap.
    """
    fronts = []
    for one, other in ((anchor_rates, anchor_qualities), (rates, qualities)):
        x, y = np.asarray(one, float), np.asarray(other, float)
        if x.ndim != 1 or x.shape != y.shape:
            raise MetricError(
                f"a curve needs one rate and one quality per point, not {x.shape} and {y.shape}"
            )
        fronts.append(_pareto_front(x, y))
    return _bd_rate(*fronts)


def _pareto_front(rates: Floats, qualities: Floats) -> tuple[Floats, Floats]:
    """Return the points that no point of at most the same rate matches; both columns rise."""
    known = np.isfinite(rates) & np.isfinite(qualities)
    rates, qualities = rates[known], qualities[known]
    if rates.size and rates.min() <= 0:
        raise MetricError(
            f"a rate of {rates.min():g} is not positive: BD-rate takes the logarithm of rates"
        )
    order = np.lexsort((-qualities, rates))
    rates, qualities = rates[order], qualities[order]
    best = np.maximum.accumulate(np.concatenate(([-np.inf], qualities)))[:-1]
    kept = qualities > best
    return rates[kept], qualities[kept]


def _common_range(anchor: Floats, other: Floats) -> tuple[float, float]:
    """Return the range of quality that two curves share.

    Raises:
        MetricError: If there is none, or a curve has too few points.
    """
    for name, qualities in (("the anchor", anchor), ("the codec", other)):
        if not len(qualities):
            raise MetricError(f"{name} has no level with a known rate and quality")
        if len(qualities) < MIN_POINTS:
            raise MetricError(
                f"{name} has only {len(qualities)} point at which more bits give a better quality; "
                f"BD-rate needs {MIN_POINTS}"
            )
    low, high = max(anchor[0], other[0]), min(anchor[-1], other[-1])
    if low >= high:
        raise MetricError("the quality ranges of the curves do not overlap")
    return float(low), float(high)


def _bd_rate(anchor: tuple[Floats, Floats], other: tuple[Floats, Floats]) -> float:
    """Return the BD-rate of two Pareto fronts, (rates, qualities) each."""
    from scipy.interpolate import PchipInterpolator

    low, high = _common_range(anchor[1], other[1])
    areas = [
        PchipInterpolator(qualities, np.log(rates)).integrate(low, high)
        for rates, qualities in (anchor, other)
    ]
    return float(100 * np.expm1((areas[1] - areas[0]) / (high - low)))


@extras("eval")
def curves(
    dataset: FeatureSource | str | Path,
    qualities: str | Sequence[str] | None = None,
    *,
    anchor: str | None = None,
    evaluation: Evaluation | None = None,
    seed: int = 0,
    draws: int = DRAWS,
) -> Curves:
    """Return the rate-distortion curves of a dataset's codecs, averaged over each task's sources.

    Args:
        dataset: An open dataset or its path.
        qualities: One or several of ``score``, ``loss`` and ``distortion`` of the task, ``mse``,
            ``cosine`` and ``cka`` of the labels, and the metrics of ``evaluation``. By default
            score and loss.
        anchor: The codec against which the BD-rates of all others are computed.
        evaluation: Scores of further metrics on this dataset.
        seed: Seed of the bootstrap.
        draws: Number of bootstrap samples of the sources, for the intervals.

    Raises:
        MetricError: If a codec or quality is unknown, no task has such a quality, a metric does
            not declare whether lower is better, or a source lacks a codec or level that other
            sources of its task have.
        FormatError: If the folder is not a dataset.
    """
    dataset = opened(dataset)
    labels, facts = dataset.labels, task_facts(dataset)
    names = list(dict.fromkeys(labels["codec"].to_pylist()))
    if anchor is not None and anchor not in names:
        raise MetricError(unknown_name("codec", anchor, names))
    columns = _columns(labels, qualities, evaluation)
    bpfp = labels["bpfp"].to_numpy(zero_copy_only=False).astype(float)
    points: list[dict[str, Any]] = []
    bd_rates: list[dict[str, Any]] = []
    for grid in read_grids(labels):
        task, task_info = grid.task, facts_of(grid.task, facts)
        counts = grid.draw(draws, seed)
        rates = _means(bpfp[grid.rows], counts)
        for quality, column in columns.items():
            lower = _lower_better(quality, task_info, evaluation)
            if lower is None:
                continue
            values = _means(column[grid.rows], counts)
            points += _points(labels, grid, quality, lower, rates[:, 0], values[:, 0])
            curve = {c: (rates[levels], values[levels]) for c, levels in grid.codecs.items()}
            for codec in (c for c in curve if c != anchor) if anchor is not None else ():
                row = {"note": f"the task has no codec {anchor}"}
                if anchor in curve:
                    row = _bd_rate_row(curve[anchor], curve[codec], -1.0 if lower else 1.0)
                bd_rates.append({"task": task, "quality": quality, "codec": codec, **row})
    if not points:
        raise MetricError(f"no task has a {' or a '.join(columns)} to plot")
    return Curves(_table(POINTS, points), _table(BD_RATES, bd_rates), anchor)


POINTS = {"task": "string", "codec": "string", "level": "int64", "parameter": "float64"}
POINTS |= {"sources": "int64", "bpfp": "float64"}
POINTS |= {"quality": "string", "better": "string", "value": "float64"}
BD_RATES = dict.fromkeys(("task", "quality", "codec"), "string")
BD_RATES |= dict.fromkeys(("bd_rate", "low", "high", "from", "to"), "float64")
BD_RATES |= {"points": "int64", "anchor_points": "int64", "note": "string"}


def _means(values: Floats, counts: Floats) -> Floats:
    """Average (S, V) values of versions over the sources of each bootstrap sample.

    Returns:
        (V, 1 + R) float64; NaN where a version lacks the value of a source.
    """
    means = np.full((values.shape[1], len(counts)), np.nan)
    known = ~np.isnan(values).any(axis=0)
    means[known] = resampled_means(values[:, known].T, counts)
    return means


def _points(
    labels: pa.Table, grid: Grid, quality: str, lower: bool, rates: Floats, values: Floats
) -> Iterator[dict[str, Any]]:
    """Yield the rows of `Curves.points` for a task and quality."""
    first = labels.take(grid.rows[0]).to_pylist()
    for row, (codec, level), rate, value in zip(first, grid.versions, rates, values, strict=True):
        yield {
            "task": grid.task,
            "codec": codec,
            "level": level,
            "parameter": row.get("parameter"),
            "sources": len(grid.sources),
            "bpfp": _finite(rate),
            "quality": quality,
            "better": "lower" if lower else "higher",
            "value": _finite(value),
        }


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _columns(
    labels: pa.Table, qualities: str | Sequence[str] | None, evaluation: Evaluation | None
) -> dict[str, Floats]:
    """Return the values of each quality, (rows,) float64; NaN where there is none.

    Raises:
        MetricError: If a quality is unknown.
    """
    own = [n for n in ("score", "loss", "distortion", *BASELINES) if n in labels.column_names]
    scored = {} if evaluation is None else {m.name: m for m in evaluation.metrics}
    known = [*own, *(name for name in scored if name not in own)]
    if not known:
        raise MetricError("the labels have neither scores nor metrics to plot")
    if isinstance(qualities, str):
        qualities = [qualities]
    if qualities is None:
        qualities = [n for n in ("score", "loss") if n in own] or known[:1]
    result = {}
    for name in qualities:
        if name not in known:
            more = "" if evaluation else "; for any other metric, give its scores"
            raise MetricError(unknown_name("quality", name, known) + more)
        column = labels[name] if name in own else _scores(labels, evaluation, name)
        result[name] = column.to_numpy(zero_copy_only=False).astype(float)
    return result


def _scores(labels: pa.Table, evaluation: Any, metric: str) -> Any:
    """Return the scores of a metric in the order of the labels; null where a row was not scored."""
    scores = evaluation.scores.filter(pc.equal(evaluation.scores["metric"], metric))
    values = dict(zip(row_keys(scores), scores["value"].to_pylist(), strict=True))
    return pa.array([values.get(row) for row in row_keys(labels)], pa.float64())


def _lower_better(quality: str, facts: TaskFacts, evaluation: Evaluation | None) -> bool | None:
    """Return whether a lower value of a quality is better; None if the task does not have it.

    Raises:
        MetricError: If the direction of a metric is not declared.
    """
    if quality == "score":
        return bool(facts.score.lower_better)
    if quality == "loss":
        return True if facts.loss else None
    if quality == "distortion":
        return True
    if quality in BASELINES:
        return BASELINES[quality]
    assert evaluation is not None
    lower = next(m.lower_better for m in evaluation.metrics if m.name == quality)
    if lower is None:
        raise MetricError(
            f"metric {quality!r} cannot be plotted: whether lower is better is not declared"
        )
    return lower


def _bd_rate_row(
    anchor: tuple[Floats, Floats], other: tuple[Floats, Floats], sign: float
) -> dict[str, Any]:
    """Return a row of `Curves.bd_rates` without its task, quality and codec.

    Args:
        anchor: Rates and values of the anchor, (L, 1 + R) each.
        other: Rates and values of the other codec.
        sign: 1 if higher values are better, else -1.
    """
    bd_rates = np.full(anchor[0].shape[1], np.nan)
    row: dict[str, Any] = {"note": None}
    for n in range(len(bd_rates)):
        try:
            fronts = [_pareto_front(x[:, n], sign * y[:, n]) for x, y in (anchor, other)]
            if n == 0:
                row |= {"anchor_points": len(fronts[0][0]), "points": len(fronts[1][0])}
                worst, best = _common_range(fronts[0][1], fronts[1][1])
                row |= {"from": sign * worst, "to": sign * best}
            bd_rates[n] = _bd_rate(*fronts)
        except MetricError as error:
            if n == 0:
                return row | {"note": str(error)}
    low, high = (float(end) for end in interval(bd_rates))
    return row | {"bd_rate": float(bd_rates[0]), "low": _finite(low), "high": _finite(high)}


def _table(columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in columns.items()])
    return pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
