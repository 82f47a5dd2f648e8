"""Merge evaluations of one dataset, or of separate builds of it.

Scores depend on the features and labels of a dataset. Scores on another build of the same recipe
are accepted for the features whose labels agree, which include the error of each feature
(`COMPARED_LABELS`). A dataset that only shares a few sources is not a build of the same recipe.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain, count
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cfqa_data.arrow import pa
from cfqa_data.errors import MetricError, MetricWarning
from cfqa_data.eval.score_rows import row_keys, row_name, shared_rows

if TYPE_CHECKING:
    from cfqa_data.eval.metrics import Metric
    from cfqa_data.eval.results import Evaluation

__all__ = [
    "align_labels",
    "combine",
    "compare_labels",
    "merge",
    "same_dataset",
    "select_agreeing",
]

COMPARED_LABELS = ("score", "loss", "mse")
"""Label columns that must agree; ``distortion`` must if there is no ``score``."""

TOLERANCE = 1e-6
"""Maximum relative difference of labels or scores that agree."""

MAX_NAMED = 3
"""Maximum number of features that a message names."""


def merge(one: Evaluation, other: Evaluation, label: str = "") -> Evaluation:
    """Merge two evaluations into one with all features and all metrics of both.

    Where both have a score of the same metric and feature, the first is kept.

    Args:
        one: The first evaluation, whose dataset, target and notes take precedence.
        other: An evaluation of the same dataset, or of a build whose labels agree.
        label: Renames metrics of the other evaluation that differ from one of the same name, to
            ``NAME (LABEL)``, or to ``NAME (LABEL 2)`` if that is the name of yet another metric.

    Raises:
        MetricError: If the datasets differ, or two different metrics have the same name and there
            is no label.
    """
    other_name = label or "the other result"
    if None in (one.dataset, other.dataset) or one.dataset != other.dataset:
        features = one.dataset_features
        complete = features == one.labels.num_rows
        other = select_agreeing(other, one.labels, other_name, features, complete=complete)
    own, others, rows = one.columns(), other.columns(), shared_rows(one.labels, other.labels)

    def differs(name: str, other_name: str) -> bool:
        """Return whether a name of the first is that of another metric than one of the other."""
        if name not in own:
            return False
        records = one.provenance.get(name), other.provenance.get(other_name)
        fingerprints = [record and record.fingerprint for record in records]
        digests = {fingerprint.digest for fingerprint in fingerprints if fingerprint}
        if all(fingerprints) and len(digests) == 1 and None not in digests:
            return False
        a, b = own[name][rows[0]], others[other_name][rows[1]]
        known = ~np.isnan(a) & ~np.isnan(b)
        return not known.any() or not _is_close(a[known], b[known]).all()

    different = [m for m in (*other.metrics, *other.without) if differs(m.name, m.name)]
    if different and not label:
        raise MetricError(
            f"two different metrics are named {different[0].name!r}; "
            "distinguish them by merge(other, label)"
        )
    for tag in chain([label], (f"{label} {number}" for number in count(2))):
        renamed = {
            m.name: f"{m.base_name} ({tag})" + m.name.removeprefix(m.base_name) for m in different
        }
        taken = others.keys() - renamed.keys()
        if not any(new in taken or differs(new, old) for old, new in renamed.items()):
            break
    return combine(one, _rename_metrics(other, renamed))


def combine(one: Evaluation, other: Evaluation) -> Evaluation:
    """Combine the features and metrics of two evaluations of one dataset.

    The scores of the first take precedence. Label columns that only one has are null for the rows
    of the other.
    """
    row_of_key = {key: row for row, key in enumerate(row_keys(one.labels))}
    keys = row_keys(other.labels)
    new = np.array([key not in row_of_key for key in keys], dtype=bool)
    labels = one.labels
    if new.any():
        tables = [labels, other.labels.filter(pa.array(new))]
        labels = pa.concat_tables(tables, promote_options="permissive").combine_chunks()
        row_of_key = {key: row for row, key in enumerate(row_keys(labels))}
    rows = np.array([row_of_key[key] for key in keys], dtype=np.intp)
    scores: dict[str, NDArray[np.float64]] = {}
    metrics: dict[str, Metric] = {}
    for part, part_rows in ((other, rows), (one, np.arange(one.labels.num_rows))):
        for metric, column in zip((*part.metrics, *part.without), part.values.T, strict=True):
            whole = scores.setdefault(metric.name, np.full(labels.num_rows, np.nan))
            whole[part_rows] = np.where(np.isnan(column), whole[part_rows], column)
            metrics[metric.name] = metric
    order = list(dict.fromkeys([*one.columns(), *other.columns()]))
    order.sort(key=lambda name: metrics[name].left_out is not None)
    values = np.stack([scores[name] for name in order], axis=1)
    facts: dict[str, Any] = {
        field: {**getattr(other, field), **getattr(one, field)}
        for field in ("failures", "notes", "tasks", "provenance")
    }
    facts["dataset_features"] = one.dataset_features or other.dataset_features
    return replace(one.rescored(labels, [metrics[name] for name in order], values), **facts)


def align_labels(evaluation: Evaluation, labels: pa.Table) -> Evaluation:
    """Return an evaluation with the rows and columns of labels; rows that they lack come last."""
    rows, own_rows = shared_rows(labels, evaluation.labels)
    order = np.argsort(rows, kind="stable")
    others = np.setdiff1d(np.arange(evaluation.labels.num_rows), own_rows)
    sorted_part = evaluation.part([*own_rows[order], *others], evaluation.columns())
    aligned = labels.take(rows[order])
    if len(others):
        rest = evaluation.labels.take(others)
        aligned = pa.concat_tables([aligned, rest], promote_options="permissive").combine_chunks()
    return replace(sorted_part, labels=aligned)


def _is_close(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which numbers agree to `TOLERANCE`; NaN agrees with NaN."""
    a, b = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    return np.isclose(a, b, rtol=TOLERANCE, atol=0.0, equal_nan=True)


