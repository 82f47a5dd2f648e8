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

from cfqa_data.errors import MetricError, unknown_name
from cfqa_data.eval.features.datasets import KEYS, FeatureSource, facts_of, opened, task_facts
from cfqa_data.eval.statistics.bootstrap import interval, resampled_means, source_counts
from cfqa_data.extras import extras

if TYPE_CHECKING:
    import pyarrow as pa

    from cfqa_data.eval.results import Evaluation
    from cfqa_data.format.facts import TaskFacts

__all__ = ["Curves", "bd_rate", "curves", "draw_curves"]

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
            the curves share no range of quality.
    """
    fronts = []
    for given in ((anchor_rates, anchor_qualities), (rates, qualities)):
        of_rates, of_qualities = (np.asarray(values, float) for values in given)
        if of_rates.ndim != 1 or of_rates.shape != of_qualities.shape:
            raise MetricError(
                f"a curve has a rate and a quality per point, not {of_rates.shape} and "
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
            f"a rate of {rates.min():g} has no logarithm: BD-rate needs rates above 0"
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
        raise MetricError(f"a curve has {fewest} of the {LEAST_POINTS} points that are needed")
    low, high = max(anchor[0], other[0]), min(anchor[-1], other[-1])
    if low >= high:
        raise MetricError("the curves share no range of quality")
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
        MetricError: there is no codec or quality of that name.
        FormatError: the folder is not a dataset.
    """
    dataset = opened(dataset)
    labels, facts = dataset.labels, task_facts(dataset)
    names = list(dict.fromkeys(labels["codec"].to_pylist()))
    if anchor is not None and anchor not in names:
        raise MetricError(unknown_name("codec", anchor, names))
    columns = _columns(labels, qualities, evaluation)
    points: list[dict[str, Any]] = []
    compared: list[dict[str, Any]] = []
    tasks = labels["task"].to_numpy(zero_copy_only=False)
    for task in dict.fromkeys(tasks.tolist()):
        rows = np.flatnonzero(tasks == task)
        ladders, groups = _ladders(labels.take(rows), {n: c[rows] for n, c in columns.items()})
        counts = source_counts(groups.max() + 1, draws, seed)[:, groups]
        counts[0] = 1
        known = facts_of(task, facts)
        for quality in columns:
            lower = _lower_better(quality, known, evaluation)
            if lower is None:
                continue
            means = {codec: ladder.means(quality, counts) for codec, ladder in ladders.items()}
            for codec, (rates, values) in means.items():
                points += ladders[codec].rows(task, codec, quality, lower, rates, values)
            for codec in ladders if anchor is not None else ():
                if anchor not in ladders:
                    row = {"note": f"the task has no codec {anchor}"}
                elif codec != anchor:
                    row = _compared(means[anchor], means[codec], -1.0 if lower else 1.0)
                else:
                    continue
                compared.append({"task": task, "quality": quality, "codec": codec, **row})
    if not points:
        raise MetricError(f"no task has a {' or a '.join(columns)} to draw curves of")
    return Curves(_table(POINTS, points), _table(COMPARED, compared), anchor)


POINTS = {"task": "string", "codec": "string", "level": "int64", "parameter": "float64"}
POINTS |= {"sources": "int64", "bpfp": "float64"}
POINTS |= {"quality": "string", "better": "string", "value": "float64"}
COMPARED = dict.fromkeys(("task", "quality", "codec"), "string")
COMPARED |= dict.fromkeys(("bd_rate", "low", "high", "from", "to"), "float64")
COMPARED |= {"points": "int64", "anchor_points": "int64", "note": "string"}


@dataclass(frozen=True)
class _Ladder:
    """The levels of a codec on the sources of a task that all of its codecs have.

    Attributes:
        levels: numbers of the levels.
        parameters: parameter of each.
        bpfp: (L, S) bits per feature point; NaN where unknown.
        values: quality -> (L, S); NaN where unknown.
    """

    levels: list[int]
    parameters: list[float | None]
    bpfp: Floats
    values: Mapping[str, Floats]

    def means(self, quality: str, counts: Floats) -> tuple[Floats, Floats]:
        """Return mean rate and mean quality, (L, 1 + R) each, of resamples of the sources.

        A level without a value for every source has none.
        """
        pair = (self.bpfp, self.values[quality])
        rates, values = (np.stack([_mean(row, counts) for row in of]) for of in pair)
        return rates, values

    def rows(
        self, task: str, codec: str, quality: str, lower: bool, rates: Floats, values: Floats
    ) -> Iterator[dict[str, Any]]:
        """Yield the rows of :attr:`Curves.points`."""
        for n, level in enumerate(self.levels):
            yield {
                "task": task,
                "codec": codec,
                "level": level,
                "parameter": self.parameters[n],
                "sources": self.bpfp.shape[1],
                "bpfp": _known(rates[n, 0]),
                "quality": quality,
                "better": "lower" if lower else "higher",
                "value": _known(values[n, 0]),
            }


