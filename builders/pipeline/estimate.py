"""What a build will take, told before anything runs: items, features, bytes, memory, core-hours."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cfqa_data.access.weights import resolve_weights
from cfqa_data.builders.pipeline.compress import batch_of_levels
from cfqa_data.builders.pipeline.plan import STAGES, Plan
from cfqa_data.builders.pipeline.tools import Models, codec_for
from cfqa_data.console.text import size_text, table_text
from cfqa_data.errors import BuildError
from cfqa_data.format.checkpoints import weight_files
from cfqa_data.format.tasks import LEVELS

__all__ = ["estimate", "estimate_text"]

_LABEL_SECONDS = 0.3  # head, metrics and storage, per million points
_FLOPS = 2e10  # what one core does in float32 matrix products, per second
_BITSTREAM_BYTES = 0.055  # per point, mean over the ladders of `mini`
_CODE_BYTES = 0.47  # per point, in a chunk as stored
_PYTHON_BYTES = 0.6e9  # the process, its libraries and their models


@dataclass(frozen=True)
class _Size:
    """Geometry of a task's features: values per feature, and tokens of all its views."""

    points: int
    tokens: int


def estimate(plan: Plan, models: Models | None = None) -> dict[str, Any]:
    """Return what a plan takes, JSON-safe; one candidate of each task is looked at.

    Args:
        plan: what would be built.
        models: its networks, if they are loaded.

    Returns:
        ``stages``: rows with ``stage``, ``task``, ``codec`` (or None), ``items``, ``features``,
        ``bytes`` (written) and ``core_hours``; ``items``, ``bytes`` and ``core_hours`` in all;
        ``worker_bytes``, the memory that one worker needs at most. Hours and bytes are estimates
        from rates measured elsewhere: within a factor of two or so.

    Raises:
        BuildError: a source has no candidate.
    """
    models = models or Models(plan.recipe)
    parameters = models.backbone.parameters
    sizes = {task: _size(models, task) for task in plan.recipe.tasks}
    rows, memory = [], 0.0
    for stage in STAGES:
        for task, spec in plan.recipe.tasks.items():
            for codec in spec.ladders if stage == "compress" else (None,):
                items = [item for item in plan.items(stage) if item.task == task]
                of_codec = [item for item in items if item.codec == (codec or "")]
                written, seconds = _work(plan, stage, task, codec, sizes[task], parameters)
                rows.append(
                    {
                        "stage": stage,
                        "task": task,
                        "codec": codec,
                        "items": len(of_codec),
                        "features": plan.recipe.sources_per_task * _levels(plan, task, codec),
                        "bytes": round(written),
                        "core_hours": seconds / 3600,
                    }
                )
        memory = max(memory, *(_memory(plan, stage, size) for size in sizes.values()))
    files = weight_files(resolve_weights(plan.recipe.backbone.weights))
    weights = sum(path.stat().st_size for path in files)
    return {
        "stages": rows,
        "items": sum(row["items"] for row in rows),
        "bytes": sum(row["bytes"] for row in rows),
        "core_hours": sum(row["core_hours"] for row in rows),
        "worker_bytes": round(max(memory, 1.3 * weights) + _PYTHON_BYTES),
    }


def _size(models: Models, task: str) -> _Size:
    for sample in models.source(task).samples():
        shape = models.backbone.shape(sample.inputs, models.recipe.tasks[task].blocks)
        return _Size(math.prod(shape), shape[0] * shape[2])
    raise BuildError(f"{task}: the source has no candidate")


def _levels(plan: Plan, task: str, codec: str | None) -> int:
    return len(plan.recipe.tasks[task].ladders[codec].levels) if codec else 1


def _work(
    plan: Plan, stage: str, task: str, codec: str | None, size: _Size, parameters: int
) -> tuple[float, float]:
    """Return the bytes that a stage writes for a task, and the core-seconds it takes."""
    sources = plan.recipe.sources_per_task
    if codec:
        points = sources * _levels(plan, task, codec) * size.points
        stored = _CODE_BYTES if plan.tier == "full" else 0.0
        coding = codec_for(plan.recipe.tasks[task].ladders[codec]).cost
        seconds = (coding + _LABEL_SECONDS) / 1e6
        return points * (_BITSTREAM_BYTES + stored), points * seconds
    passes = sources * 2 * parameters * size.tokens / _FLOPS
    if stage == "extract":
        return 4.0 * sources * size.points, passes
    return 0.0, passes if (stage, task) == ("select", "cls") else 0.0


def _memory(plan: Plan, stage: str, size: _Size) -> float:
    """Return the bytes of arrays that one item holds at once."""
    group = len(plan.members(0))
    if stage != "compress":
        return 4.0 * group * size.points if stage in ("extract", "centre") else 0.0
    batch = batch_of_levels(size.points, LEVELS)
    codes = 2.0 * group * LEVELS * size.points
    # float32 and float64 of a batch and of the original, and what the metrics make of them
    return codes + 4.0 * group * size.points + (4 + 3 * 8) * (batch + 1) * size.points


def estimate_text(told: Mapping[str, Any]) -> str:
    """Return an estimate as a table with a line of totals."""
    heads = ["stage", "task", "codec", "items", "features", "bytes", "core-hours"]
    rows = [
        [
            row["stage"],
            row["task"],
            row["codec"] or "",
            str(row["items"]),
            str(row["features"]),
            size_text(row["bytes"]) if row["bytes"] else "",
            f"{row['core_hours']:.3g}" if row["core_hours"] else "",
        ]
        for row in told["stages"]
    ]
    return (
        f"{table_text([heads, *rows], left=3)}\n\n"
        f"{told['items']} items, about {told['core_hours']:.3g} core-hours, "
        f"{size_text(told['bytes'])} on disk, {size_text(told['worker_bytes'])} of memory a worker"
    )
