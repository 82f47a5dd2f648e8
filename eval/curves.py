"""Rate-distortion curves of codecs, and Bjøntegaard differences of rate (BD-rate) between them.

A point of a curve is a level of a codec: the mean rate and the mean quality over a task's sources.
BD-rate is the mean difference of the logarithm of the rate over the qualities that two curves
share, given as a percentage: -20 says that a codec needs a fifth less bits for the same quality.

Between points a curve is a piecewise cubic that keeps monotony (PCHIP), the logarithm of the rate
as a function of the quality: G. Bjøntegaard, "Calculation of average PSNR differences between
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
"""Metrics that the labels hold -> whether less is better."""

DRAWS = 200
"""Resamples of the sources that an interval of a BD-rate is computed from."""

LEAST_POINTS = 2
"""Points that a curve between which is interpolated must have."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Curves:
    """Rate-distortion curves of a dataset.

    Attributes:
        points: one row per task, codec, level and quality: ``task``, ``codec``, ``level``,
            ``parameter``, ``sources`` (how many were averaged), ``bpfp`` (mean bits per feature
            point; null where rates are unknown), ``quality`` (its name), ``better`` ("higher" or
            "lower") and ``value`` (its mean).
        bd_rates: one row per task, quality and codec other than the anchor: ``bd_rate`` in percent,
            with the 95% interval ``low`` to ``high`` of a bootstrap over sources, in groups;
            ``from`` and ``to``, the worst and best quality that both curves reach; ``points`` and
            ``anchor_points``, of the curves; and ``note``, why there is no figure. Empty without an
            anchor.
        anchor: the codec that the others are compared with, if any.
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
    """Return the BD-rate of a curve against an anchor's, in percent; negative saves bits.

    Only the points of a curve count that no cheaper or equally cheap one reaches in quality.

    Args:
        anchor_rates: rates of the anchor's points, greater than 0, in any order.
        anchor_qualities: their qualities, of which more is better.
        rates: of the other curve's points, in the same unit.
        qualities: likewise.

    Raises:
        MetricError: a curve has fewer than two points that count, a rate is not greater than 0, or
            the quality ranges of the curves do not overlap.
    """
    fronts = []
    for given in ((anchor_rates, anchor_qualities), (rates, qualities)):
        of_rates, of_qualities = (np.asarray(values, float) for values in given)
        if of_rates.ndim != 1 or of_rates.shape != of_qualities.shape:
            raise MetricError(
                f"a curve needs one rate and one quality per point, not {of_rates.shape} and "
                f"{of_qualities.shape}"
            )
        fronts.append(_front(of_rates, of_qualities))
    return _difference(*fronts)


def _front(rates: Floats, qualities: Floats) -> tuple[Floats, Floats]:
    """Return the points that cost more than all that are worse: both rise strictly."""
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


def _shared(anchor: Floats, other: Floats) -> tuple[float, float]:
    """Return the range of quality that two curves share.

    Raises:
        MetricError: there is none, or a curve has too few points.
    """
    if min(len(anchor), len(other)) < LEAST_POINTS:
        fewest = min(len(anchor), len(other))
        raise MetricError(f"a curve has {fewest} of the required {LEAST_POINTS} points")
    low, high = max(anchor[0], other[0]), min(anchor[-1], other[-1])
    if low >= high:
        raise MetricError("the quality ranges of the curves do not overlap")
    return float(low), float(high)


def _difference(anchor: tuple[Floats, Floats], other: tuple[Floats, Floats]) -> float:
    from scipy.interpolate import PchipInterpolator

    low, high = _shared(anchor[1], other[1])
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
        dataset: an open dataset, or its path.
        qualities: what to draw against the rate: "score", "loss" or "distortion" of the task,
            "mse", "cosine" or "cka" of the labels, or a metric of `evaluation`. The score and the
            loss, if None.
        anchor: a codec; the BD-rates of all others against it are computed.
        evaluation: scores of metrics on this dataset.
        seed: of the resamples.
        draws: resamples of the sources, for the intervals.

    Raises:
        MetricError: there is no codec or quality of that name, or a source lacks a codec or level
            that others of its task have.
        FormatError: the folder is not a dataset.
    """
    dataset = opened(dataset)
    labels, facts = dataset.labels, task_facts(dataset)
    names = list(dict.fromkeys(labels["codec"].to_pylist()))
    if anchor is not None and anchor not in names:
        raise MetricError(unknown_name("codec", anchor, names))
    columns = _columns(labels, qualities, evaluation)
    bpfp = labels["bpfp"].to_numpy(zero_copy_only=False).astype(float)
    points: list[dict[str, Any]] = []
    compared: list[dict[str, Any]] = []
    for grid in read_grids(labels):
        task, known = grid.task, facts_of(grid.task, facts)
        counts = grid.draw(draws, seed)
        rates = _means(bpfp[grid.rows], counts)
        for quality, column in columns.items():
            lower = _lower_better(quality, known, evaluation)
            if lower is None:
                continue
            values = _means(column[grid.rows], counts)
            points += _points(labels, grid, quality, lower, rates[:, 0], values[:, 0])
            curve = {c: (rates[levels], values[levels]) for c, levels in grid.codecs.items()}
            for codec in (c for c in curve if c != anchor) if anchor is not None else ():
                row = {"note": f"the task has no codec {anchor}"}
                if anchor in curve:
                    row = _compared(curve[anchor], curve[codec], -1.0 if lower else 1.0)
                compared.append({"task": task, "quality": quality, "codec": codec, **row})
    if not points:
        raise MetricError(f"no task has a {' or a '.join(columns)} to plot")
    return Curves(_table(POINTS, points), _table(COMPARED, compared), anchor)