def _mean(row: Floats, counts: Floats) -> Floats:
    if np.isnan(row).any():
        return np.full(len(counts), np.nan)
    return resampled_means(row, counts)


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
        raise MetricError("the labels have neither scores nor metrics to draw curves of")
    if isinstance(qualities, str):
        qualities = [qualities]
    if qualities is None:
        qualities = [n for n in ("score", "loss") if n in own] or known[:1]
    found = {}
    for name in qualities:
        if name not in known:
            more = "" if evaluation else "; of any other metric, scores must be given"
            raise MetricError(unknown_name("quality", name, known) + more)
        column = labels[name] if name in own else _scores(labels, evaluation, name)
        found[name] = column.to_numpy(zero_copy_only=False).astype(float)
    return found


def _scores(labels: pa.Table, evaluation: Any, metric: str) -> Any:
    """Return a metric's scores in the order of the labels; null where a row was not scored."""
    import pyarrow as pa
    import pyarrow.compute as pc

    scores = evaluation.scores.filter(pc.equal(evaluation.scores["metric"], metric))
    keys = zip(*(scores[key].to_pylist() for key in KEYS), strict=True)
    values = dict(zip(keys, scores["value"].to_pylist(), strict=True))
    rows = zip(*(labels[key].to_pylist() for key in KEYS), strict=True)
    return pa.array([values.get(row) for row in rows], pa.float64())


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


def _ladders(
    labels: pa.Table, columns: Mapping[str, Floats]
) -> tuple[dict[str, _Ladder], NDArray[np.intp]]:
    """Return the codecs of a task, and the group of each source that all of them have."""
    names = ("source_id", "codec", "level")
    sources, codecs, levels = (labels[name].to_numpy(zero_copy_only=False) for name in names)
    rows: dict[str, dict[tuple[int, str], int]] = {}
    for row, (source, codec, level) in enumerate(zip(sources, codecs, levels, strict=True)):
        rows.setdefault(codec, {})[int(level), source] = row
    complete = [
        {s for _, s in of if all((level, s) in of for level in {n for n, _ in of})}
        for of in rows.values()
    ]
    common = [s for s in dict.fromkeys(sources.tolist()) if all(s in of for of in complete)]
    if not common:
        raise MetricError("no source has all levels of all codecs: curves need common sources")
    bpfp = labels["bpfp"].to_numpy(zero_copy_only=False).astype(float)
    parameters = (
        labels["parameter"].to_pylist()
        if "parameter" in labels.column_names
        else [None] * len(labels)
    )
    ladders = {}
    for codec, of in rows.items():
        order = sorted({level for level, _ in of})
        places = np.array([[of[level, source] for source in common] for level in order])
        ladders[codec] = _Ladder(
            levels=order,
            parameters=[parameters[row] for row in places[:, 0]],
            bpfp=bpfp[places],
            values={name: column[places] for name, column in columns.items()},
        )
    groups = common
    if "group" in labels.column_names:
        group_of = dict(zip(sources, labels["group"].to_pylist(), strict=True))
        groups = [group_of[source] or source for source in common]
    return ladders, np.unique(groups, return_inverse=True)[1]


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
    import pyarrow as pa

    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in columns.items()])
    return pa.Table.from_pylist([dict(row) for row in rows], schema=schema)


MARKERS = "osD^vP*X<>"


@extras("build")
def draw_curves(
    found: Curves,
    path: Path,
    tasks: Mapping[str, TaskFacts] | None = None,
    suffix: str | None = None,
) -> None:
    """Draw curves: one row per task, one column per quality.

    Args:
        found: the curves.
        path: file to write.
        tasks: facts of the tasks, by name, for the titles.
        suffix: of a kind of file that matplotlib knows: .svg, .pdf, .png; that of `path` if None.
    """
    import matplotlib
    from matplotlib.figure import Figure

    rows = found.points.to_pylist()
    names, qualities, codecs = (
        list(dict.fromkeys(row[key] for row in rows)) for key in ("task", "quality", "codec")
    )
    size = (1 + 3.6 * len(qualities), 0.6 + 2.8 * len(names))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(names), len(qualities), squeeze=False)
    lines: dict[str, Any] = {}
    for place, axis in np.ndenumerate(axes):
        task, quality = names[place[0]], qualities[place[1]]
        facts = facts_of(task, tasks or {})
        cell = [row for row in rows if (row["task"], row["quality"]) == (task, quality)]
        for number, codec in enumerate(codecs):
            points = [row for row in cell if row["codec"] == codec and row["bpfp"]]
            if points:
                xy = ([row["bpfp"] for row in points], [row["value"] for row in points])
                marker = MARKERS[number % len(MARKERS)]
                (lines[codec],) = axis.plot(*xy, marker=marker, color=f"C{number}", markersize=4)
        if cell:
            axis.set_ylabel(f"{_words(quality, facts)} ({cell[0]['better']} is better)")
        axis.set(xscale="log", xlabel="bits per feature point", title=facts.title)
        axis.grid(alpha=0.3, which="both")
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=5)
    kind = (suffix or path.suffix)[1:]
    dates = {
        "svg": {"Date": None},
        "pdf": {"CreationDate": None},
    }  # the same curves, the same bytes
    with matplotlib.rc_context({"svg.hashsalt": "cfqa"}):
        figure.savefig(path, format=kind, dpi=110, metadata=dates.get(kind))


def _words(quality: str, facts: TaskFacts) -> str:
    named = {"score": facts.score, "loss": facts.loss}.get(quality)
    if named is None:
        return quality
    return f"{named.name} in {named.unit}" if named.unit else named.name
