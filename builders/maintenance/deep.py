"""Looking into a dataset folder: bitstreams are decoded again, and labels are computed again.

Every bitstream is decoded and compared with the stored codes, where there are any; of a sample of
rows the labels are computed from what was decoded. A process holds one feature at a time.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cfqa_data.access.files import Files
from cfqa_data.access.folder import Folder
from cfqa_data.builders.pipeline.label import baseline_values, score
from cfqa_data.builders.pipeline.tools import BASELINES, Models
from cfqa_data.builders.pipeline.work import one_thread
from cfqa_data.builders.processes.parallel import each
from cfqa_data.console.progress import Progress, Silent
from cfqa_data.errors import BuildError, CfqaError, FormatError, RecipeError
from cfqa_data.extras import extras
from cfqa_data.format.invariants import shard_of
from cfqa_data.format.layout import Layout
from cfqa_data.format.manifest import Manifest
from cfqa_data.format.resources import PACKAGE
from cfqa_data.format.tasks import LEVELS
from cfqa_data.guard import check_guard
from cfqa_data.integrity.verify import Fault
from cfqa_data.recipe.spec import Recipe

__all__ = ["SAMPLE", "Looked", "look_into"]

SAMPLE = 100
"""Rows whose labels are computed again, if nobody says how many."""

NAMES = Layout(Path())

# Relative and absolute difference that another machine's rounding may make. A rank is a count.
TOLERANCE = {
    "mse": (1e-6, 1e-12),
    "cosine": (1e-6, 1e-9),
    "cka": (1e-6, 1e-9),
    "loss": (1e-3, 1e-5),
    "reference_loss": (1e-3, 1e-5),
    "score": (1e-2, 1e-6),
    "reference_score": (1e-2, 1e-6),
}


@dataclass(frozen=True)
class Looked:
    """What looking into a folder found.

    Attributes:
        faults: what is wrong, by file.
        decoded: bitstreams that were decoded.
        compared: stored features that were compared with their bitstream.
        labelled: rows whose labels were computed again.
        notes: what could not be checked, and why.
    """

    faults: tuple[Fault, ...]
    decoded: int
    compared: int
    labelled: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """All levels of a source by a codec.

    Attributes:
        task: of the source.
        codec: of the bitstreams.
        source: its id.
        position: on the arrays' first axis.
        decode: whether bitstreams are decoded.
        stored: whether codes are read; they are compared, if both.
        rows: level -> label row to compute again.
        scored: whether the task's head scores them too.
    """

    task: str
    codec: str
    source: str
    position: int
    decode: bool
    stored: bool
    rows: Mapping[int, Mapping[str, Any]]
    scored: bool


@extras()
def look_into(
    root: Path | Files,
    manifest: Manifest,
    damaged: set[str],
    *,
    sample: int = SAMPLE,
    seed: int = 0,
    workers: int = 1,
    untrusted: bool = False,
    progress: Progress | None = None,
) -> Looked:
    """Decode all bitstreams of a folder, and compute labels of a sample of its rows again.

    Args:
        root: the folder, or its files.
        manifest: its manifest.
        damaged: files that are known to be damaged; what they are needed for is not looked at.
        sample: rows whose labels are computed again.
        seed: of the choice of the sample.
        workers: processes.
        untrusted: decode in child processes that can do nothing else.
        progress: told of every feature.

    Raises:
        FormatError: a decoder that is needed is not here, or has other weights.
        CfqaError: what a decoder needs is not installed.
        BuildError: a process was killed.
    """
    check_guard()
    progress = progress or Silent()
    notes: list[str] = []
    folder = Folder(root, untrusted)
    found = _find_heads(folder, manifest, damaged, notes)
    jobs = _jobs(folder, manifest, damaged, sample, seed, found, notes)
    faults: list[Fault] = []
    counts = [0, 0, 0]
    progress.start("decode", LEVELS * len(jobs), "features")
    for wrong, done in each(_looker, (root, untrusted, found), jobs, workers):
        faults += wrong
        counts = [a + b for a, b in zip(counts, done, strict=True)]
        progress.advance(LEVELS)
    progress.finish()
    ordered = sorted(set(faults), key=lambda fault: (fault.path, fault.what))
    return Looked(tuple(ordered), counts[0], counts[1], counts[2], tuple(notes))


def _jobs(
    folder: Folder,
    manifest: Manifest,
    damaged: set[str],
    sample: int,
    seed: int,
    found: Mapping[str, str],
    notes: list[str],
) -> list[Job]:
    chosen = _sample(folder, manifest, damaged, sample, seed)
    recipe = Recipe.from_dict(manifest.recipe)
    jobs = []
    for task, entry in manifest.tasks.items():
        readable = not _any(damaged, f"originals/{task}-", f"labels/{task}.")
        scored = readable and recipe.tasks[task].head in found
        for codec, ladder in recipe.tasks[task].ladders.items():
            streams = f"bitstreams/{task}-{codec}-"
            decode = any(name.startswith(streams) for name in manifest.files)
            if decode and _any(damaged, streams):
                notes.append(f"{task}, {codec}: not decoded: bitstreams are damaged")
                decode = False
            elif (
                decode
                and ladder.weights
                and not (ladder.models or set(ladder.weights) <= set(manifest.weights))
            ):
                notes.append(f"{task}, {codec}: not decoded: the recipe names no models")
                decode = False
            if decode:
                folder.check_decoder(task, codec)
            array = NAMES.compressed(task, codec).as_posix()
            stored = manifest.tier == "full" and f"{array}/zarr.json" not in damaged
            for position, source in enumerate(entry.sources):
                there = stored and f"{array}/{_shard(position)}" not in damaged
                if not (decode or there):
                    continue
                rows = chosen[task, codec, source] if readable else {}
                jobs.append(Job(task, codec, source, position, decode, there, rows, scored))
    # Long ones first, so that none is left over last.
    return sorted(jobs, key=lambda job: -math.prod(manifest.tasks[job.task].shape))


def _sample(
    folder: Folder, manifest: Manifest, damaged: set[str], sample: int, seed: int
) -> dict[tuple[str, str, str], dict[int, dict[str, Any]]]:
    """Return some label rows, by task, codec and source, then level."""
    rows: list[dict[str, Any]] = []
    for task in manifest.tasks:
        if NAMES.labels(task).as_posix() not in damaged:
            rows += folder.labels(task).to_pylist()
    picks = np.random.default_rng(seed).permutation(len(rows))[:sample]
    chosen: dict[tuple[str, str, str], dict[int, dict[str, Any]]] = defaultdict(dict)
    for row in (rows[int(pick)] for pick in picks):
        chosen[row["task"], row["codec"], row["source_id"]][row["level"]] = row
    return chosen


def _any(damaged: set[str], *starts: str) -> bool:
    return any(name.startswith(starts) for name in damaged)


def _shard(position: int) -> str:
    return f"c/{position}/0/0/0/0/0"


def _find_heads(
    folder: Folder, manifest: Manifest, damaged: set[str], notes: list[str]
) -> dict[str, str]:
    """Return where the weights are that scored, by URI; a note says why those of a task are not."""
    found: dict[str, str] = {}
    recipe = Recipe.from_dict(manifest.recipe)
    for task, spec in recipe.tasks.items():
        truth = NAMES.truth(task).as_posix()
        if truth not in manifest.files or truth in damaged:
            notes.append(f"{task}: scores are not computed again: there is no truth")
            continue
        try:
            paths = {}
            for uri in (recipe.backbone.weights, spec.head):
                if uri not in manifest.weights:
                    raise RecipeError(f"{uri} had no part in them")
                if folder.untrusted and not uri.startswith(PACKAGE):
                    raise RecipeError(f"{uri} is named by a stranger")
                paths[uri] = found.get(uri) or str(folder.find_weights(uri))
            found |= paths
        except (CfqaError, OSError) as error:
            notes.append(f"{task}: scores are not computed again: {error}")
    return found


def _looker(
    root: Path | Files, untrusted: bool, found: Mapping[str, str]
) -> Callable[[Job], tuple[list[Fault], list[int]]]:
    folder = Folder(root, untrusted)
    recipe = Recipe.from_dict(folder.manifest.recipe).with_paths(lambda uri: found.get(uri, uri))
    return partial(_look, folder, Models(recipe))


def _look(folder: Folder, models: Models, job: Job) -> tuple[list[Fault], list[int]]:
    """Return what is wrong with a job's features, and how many were decoded, compared, labelled."""
    faults: list[Fault] = []
    counts = [0, 0, 0]
    shard = f"{NAMES.compressed(job.task, job.codec).as_posix()}/{_shard(job.position)}"
    with one_thread():
        for level in range(LEVELS):
            feature = stored = None
            try:
                if job.decode:
                    feature = folder.decoded(job.source, job.codec, level).dequantize()
                    counts[0] += 1
            except FormatError as error:
                name = _stream_file(folder.manifest, job)
                faults.append(Fault(name, _told(folder, error)))
            try:
                if job.stored:
                    stored = folder.compressed(job.source, job.codec, level)
            except FormatError as error:
                faults.append(Fault(shard, _told(folder, error)))
            if feature is not None and stored is not None:
                counts[1] += 1
                if feature.tobytes() != stored.tobytes():
                    what = f"level {level} of {job.source} is not what its bitstream decodes to"
                    faults.append(Fault(shard, what))
            feature = stored if feature is None else feature
            if feature is not None and level in job.rows:
                counts[2] += 1
                faults += _label_faults(folder, models, job, job.rows[level], feature)
    return faults, counts


