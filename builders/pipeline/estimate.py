"""Estimate a build before it runs: items, features, bytes, memory and core-hours."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

from cfqa_data.access.weights import resolve_weights
from cfqa_data.builders.pipeline.build import STAGES
from cfqa_data.builders.pipeline.compress import FEATURE_SECONDS, LABEL_SECONDS
from cfqa_data.builders.pipeline.context import BuildContext, Models, codec_for
from cfqa_data.builders.pipeline.fit import Fit, measurements
from cfqa_data.builders.pipeline.label import batch_of_levels
from cfqa_data.builders.pipeline.plan import Plan
from cfqa_data.builders.pipeline.prepare import is_fitted
from cfqa_data.builders.pipeline.preview import Preview
from cfqa_data.builders.pipeline.select import BuildStage
from cfqa_data.console.text import size_text, table_text
from cfqa_data.errors import BuildError
from cfqa_data.format.checkpoints import weight_files
from cfqa_data.format.layout import Layout

__all__ = ["estimate", "estimate_text"]

_DRAW_SECONDS = 0.04  # time to draw the pictures of a source
_FLOPS = 2e10  # float32 operations per second of one core in matrix products
_BITSTREAM_BYTES = 0.055  # per feature point, mean over the ladders of `mini`
_CODE_BYTES, _VALUE_BYTES = 0.47, 3.0  # per feature point, in a stored (compressed) chunk
_PYTHON_BYTES = 0.6e9  # memory of the process, its libraries and their models


def estimate(plan: Plan) -> dict[str, Any]:
    """Estimate the cost of a plan from one sample of each task.

    The time to read a sample is measured; other times and the bytes follow from rates that were
    measured elsewhere. Expect an accuracy of about a factor of two. Samples that a task rejects
    and the gallery of a task are not included.

    Args:
        plan: Plan of the build.

    Returns:
        JSON-safe data. ``stages`` has rows with ``stage``, ``task``, ``codec`` (or None),
        ``items``, ``features``, ``bytes`` (written) and ``core_hours``; ``items``, ``bytes`` and
        ``core_hours`` are totals; ``worker_bytes`` is the peak memory of one worker.

    Raises:
        BuildError: If a source has no sample.
    """
    recipe, context = plan.recipe, BuildContext(plan, Layout(Path()))
    models = context.models
    sizes = {task: _size(models, task) for task in recipe.tasks}
    codecs_of = {task: [*map(codec_for, s.codecs.values())] for task, s in recipe.tasks.items()}
    rows, memory = [], 0.0
    stages: tuple[type[BuildStage], ...] = (Fit, *STAGES)
    for stage in stages:
        counts = Counter((item.task, item.codec) for item in stage(context).items())
        for task, spec in recipe.tasks.items():
            codecs = [c for c in ("", *spec.codecs) if (task, c) in counts]
            for codec in codecs:
                levels = len(spec.codecs[codec].levels) if codec and stage is not Preview else 1
                (points, tokens, sample), sources = sizes[task], recipe.sources(task)
                written, seconds, worker_bytes = 0.0, 0.0, 0.0
                fitted_on = recipe.fitted_on(task)
                forward = 2 * models.backbone.parameters * tokens / _FLOPS
                group = len(plan.members(task, 0)) * points
                if stage is Fit:
                    levels, sources = 1, fitted_on + measurements(plan, task, codec)
                    each = codec_for(spec.codecs[codec]).cost + LABEL_SECONDS
                    seconds = fitted_on * (sample + forward)
                    seconds += (sources - fitted_on) * points * each / 1e6
                elif stage is Preview:
                    seconds = sources * (sample + _DRAW_SECONDS + points * LABEL_SECONDS / 1e6)
                elif codec:
                    written, seconds = _coding(plan, task, codec, sources * levels * points)
                    seconds += sources * levels * FEATURE_SECONDS
                    batch = batch_of_levels(points, levels) + 1
                    # codes and originals of the shard; a batch in float32, and three times that
                    # in float64 for the metrics
                    worker_bytes = (2.0 * levels + 4) * group + (4 + 3 * 8) * batch * points
                elif stage.name == "extract":
                    written, worker_bytes = 4.0 * sources * points, 4.0 * group
                    seconds = sources * (sample + forward)
                elif stage.name == "select":
                    scored = spec.task_class == "classification"
                    scored |= models.source(task).worst_score is not None
                    seconds = sources * (sample + forward * scored)
                elif stage.name == "prepare" and any(map(is_fitted, codecs_of[task])):
                    seconds = fitted_on * (sample + forward)
                memory = max(memory, worker_bytes)
                rows.append(
                    {
                        "stage": stage.name,
                        "task": task,
                        "codec": codec or None,
                        "items": counts[task, codec],
                        "features": sources * levels,
                        "bytes": round(written),
                        "core_hours": seconds / 3600,
                    }
                )
    weights = 0
    if recipe.backbone.weights:
        files = weight_files(resolve_weights(recipe.backbone.weights))
        weights = sum(path.stat().st_size for path in files)
    return {
        "stages": rows,
        "items": sum(row["items"] for row in rows),
        "bytes": sum(row["bytes"] for row in rows),
        "core_hours": sum(row["core_hours"] for row in rows),
        "worker_bytes": round(max(memory, 1.3 * weights) + _PYTHON_BYTES),
    }


def _size(models: Models, task: str) -> tuple[int, int, float]:
    """Return the points of a feature, the tokens of all its views, and the seconds of a sample."""
    source = models.source(task)
    for sample in source.samples():
        start = perf_counter()
        source.sample(sample.source_id)
        seconds = perf_counter() - start
        shape = models.backbone.shape(sample.inputs, models.recipe.tasks[task].blocks)
        stored = models.features(task, sample.inputs).shape if models.embeds(task) else shape
        return math.prod(stored), shape[0] * shape[2], seconds
    raise BuildError(f"{task}: the source has no candidates")


def _coding(plan: Plan, task: str, codec: str, points: int) -> tuple[float, float]:
    """Return the bytes that all items of a codec write, and the core-seconds that they take."""
    codec_spec = plan.recipe.tasks[task].codecs[codec]
    array_bytes = _CODE_BYTES if codec_spec.quantizer else _VALUE_BYTES
    stored = array_bytes if codec_spec.stored(plan.tier) else 0.0
    seconds = (codec_for(codec_spec).cost + LABEL_SECONDS) / 1e6
    return points * (_BITSTREAM_BYTES + stored), points * seconds


def estimate_text(result: Mapping[str, Any]) -> str:
    """Format an estimate as a table with a line of totals."""
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
        for row in result["stages"]
    ]
    return (
        f"{table_text([heads, *rows], left=3)}\n\n"
        f"{result['items']} items, about {result['core_hours']:.3g} core-hours, "
        f"{size_text(result['bytes'])} on disk, "
        f"{size_text(result['worker_bytes'])} of memory per worker"
    )
