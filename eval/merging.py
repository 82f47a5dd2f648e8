"""Put results together: of several files, of colleagues, of scores that were made elsewhere.

Scores depend on the features and the labels of a dataset.  Those of another build of the same
recipe are taken where its labels agree, which include the error of each feature (`BOUND`).  A
dataset that shares a few sources with another is not a build of the same recipe.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cfqa_data.arrow import pa
from cfqa_data.errors import MetricError, MetricWarning
from cfqa_data.eval.provenance import Provenance
from cfqa_data.eval.score_rows import named, row_keys, shared_rows

if TYPE_CHECKING:
    from cfqa_data.eval.metrics import Metric
    from cfqa_data.eval.results import Evaluation

__all__ = ["agreeing", "compared", "joined", "merge", "relabelled", "same_dataset"]

BOUND = ("score", "loss", "mse")
"""Labels that must agree; without ``score``, ``distortion`` must."""

TOLERANCE = 1e-6
"""Relative difference of labels, and of scores, up to which they agree."""

NAMED = 3
"""Features that a message names."""


def merge(one: Evaluation, other: Evaluation, label: str = "") -> Evaluation:
    """Put two results together: all features and all metrics of both.

    Where both have scores of the same metric, those of the first are kept.

    Args:
        one: Whose dataset, label to follow and notes come first.
        other: Of the same dataset, or of one whose labels agree.
        label: What tells a metric of the other from another one of the same name: it is then
            called ``NAME (LABEL)``.

    Raises:
        MetricError: If they are of different datasets; without a label, a metric of both is not the
            same one.
    """
    called = label or "the other result"
    if None in (one.dataset, other.dataset) or one.dataset != other.dataset:
        whole = one.dataset_features
        complete = whole == one.labels.num_rows
        other = agreeing(other, one.labels, called, whole, complete=complete)
    renamed = {}
    mine, theirs, places = one.columns(), other.columns(), shared_rows(one.labels, other.labels)
    for metric in (*other.metrics, *other.without):
        name = metric.name
        if name not in mine or _same(one, other, name, mine[name], theirs[name], places):
            continue
        if not label:
            raise MetricError(
                f"two different metrics are named {name!r}; distinguish them by merge(other, label)"
            )
        renamed[name] = f"{metric.base_name} ({label})" + name.removeprefix(metric.base_name)
    return joined(one, _renamed(other, renamed))


def joined(one: Evaluation, other: Evaluation) -> Evaluation:
    """Return the features and metrics of two evaluations of one dataset; the first's scores count.

    Labels that one has columns of which the other lacks are null there.
    """
    there = {key: place for place, key in enumerate(row_keys(one.labels))}
    keys = row_keys(other.labels)
    new = np.array([key not in there for key in keys], dtype=bool)
    labels = one.labels
    if new.any():
        tables = [labels, other.labels.filter(pa.array(new))]
        labels = pa.concat_tables(tables, promote_options="permissive").combine_chunks()
        there |= {key: place for place, key in enumerate(row_keys(labels))}
    rows = np.array([there[key] for key in keys], dtype=np.intp)
    scores: dict[str, NDArray[np.float64]] = {}
    metrics: dict[str, Metric] = {}
    for part, at in ((other, rows), (one, np.arange(one.labels.num_rows))):
        for metric, column in zip((*part.metrics, *part.without), part.values.T, strict=True):
            whole = scores.setdefault(metric.name, np.full(labels.num_rows, np.nan))
            whole[at] = np.where(np.isnan(column), whole[at], column)
            metrics[metric.name] = metric
    order = list(dict.fromkeys([*one.columns(), *other.columns()]))
    order.sort(key=lambda name: metrics[name].left_out is not None)
    values = np.stack([scores[name] for name in order], axis=1)
    about: dict[str, Any] = {
        field: {**getattr(other, field), **getattr(one, field)}
        for field in ("failures", "notes", "tasks", "provenance")
    }
    about["dataset_features"] = one.dataset_features or other.dataset_features
    return replace(one.rescored(labels, [metrics[name] for name in order], values), **about)


def relabelled(evaluation: Evaluation, labels: pa.Table) -> Evaluation:
    """Return an evaluation in the order of labels, with their columns; other rows come last."""
    places, theirs = shared_rows(labels, evaluation.labels)
    order = np.argsort(places, kind="stable")
    others = np.setdiff1d(np.arange(evaluation.labels.num_rows), theirs)
    moved = evaluation.part([*theirs[order], *others], evaluation.columns())
    found = labels.take(places[order])
    if len(others):
        rest = evaluation.labels.take(others)
        found = pa.concat_tables([found, rest], promote_options="permissive").combine_chunks()
    return replace(moved, labels=found)


def _agree(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which numbers agree; two that are NaN do."""
    a, b = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    return np.isclose(a, b, rtol=TOLERANCE, atol=0.0, equal_nan=True)


@dataclass(frozen=True)
class Compared:
    """How the features of an evaluation compare with those of other labels.

    Attributes:
        shared: (rows,) which of its rows the labels have too.
        differ: (rows,) of which of these the labels differ.
        same: Whether both are of one dataset: most shared rows agree, and more than half of the
            features of each dataset may.
    """

    shared: NDArray[np.bool_]
    differ: NDArray[np.bool_]
    same: bool