def _told(folder: Folder, error: CfqaError) -> str:
    return str(error).removeprefix(f"{folder.files.location}: ")


def _stream_file(manifest: Manifest, job: Job) -> str:
    """Return the shard that a job's bitstreams should be in."""
    entry = manifest.tasks[job.task]
    shard = shard_of(job.position, entry.shard)
    return NAMES.bitstreams(job.task, job.codec, shard, entry.shards).as_posix()


def _label_faults(
    folder: Folder, models: Models, job: Job, row: Mapping[str, Any], feature: np.ndarray
) -> list[Fault]:
    """Return where a label row is not what is computed now."""
    name = NAMES.labels(job.task).as_posix()
    try:
        original = folder.original(job.source)
        told = baseline_values(_baselines(), original, feature[None])
        values = {metric: float(value[0]) for metric, value in told.items()}
        if job.scored:
            truth, head = folder.truth(job.source), models.task(job.task)
            for prefix, scored in (("", feature), ("reference_", original)):
                scores, losses = score(head, scored[None], truth, job.source)
                values[f"{prefix}score"] = float(scores[0])
                values[f"{prefix}loss"] = float(losses[0])
    except (FormatError, BuildError) as error:
        return [Fault(name, f"cannot be computed again: {_told(folder, error)}")]
    of = f"of {job.source} by {job.codec} at level {row['level']}"
    return [
        Fault(name, f"{key} {of} is {row[key]:.9g}, computed again it is {value:.9g}")
        for key, value in values.items()
        if not _near(key, row[key], value) and not (math.isnan(row[key]) and "loss" in key)
    ]


def _near(column: str, told: float, value: float) -> bool:
    relative, absolute = TOLERANCE[column]
    return math.isclose(told, value, rel_tol=relative, abs_tol=absolute)


def _baselines() -> dict[str, Any]:
    from cfqa_data.eval.metrics import create_metric

    return {name: create_metric(name) for name in BASELINES}
