"""Deep verification: decode every bitstream again and recompute labels (`cfqa verify --deep`).

Every bitstream is decoded and compared with the stored codes, if there are any. The labels of a
sample of rows are recomputed from decoded features. Memory holds one feature per process.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cfqa_data.access.files import Files
from cfqa_data.access.folder import Folder
from cfqa_data.builders.pipeline import label
from cfqa_data.builders.pipeline.context import Models
from cfqa_data.console.progress import Progress, Silent
from cfqa_data.errors import BuildError, CfqaError, FormatError
from cfqa_data.extras import extras
from cfqa_data.format.codes import Codes, shard_name
from cfqa_data.format.invariants import shard_of
from cfqa_data.format.layout import NAMES
from cfqa_data.format.manifest import Manifest
from cfqa_data.format.resources import PACKAGE
from cfqa_data.guard import check_guard
from cfqa_data.integrity.verify import Fault
from cfqa_data.processes.executor import Executor
from cfqa_data.processes.stage import Stage, drive
from cfqa_data.recipe.load import Recipe
from cfqa_data.recipe.portable import remedy

__all__ = ["SAMPLE", "DeepResult", "look_into", "verify_deep"]

SAMPLE = 100
"""Default number of label rows that are recomputed."""

# Relative and absolute tolerance for the rounding of other machines.
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
class DeepResult:
    """Result of a deep verification.

    Attributes:
        faults: Faults, each with its file.
        decoded: Number of decoded bitstreams.
        compared: Number of stored features that were compared with their bitstream.
        labelled: Number of rows whose baseline metrics were recomputed.
        scored: Number of rows whose scores were recomputed too.
        notes: Checks that were not possible, with the reasons.
    """

    faults: tuple[Fault, ...]
    decoded: int
    compared: int
    labelled: int
    scored: int
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Job:
    """Work item: all levels of a source by a codec.

    Attributes:
        task: Name of the task.
        codec: Name of the codec.
        source: Id of the source.
        position: Position of the source on the arrays' first axis.
        levels: Number of levels.
        decode: Whether bitstreams are decoded.
        stored: Whether stored codes or values are read; with `decode`, both are compared.
        rows: Level -> label row to recompute.
        scored: Whether scores of these rows are recomputed too.
    """

    task: str
    codec: str
    source: str
    position: int
    levels: int
    decode: bool
    stored: bool
    rows: Mapping[int, Mapping[str, Any]]
    scored: bool

    def __str__(self) -> str:
        return f"{self.source} by {self.codec}"


@extras()
def verify_deep(
    root: Path | Files,
    manifest: Manifest,
    damaged: set[str],
    *,
    sample: int = SAMPLE,
    seed: int = 0,
    workers: int = 1,
    untrusted: bool = False,
    progress: Progress | None = None,
    plugins: Iterable[str] = (),
) -> DeepResult:
    """Decode all bitstreams of a folder, and recompute the labels of a sample of its rows.

    Args:
        root: The dataset folder, or its files.
        manifest: Manifest of the folder.
        damaged: Files that are known to be damaged; checks that need them are skipped.
        sample: Number of rows whose labels are recomputed.
        seed: Seed of the random sample.
        workers: Number of processes.
        untrusted: Decode in sandboxed child processes.
        progress: Display that is notified of every feature.
        plugins: `module:Class` of classes that the dataset uses and that are not installed.

    Raises:
        FormatError: If a required decoder is missing, or has other weights.
        CfqaError: If a package that a decoder needs is not installed.
        BuildError: If a worker process was killed.
    """
    check_guard()
    verification = _DeepVerification(root, untrusted, tuple(plugins))
    jobs, notes = verification.plan(manifest, damaged, sample, seed)
    faults: set[Fault] = set()
    counts = Counter(decoded=0, compared=0, labelled=0, scored=0)
    with Executor(workers) as executor:
        for _, (new_faults, done) in drive(verification, executor, progress or Silent(), jobs):
            faults.update(new_faults)
            counts.update(done)
    ordered = sorted(faults, key=lambda fault: (fault.path, fault.what))
    return DeepResult(faults=tuple(ordered), notes=tuple(notes), **counts)


look_into = verify_deep
"""Name of `verify_deep` in version 0.1."""


@dataclass
class _DeepVerification(Stage):
    """Stage that decodes and scores features again.

    Attributes:
        root: The dataset folder, or its files.
        untrusted: Whether to decode in sandboxed child processes.
        plugins: Classes that are not installed, as `module:Class`.
        recipe: Recipe of the manifest, with local paths of its weights; None if unusable.
    """

    root: Path | Files
    untrusted: bool
    plugins: tuple[str, ...]
    recipe: Recipe | None = None

    name, unit = "decode", "features"

    @cached_property
    def folder(self) -> Folder:
        """Reader of the dataset's folder."""
        return Folder(self.root, self.untrusted, self.plugins)

    @cached_property
    def models(self) -> Models:
        """Backbone and tasks of the recipe."""
        assert self.recipe is not None
        return Models(self.recipe)

    def items(self) -> Sequence[Job]:
        return ()

    def cost(self, item: Job) -> int:
        return item.levels

    def plan(
        self, manifest: Manifest, damaged: set[str], sample: int, seed: int
    ) -> tuple[list[Job], list[str]]:
        """Return the jobs, and notes on checks that are not possible."""
        folder = self.folder
        jobs: list[Job] = []
        notes: list[str] = []
        scored = self._find_scorers(manifest, damaged, notes)
        chosen = _sample(folder, manifest, damaged, sample, seed)
        missing = folder.missing()

        for task, entry in manifest.tasks.items():
            originals = NAMES.shards(entry.shards, NAMES.originals, task)
            readable = damaged.isdisjoint([NAMES.labels(task).as_posix(), *originals])
            for codec, codec_entry in entry.codecs.items():
                streams = set(NAMES.shards(entry.shards, NAMES.bitstreams, task, codec))
                decode = not streams.isdisjoint(manifest.files)
                array = NAMES.compressed(task, codec).as_posix()
                stored = f"{array}/zarr.json" in manifest.files.keys() - damaged
                origin, reason = codec_entry.origin, None
                if decode and not damaged.isdisjoint(streams):
                    reason = "bitstreams are damaged"
                elif decode and codec_entry.facts.on == "inputs":
                    reason = "the features are extracted from its decoded bitstreams"
                elif decode and origin and _lacks_models(manifest, origin.options):
                    reason = "the recipe names no models"
                elif decode and stored and origin and origin.name in missing:
                    reason = (
                        f"codec {origin.name!r} is not installed; install {missing[origin.name]}, "
                        "or name its class by --plugin module:Class"
                    )
                if reason:
                    notes.append(f"{task}, {codec}: not decoded: {reason}")
                    decode = False
                if decode:
                    folder.decoder(task, codec)
                for position, source in enumerate(entry.sources):
                    readable_array = stored and f"{array}/{shard_name(position)}" not in damaged
                    rows = chosen[task, codec, source] if readable else {}
                    how = decode, readable_array, rows, readable and task in scored
                    if decode or readable_array:
                        levels = len(codec_entry.levels)
                        jobs.append(Job(task, codec, source, position, levels, *how))
        jobs.sort(key=lambda job: -math.prod(manifest.tasks[job.task].shape))
        return jobs, notes

    def _find_scorers(self, manifest: Manifest, damaged: set[str], notes: list[str]) -> set[str]:
        """Return the tasks that can be scored, and add notes on the others."""
        paths: dict[str, str] = {}
        tasks: set[str] = set()
        intact = manifest.files.keys() - damaged
        try:
            recipe = label.scoring_recipe(self.folder)
        except CfqaError as error:
            notes.append(f"scores were not recomputed: {error}")
            return tasks
        for task, entry in manifest.tasks.items():
            try:
                if entry.facts.truth and NAMES.truth(task).as_posix() not in intact:
                    raise FormatError("there is no ground truth")
                paths |= label.scoring_weights(self.folder, recipe, task)
                models = Models(recipe)
                _ = models.facts(task), models.backbone_class  # raises if a class is missing
            except (CfqaError, OSError) as error:
                more = remedy(manifest) if isinstance(error, BuildError) else ""
                notes.append(f"{task}: scores were not recomputed: {error}{more}")
                continue
            tasks.add(task)
        self.recipe = recipe.with_paths(lambda uri: paths.get(uri, uri))
        return tasks

    def run(self, item: Job) -> tuple[list[Fault], Counter[str]]:
        """Return the faults of a job, and the counts of `DeepResult`."""
        faults: list[Fault] = []
        counts, folder, entry = Counter[str](), self.folder, self.folder.manifest.tasks[item.task]
        number = shard_of(item.position, entry.shard)
        streams = NAMES.bitstreams(item.task, item.codec, number, entry.shards).as_posix()
        shard = f"{NAMES.compressed(item.task, item.codec).as_posix()}/{shard_name(item.position)}"
        for level in range(item.levels):
            feature = stored = None
            try:
                if item.decode:
                    decoded = folder.decoded(item.source, item.codec, level)
                    feature = decoded.dequantize() if isinstance(decoded, Codes) else decoded
                    counts["decoded"] += 1
            except FormatError as error:
                faults.append(Fault(streams, self._message(error)))
            try:
                if item.stored:
                    stored = folder.compressed(item.source, item.codec, level)
            except FormatError as error:
                faults.append(Fault(shard, self._message(error)))
            if feature is not None and stored is not None:
                counts["compared"] += 1
                if feature.tobytes() != stored.tobytes():
                    what = f"level {level} of {item.source} differs from its decoded bitstream"
                    faults.append(Fault(shard, what))
            feature = stored if feature is None else feature
            if feature is not None and level in item.rows:
                counts.update(labelled=1, scored=int(item.scored))
                faults += self._label_faults(item, item.rows[level], feature)
        return faults, counts

    def _message(self, error: CfqaError) -> str:
        return str(error).removeprefix(f"{self.folder.files.location}: ")

    def _label_faults(self, job: Job, row: Mapping[str, Any], feature: np.ndarray) -> list[Fault]:
        """Return a fault for each value of a label row that differs from the recomputed one."""
        name = NAMES.labels(job.task).as_posix()
        try:
            original = self.folder.original(job.source)
            baselines = label.baseline_values(original, feature[None])
            values = {metric: float(value[0]) for metric, value in baselines.items()}
            if job.scored:
                facts = self.folder.manifest.tasks[job.task].facts
                truth = self.folder.truth(job.source) if facts.truth else None
                task = self.models.task(job.task)
                for prefix, scored in (("", feature), ("reference_", original)):
                    scores, losses = label.score(task, scored[None], truth, job.source)
                    values[f"{prefix}score"] = float(scores[0])
                    values[f"{prefix}loss"] = float(losses[0])
        except (FormatError, BuildError) as error:
            return [Fault(name, f"cannot be recomputed: {self._message(error)}")]
        version = f"{job.source} by {job.codec} at level {row['level']}"
        return [
            Fault(name, f"{key} of {version} is {row[key]:.9g}, recomputed it is {value:.9g}")
            for key, value in values.items()
            if row[key] is not None
            and not _near(key, row[key], value)
            and not (math.isnan(row[key]) and "loss" in key)
        ]


def _lacks_models(manifest: Manifest, options: Mapping[str, Any]) -> bool:
    """Whether a codec's models are in a package, but their hash is not in the manifest."""
    models = options.get("models")
    shipped = isinstance(models, str) and models.startswith(PACKAGE)
    return shipped and models not in manifest.weights


def _sample(
    folder: Folder, manifest: Manifest, damaged: set[str], sample: int, seed: int
) -> dict[tuple[str, str, str], dict[int, dict[str, Any]]]:
    """Return a random sample of label rows: (task, codec, source) -> level -> row."""
    rows: list[dict[str, Any]] = []
    for task in manifest.tasks:
        if NAMES.labels(task).as_posix() not in damaged:
            rows += folder.labels(task).to_pylist()
    picks = np.random.default_rng(seed).permutation(len(rows))[:sample]
    chosen: dict[tuple[str, str, str], dict[int, dict[str, Any]]] = defaultdict(dict)
    for row in (rows[int(pick)] for pick in picks):
        chosen[row["task"], row["codec"], row["source_id"]][row["level"]] = row
    return chosen


def _near(column: str, recorded: float, value: float) -> bool:
    relative, absolute = TOLERANCE[column]
    return math.isclose(recorded, value, rel_tol=relative, abs_tol=absolute)