POINTS = {"task": "string", "codec": "string", "level": "int64", "parameter": "float64"}
POINTS |= {"sources": "int64", "bpfp": "float64"}
POINTS |= {"quality": "string", "better": "string", "value": "float64"}
COMPARED = dict.fromkeys(("task", "quality", "codec"), "string")
COMPARED |= dict.fromkeys(("bd_rate", "low", "high", "from", "to"), "float64")
COMPARED |= {"points": "int64", "anchor_points": "int64", "note": "string"}


def _means(values: Floats, counts: Floats) -> Floats:
    """Return means over resamples of the sources, (V, 1 + R), of (S, V) values of versions.

    They are NaN where a version lacks the value of a source.
    """
    means = np.full((values.shape[1], len(counts)), np.nan)
    known = ~np.isnan(values).any(axis=0)
    means[known] = resampled_means(values[:, known].T, counts)
    return means


def _points(
    labels: pa.Table, grid: Grid, quality: str, lower: bool, rates: Floats, values: Floats
) -> Iterator[dict[str, Any]]:
    """Yield the rows of :attr:`Curves.points` of a task and quality."""
    first = labels.take(grid.rows[0]).to_pylist()
    for row, (codec, level), rate, value in zip(first, grid.versions, rates, values, strict=True):
        yield {
            "task": grid.task,
            "codec": codec,
            "level": level,
            "parameter": row.get("parameter"),
            "sources": len(grid.sources),
            "bpfp": _known(rate),
            "quality": quality,
            "better": "lower" if lower else "higher",
            "value": _known(value),
        }


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _columns(
    labels: pa.Table, qualities: str | Sequence[str] | None, evaluation: Evaluation | None
) -> dict[str, Floats]:
    """Return the values of each quality, (rows,) float64; NaN where there is none.

    Raises:
        MetricError: there is no such quality.
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
    found = {}
    for name in qualities:
        if name not in known:
            more = "" if evaluation else "; for any other metric, give its scores"
            raise MetricError(unknown_name("quality", name, known) + more)
        column = labels[name] if name in own else _scores(labels, evaluation, name)
        found[name] = column.to_numpy(zero_copy_only=False).astype(float)
    return found


def _scores(labels: pa.Table, evaluation: Any, metric: str) -> Any:
    """Return a metric's scores in the order of the labels; null where a row was not scored."""
    scores = evaluation.scores.filter(pc.equal(evaluation.scores["metric"], metric))
    values = dict(zip(row_keys(scores), scores["value"].to_pylist(), strict=True))
    return pa.array([values.get(row) for row in row_keys(labels)], pa.float64())


def _lower_better(quality: str, facts: TaskFacts, evaluation: Evaluation | None) -> bool | None:
    """Return whether less of a quality is better; None where the task has no such quality."""
    if quality == "score":
        return bool(facts.score.lower_better)
    if quality == "loss":
        return True if facts.loss else None
    if quality == "distortion":
        return True
    if quality in BASELINES:
        return BASELINES[quality]
    assert evaluation is not None
    return next(m.lower_better for m in evaluation.metrics if m.name == quality)


def _compared(
    anchor: tuple[Floats, Floats], other: tuple[Floats, Floats], sign: float
) -> dict[str, Any]:
    """Return the figures of a row of :attr:`Curves.bd_rates`.

    Args:
        anchor: rates and values, (L, 1 + R) each.
        other: likewise.
        sign: -1 where less is better.
    """
    found = np.full(anchor[0].shape[1], np.nan)
    row: dict[str, Any] = {"note": None}
    for n in range(len(found)):
        try:
            fronts = [_front(rates[:, n], sign * values[:, n]) for rates, values in (anchor, other)]
            if n == 0:
                row |= {"anchor_points": len(fronts[0][0]), "points": len(fronts[1][0])}
                low, high = _shared(fronts[0][1], fronts[1][1])
                row |= {"from": sign * low, "to": sign * high}
            found[n] = _difference(*fronts)
        except MetricError as error:
            if n == 0:
                return row | {"note": str(error)}
    ends = [float(end) for end in interval(found)]
    return row | {"bd_rate": float(found[0]), "low": _known(ends[0]), "high": _known(ends[1])}


def _table(columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in columns.items()])
    return pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