@dataclass(frozen=True)
class LabelAgreement:
    """Agreement of an evaluation's labels with those of another dataset.

    Attributes:
        shared: (rows,) whether the other labels have each row of the evaluation.
        differ: (rows,) whether the labels of a shared row differ.
        same: Whether both are of one dataset: most shared rows agree, and more than half of the
            features of each dataset can agree.
    """

    shared: NDArray[np.bool_]
    differ: NDArray[np.bool_]
    same: bool


def compare_labels(
    evaluation: Evaluation, labels: pa.Table, features: int | None
) -> LabelAgreement:
    """Compare the labels of an evaluation with other labels; both may be a part of a dataset.

    A row that only one of them has counts as a difference, unless the other may not have scored it.

    Args:
        evaluation: An evaluation.
        labels: Labels of a dataset, or the part of them that was scored.
        features: Number of features of that dataset. If it is unknown, or that of the evaluation,
            both are taken to be complete for the tasks that they share.
    """
    shared, agree = _agreeing_rows(evaluation, labels)
    differ = shared & ~agree
    counts = np.array([labels.num_rows, evaluation.labels.num_rows])
    if features is None or evaluation.dataset_features is None:
        tasks = [
            table["task"].to_numpy(zero_copy_only=False) for table in (labels, evaluation.labels)
        ]
        counts = np.array([np.isin(one, two).sum() for one, two in (tasks, tasks[::-1])])
        sizes = counts
    else:
        sizes = np.maximum(counts, [features, evaluation.dataset_features])
    unscored = sizes - counts
    absent = np.maximum(0, counts - shared.sum() - unscored[::-1])  # rows of one, not in the other
    most_agreeing = (sizes - absent).min() - differ.sum()  # an upper bound
    same = 2 * agree.sum() > shared.sum() and 2 * most_agreeing > sizes.max()
    return LabelAgreement(shared, differ, bool(same))


def select_agreeing(
    evaluation: Evaluation, labels: pa.Table, name: str, features: int | None, *, complete: bool
) -> Evaluation:
    """Return the part of an evaluation whose labels agree with those of another dataset.

    A note and a warning report the features that are left out.

    Args:
        evaluation: An evaluation of a separate build of the dataset.
        labels: Labels of the dataset, or the part of them that was scored.
        name: Name of the evaluation in messages.
        features: Number of features of the dataset; None if unknown.
        complete: Whether ``labels`` are complete, so that rows that they lack are left out.

    Raises:
        MetricError: If the evaluation is of another dataset.
    """
    agreement = compare_labels(evaluation, labels, features)
    if not agreement.same:
        raise MetricError(f"{name}: scores of another dataset; give that dataset")
    missing, notes = ~agreement.shared, []
    absent, unscored = missing & complete, missing & (not complete)
    keys, dropped = row_keys(evaluation.labels), agreement.differ | absent
    for rows, message in (
        (agreement.differ, "the labels of {} differ; their scores are left out"),
        (absent, "{} are not in the dataset; their scores are left out"),
        (unscored, "{} are not scored in the other file and keep their own labels"),
    ):
        if rows.any():
            names = [row_name(keys[row]) for row in np.flatnonzero(rows)]
            more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
            counts = message.format(f"{len(names)} of {len(keys)} features")
            notes.append(f"{name}: {counts}: {'; '.join(names[:MAX_NAMED])}{more}")
            if rows is not unscored:
                warnings.warn(MetricWarning(notes[-1]), stacklevel=4)
    if not notes:
        return evaluation
    part = evaluation.part(np.flatnonzero(~dropped), evaluation.columns())
    return replace(part, notes=part.notes | {f"scores of {name}": "\n".join(notes)})


def same_dataset(one: Evaluation, other: Evaluation) -> bool:
    """Return whether two evaluations are of one dataset, or of builds whose labels agree."""
    if one.dataset is not None and one.dataset == other.dataset:
        return True
    return compare_labels(other, one.labels, one.dataset_features).same


def _agreeing_rows(
    evaluation: Evaluation, labels: pa.Table
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which rows of an evaluation other labels have too, and which of these agree."""
    rows, own_rows = shared_rows(labels, evaluation.labels)
    both = set(labels.column_names) & set(evaluation.labels.column_names)
    columns = both & {*COMPARED_LABELS, *(() if "score" in both else ("distortion",))}
    same = np.full(len(rows), bool(columns))
    for column in columns:
        one, other = labels[column].take(rows), evaluation.labels[column].take(own_rows)
        same &= _is_close(one.to_numpy(), other.to_numpy())
    shared, agree = np.zeros((2, evaluation.labels.num_rows), dtype=bool)
    shared[own_rows], agree[own_rows] = True, same
    return shared, agree


def _rename_metrics(evaluation: Evaluation, names: Mapping[str, str]) -> Evaluation:
    if not names:
        return evaluation
    metrics = [
        replace(metric, name=names.get(metric.name, metric.name))
        for metric in (*evaluation.metrics, *evaluation.without)
    ]
    facts: dict[str, Any] = {
        field: {names.get(name, name): value for name, value in getattr(evaluation, field).items()}
        for field in ("provenance", "notes", "failures")
    }
    return replace(evaluation.rescored(evaluation.labels, metrics, evaluation.values), **facts)