def compared(evaluation: Evaluation, labels: pa.Table, features: int | None) -> Compared:
    """Compare the features of an evaluation with other labels, either of which may be a part.

    A row that only one of them has counts against it unless the other may lack it as not scored.

    Args:
        evaluation: Scores with labels.
        labels: Of another dataset.
        features: How many features that has; None if that is not known: then, of both, what is
            there counts as the whole of the tasks that both have.
    """
    shared, good = _agreement(evaluation, labels)
    differ = shared & ~good
    counts = np.array([labels.num_rows, evaluation.labels.num_rows])
    if features is None or evaluation.dataset_features is None:
        names = [
            table["task"].to_numpy(zero_copy_only=False) for table in (labels, evaluation.labels)
        ]
        counts = np.array([np.isin(one, two).sum() for one, two in (names, names[::-1])])
        sizes = counts
    else:
        sizes = np.maximum(counts, [features, evaluation.dataset_features])
    unscored = sizes - counts
    absent = np.maximum(0, counts - shared.sum() - unscored[::-1])  # of each, from the other
    alike = (sizes - absent).min() - differ.sum()  # at most so many
    same = 2 * good.sum() > shared.sum() and 2 * alike > sizes.max()
    return Compared(shared, differ, bool(same))


def agreeing(
    evaluation: Evaluation, labels: pa.Table, name: str, features: int | None, *, complete: bool
) -> Evaluation:
    """Return the part of an evaluation whose labels agree with those of another dataset.

    What is left out for that is told in a note and a warning.

    Args:
        evaluation: Of a dataset that was built apart.
        labels: Of the dataset, or of what was scored of it.
        name: How to call the evaluation.
        features: How many features the dataset has; None if that is not known.
        complete: Whether ``labels`` are all of them: what they lack is left out, too.

    Raises:
        MetricError: If it is another dataset.
    """
    found = compared(evaluation, labels, features)
    if not found.same:
        raise MetricError(f"{name}: scores of another dataset; give that dataset")
    lacking, notes = ~found.shared, []
    absent, unscored = lacking & complete, lacking & (not complete)
    keys, lost = row_keys(evaluation.labels), found.differ | absent
    for rows, what in (
        (found.differ, "the labels of {} differ; their scores are left out"),
        (absent, "{} are not in the dataset; their scores are left out"),
        (unscored, "{} are not scored in the other file and keep their own labels"),
    ):
        if rows.any():
            names = [named(keys[place]) for place in np.flatnonzero(rows)]
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            counts = what.format(f"{len(names)} of {len(keys)} features")
            notes.append(f"{name}: {counts}: {'; '.join(names[:NAMED])}{more}")
            if rows is not unscored:
                warnings.warn(MetricWarning(notes[-1]), stacklevel=4)
    if not notes:
        return evaluation
    part = evaluation.part(np.flatnonzero(~lost), evaluation.columns())
    return replace(part, notes=part.notes | {f"scores of {name}": "\n".join(notes)})


def same_dataset(one: Evaluation, other: Evaluation) -> bool:
    """Whether two evaluations are of one dataset, or of two that agree (see `compared`)."""
    if one.dataset is not None and one.dataset == other.dataset:
        return True
    return compared(other, one.labels, one.dataset_features).same


def _agreement(
    evaluation: Evaluation, labels: pa.Table
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which rows of an evaluation other labels have too, and of which they agree."""
    ours, theirs = shared_rows(labels, evaluation.labels)
    both = set(labels.column_names) & set(evaluation.labels.column_names)
    bound = {*BOUND, "distortion"} - ({"distortion"} if "score" in both else set())
    same = np.full(len(ours), bool(bound & both))
    for column in bound & both:
        same &= _agree(
            labels[column].take(ours).to_numpy(), evaluation.labels[column].take(theirs).to_numpy()
        )
    here, good = np.zeros((2, evaluation.labels.num_rows), dtype=bool)
    here[theirs], good[theirs] = True, same
    return here, good


def _same(
    one: Evaluation,
    other: Evaluation,
    name: str,
    mine: NDArray[np.float64],
    theirs: NDArray[np.float64],
    places: tuple[NDArray[np.intp], NDArray[np.intp]],
) -> bool:
    """Whether a name is that of the same metric: of the same code, or with the same scores."""
    records = [part.provenance.get(name, Provenance()).fingerprint for part in (one, other)]
    digests = {record.digest for record in records if record and record.digest}
    if len(digests) == 1 and all(records):
        return True
    a, b = mine[places[0]], theirs[places[1]]
    known = ~np.isnan(a) & ~np.isnan(b)
    return bool(known.any()) and bool(_agree(a[known], b[known]).all())


def _renamed(evaluation: Evaluation, names: Mapping[str, str]) -> Evaluation:
    if not names:
        return evaluation
    metrics = [
        replace(metric, name=names.get(metric.name, metric.name))
        for metric in (*evaluation.metrics, *evaluation.without)
    ]
    about: dict[str, Any] = {
        field: {names.get(name, name): value for name, value in getattr(evaluation, field).items()}
        for field in ("provenance", "notes", "failures")
    }
    return replace(evaluation.rescored(evaluation.labels, metrics, evaluation.values), **about)
