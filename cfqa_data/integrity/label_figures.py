"""What labels can tell at most: negative, constant and tied distortions, and a ceiling per task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ceiling", "label_figures"]


def label_figures(labels: pa.Table) -> list[dict[str, Any]]:
    """Return one row of figures per task and codec.

    Args:
        labels: rows of :func:`cfqa_data.format.schema.label_schema`.

    Returns:
        Rows with ``task``, ``codec``, ``negative`` (share of distortions below 0: the compressed
        feature scores better than its original), ``constant`` (share of sources whose distortion is
        the same at all levels) and ``tied`` (share of pairs of levels of a source that have the
        same distortion; None of one level).
    """
    rows = []
    for (task, codec), part in _parts(labels, "task", "codec"):
        distortion = _by_source(part, "distortion")
        levels = distortion.shape[1]
        equal = (distortion[:, :, None] == distortion[:, None, :]).sum() - distortion.size
        rows.append(
            {
                "task": task,
                "codec": codec,
                "negative": float((distortion < 0).mean()),
                "constant": float((distortion == distortion[:, :1]).all(axis=1).mean()),
                "tied": float(equal / (len(distortion) * levels * (levels - 1)))
                if levels > 1
                else None,
            }
        )
    return rows


def ceiling(labels: pa.Table) -> float | None:
    """Return how well a task's own loss orders its distortions: what a metric may hope for.

    It is the mean over sources of the SROCC of loss and distortion over all versions of a source,
    by the rules of `cfqa eval`: sources of constant distortion are left out, and a constant loss
    counts 0. The loss sees truth and head, which a metric of features does not.

    Args:
        labels: rows of one task.

    Returns:
        None where the task has no loss, or all distortions of every source are the same.
    """
    from cfqa_data.eval.statistics.correlations import constant_rows, spearman

    if not labels.num_rows:
        return None
    distortion, loss = _by_source(labels, "distortion"), _by_source(labels, "loss")
    varying = ~constant_rows(distortion)
    if np.isnan(loss).any() or not varying.any():
        return None
    return float(np.nan_to_num(spearman(loss[varying], distortion[varying])).mean())


def _by_source(labels: pa.Table, column: str) -> np.ndarray:
    """Return a column as float64 (sources, versions), in the same order of versions."""
    keys = [labels[name].to_pylist() for name in ("source_id", "codec", "level")]
    order = sorted(range(labels.num_rows), key=list(zip(*keys, strict=True)).__getitem__)
    values = labels[column].to_numpy()[order].astype(np.float64)
    return np.asarray(values.reshape(len(set(keys[0])), -1))


def _parts(labels: pa.Table, *columns: str) -> list[tuple[tuple[str, ...], pa.Table]]:
    """Return the rows of each combination of columns, in the order of their first rows."""
    keys = list(zip(*(labels[name].to_pylist() for name in columns), strict=True))
    places: dict[tuple[str, ...], list[int]] = {}
    for place, key in enumerate(keys):
        places.setdefault(key, []).append(place)
    return [(key, labels.take(rows)) for key, rows in places.items()]
