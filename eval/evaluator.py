"""Score every compressed feature of a dataset and correlate the scores with its labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from cfqa_data.errors import CfqaError, MetricError
from cfqa_data.eval.metrics import Metric, MetricLike, as_metrics
from cfqa_data.eval.metrics.base import error_line, first_nonfinite
from cfqa_data.eval.tables import across_codecs_table, correlations_table, scores_table
from cfqa_data.progress import Progress, Silent

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["DEFAULT_METRICS", "Evaluation", "FeatureSource", "evaluate"]

DEFAULT_METRICS = ("mse", "cosine", "cka")

# Compressed features per batch, in bytes of float32. Small batches stay in a CPU's cache (up to
# three times as fast as 16 MB at 65 x 192); a GPU wants large ones.
CPU_BATCH_BYTES = 4 * 2**20
GPU_BATCH_BYTES = 256 * 2**20


class FeatureSource(Protocol):
    """What is evaluated: a `cfqa_data.Dataset`, or anything that answers like one."""

    @property
    def labels(self) -> pa.Table:
        """One row per compressed feature: task, source_id, codec, level and the target."""

    def original(self, source_id: str) -> NDArray[Any]:
        """Return an original, float32 (N, C, T, D)."""

    def compressed(self, source_id: str, codec: str, level: int) -> NDArray[Any]:
        """Return a compressed feature, float32 (N, C, T, D)."""


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found; the tables are described in `cfqa_data.eval.tables`.

    Attributes:
        scores: One row per compressed feature and metric.
        correlations: One row per task, codec and metric.
        across_codecs: One row per task and metric, all codecs together.
        metrics: The metrics, in the tables' order.
        target: Label column that the scores were correlated with.
    """

    scores: pa.Table
    correlations: pa.Table
    across_codecs: pa.Table
    metrics: tuple[Metric, ...]
    target: str


def evaluate(
    dataset: FeatureSource | str | Path,
    metrics: MetricLike | Iterable[MetricLike] = DEFAULT_METRICS,
    device: str = "cpu",
    *,
    task: str | None = None,
    codec: str | Iterable[str] | None = None,
    target: Literal["distortion", "loss"] = "distortion",
    batch: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Run metrics over a dataset in one pass and correlate them with the labels.

    Each original is read once and kept while all its compressed versions are scored by all
    metrics, a batch at a time, so memory does not grow with the dataset.

    Args:
        dataset: An open dataset, or the path of one.
        metrics: One or several of: names, ``"module:attribute"`` strings, `Metric` objects or
            callables ``(x, y) -> (B,)`` on float32 tensors of shape (B, N, C, T, D).
        device: Torch device of the metrics.
        task: Only this task (with a path only: an open dataset is what it is).
        codec: Only this codec, or these (with a path only).
        target: Label to follow: ``distortion`` (harm to the task's score) or ``loss`` (a
            continuous task loss). Both grow with the damage.
        batch: Compressed features per batch; by default as many as make 4 MiB on a CPU, or
            256 MiB on another device.
        progress: Told about every batch that is done.

    Raises:
        MetricError: Unknown or failing metric; NaN or Inf in a feature, which is named.
        FormatError: The folder is not a dataset, or something in it is missing.
    """
    if target not in ("distortion", "loss"):
        raise MetricError(f"target is 'distortion' or 'loss', not {target!r}")
    if batch is not None and batch < 1:
        raise MetricError(f"batch is at least 1, not {batch}")
    resolved = as_metrics(metrics, device)
    opened = _open(dataset, task, codec)
    labels = opened.labels
    if labels.num_rows == 0:
        raise MetricError("the dataset has no compressed features to score")

    progress = progress or Silent()
    progress.start("evaluate", labels.num_rows, "features")
    values = np.full((labels.num_rows, len(resolved)), np.nan)
    for rows, scores in _scored(opened, resolved, device, batch):
        values[rows] = scores
        progress.advance(len(rows))
    progress.finish()
    return Evaluation(
        scores=scores_table(labels, resolved, values),
        correlations=correlations_table(labels, resolved, values, target),
        across_codecs=across_codecs_table(labels, resolved, values, target),
        metrics=resolved,
        target=target,
    )


def _open(
    dataset: FeatureSource | str | Path, task: str | None, codec: str | Iterable[str] | None
) -> FeatureSource:
    if isinstance(dataset, str | Path):
        from cfqa_data.dataset import load

        return load(dataset, task, codec=codec)
    if task is not None or codec is not None:
        raise MetricError("task and codec select from a path; open the dataset with them instead")
    return dataset


def _scored(
    dataset: FeatureSource, metrics: Sequence[Metric], device: str, batch: int | None
) -> Iterator[tuple[list[int], NDArray[Any]]]:
    """Yield label rows and their (rows, M) scores, source by source."""
    import torch

    columns = {name: dataset.labels[name].to_pylist() for name in ("source_id", "codec", "level")}
    by_source: dict[str, list[int]] = {}
    for row, source_id in enumerate(columns["source_id"]):
        by_source.setdefault(source_id, []).append(row)

    room = CPU_BATCH_BYTES if device == "cpu" else GPU_BATCH_BYTES
    with torch.inference_mode():
        for source_id, rows in by_source.items():
            original = np.array(dataset.original(source_id), dtype=np.float32)[None]
            x = torch.from_numpy(original).to(device)
            if first_nonfinite(x) is not None:
                raise MetricError(f"original {source_id} holds NaN or Inf")
            size = batch or max(1, room // original.nbytes)
            for first in range(0, len(rows), size):
                part = rows[first : first + size]
                versions = [(columns["codec"][row], int(columns["level"][row])) for row in part]
                y = torch.from_numpy(
                    np.stack([dataset.compressed(source_id, *version) for version in versions])
                ).to(device)
                if y.shape[1:] != x.shape[1:]:
                    raise MetricError(
                        f"{source_id}: compressed features have shape {tuple(y.shape[1:])}, "
                        f"the original {tuple(x.shape[1:])}"
                    )
                item = first_nonfinite(y)
                if item is not None:
                    raise MetricError(f"{_name(source_id, versions[item])} holds NaN or Inf")
                yield part, np.stack([_score(m, x, y, source_id) for m in metrics], axis=1)


def _score(metric: Metric, x: Any, y: Any, source_id: str) -> NDArray[Any]:
    try:
        scores: NDArray[Any] = metric.score(x, y).cpu().numpy()
    except CfqaError as error:
        raise MetricError(f"{error} (source {source_id})") from error
    except Exception as error:  # whatever a user's function raises
        raise MetricError(
            f"metric {metric.name!r} failed: {error_line(error)} (source {source_id})"
        ) from error
    return scores


def _name(source_id: str, version: tuple[str, int]) -> str:
    return f"compressed feature {source_id}, {version[0]}, level {version[1]}"
