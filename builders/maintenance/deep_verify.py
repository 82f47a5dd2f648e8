"""Deep verification: decode every bitstream again and recompute labels (`cfqa verify --deep`).

Every bitstream is decoded and compared with the stored codes, where there are any; of a sample of
rows the labels are computed from what was decoded. A process holds one feature at a time.
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
"""Default number of label rows that are computed again."""

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
class DeepResult:
    """Result of a deep verification.

    Attributes:
        faults: What is wrong, by file.
        decoded: Bitstreams that were decoded.
        compared: Stored features that were compared with their bitstream.
        labelled: Rows whose labels were computed again.
        scored: Those of them whose scores were, too.
        notes: What could not be checked, and why.
    """

    faults: tuple[Fault, ...]
    decoded: int
    compared: int
    labelled: int
    scored: int
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Job:
    """All levels of a source by a codec.

    Attributes:
        task: Of the source.
        codec: Of the bitstreams.
        source: Its id.
        position: On the arrays' first axis.
        levels: How many there are.
        decode: Whether bitstreams are decoded.
        stored: Whether codes or values are read; they are compared, if both.
        rows: Level -> label row to compute again.
        scored: Whether the task scores them too.
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
    """Decode all bitstreams of a folder, and compute labels of a sample of its rows again.

    Args:
        root: The folder, or its files.
        manifest: Its manifest.
        damaged: Files that are known to be damaged; checks that need them are skipped.
        sample: Rows whose labels are computed again.
        seed: Of the choice of the sample.
        workers: Processes.
        untrusted: Decode in child processes that can do nothing else.
        progress: Notified of every feature.
        plugins: `module:Class` of what the dataset was made with and that is not installed.

    Raises:
        FormatError: A decoder that is needed is not here, or has other weights.
        CfqaError: What a decoder needs is not installed.
        BuildError: A process was killed.
    """
    check_guard()
    verification = _DeepVerification(root, untrusted, tuple(plugins))
    jobs, notes = verification.plan(manifest, damaged, sample, seed)
    faults: set[Fault] = set()
    counts = Counter(decoded=0, compared=0, labelled=0, scored=0)
    with Executor(workers) as executor:
        for _, (wrong, done) in drive(verification, executor, progress or Silent(), jobs):
            faults.update(wrong)
            counts.update(done)
    ordered = sorted(faults, key=lambda fault: (fault.path, fault.what))
    return DeepResult(faults=tuple(ordered), notes=tuple(notes), **counts)


look_into = verify_deep
"""The name of `verify_deep` in version 0.1."""


@dataclass
class _DeepVerification(Stage):
    """The stage that decodes and scores features again.

    Attributes:
        root: The folder, or its files.
        untrusted: Decode in child processes that can do nothing else.
        plugins: Classes that are not installed.
        recipe: The manifest's, with local paths of its weights; None if it cannot be used.
    """

    root: Path | Files
    untrusted: bool
    plugins: tuple[str, ...]
    recipe: Recipe | None = None

    name, unit = "decode", "features"

    @cached_property
    def folder(self) -> Folder:
        """The dataset's folder."""
        return Folder(self.root, self.untrusted, self.plugins)

    @cached_property
    def models(self) -> Models:
        """The recipe's backbone and tasks."""
        assert self.recipe is not None
        return Models(self.recipe)

    def items(self) -> Sequence[Job]:
        return ()

    def cost(self, item: Job) -> int:
        return item.levels

    def plan(
        self, manifest: Manifest, damaged: set[str], sample: int, seed: int
    ) -> tuple[list[Job], list[str]]:
        """Return what there is to do, and what cannot be checked."""
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
                origin, why = codec_entry.origin, None
                if decode and not damaged.isdisjoint(streams):
                    why = "bitstreams are damaged"
                elif decode and codec_entry.facts.on == "inputs":
                    why = "the features are extracted from its decoded bitstreams"
                elif decode and origin and _lacks_models(manifest, origin.options):
                    why = "the recipe names no models"
                elif decode and stored and origin and origin.name in missing:
                    package = missing[origin.name]
                    why = f"codec {origin.name!r} is not installed; install {package}, "
                    why += "or name its class by --plugin module:Class"
                if why:
                    notes.append(f"{task}, {codec}: not decoded: {why}")
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
        """Return the tasks that can be scored; a note says why another cannot."""
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
                _ = models.facts(task), models.backbone_class  # their classes are looked up
            except (CfqaError, OSError) as error:
                more = remedy(manifest) if isinstance(error, BuildError) else ""
                notes.append(f"{task}: scores were not recomputed: {error}{more}")
                continue
            tasks.add(task)
        self.recipe = recipe.with_paths(lambda uri: paths.get(uri, uri))
        return tasks

    def run(self, item: Job) -> tuple[list[Fault], Counter[str]]:
        """Return what is wrong with features; how many were decoded, compared, labelled, scored."""
        faults: list[Fault] = []
        counts, folder, entry = Counter[str](), self.folder, self.folder.manifest.tasks[item.task]
        place = item.task, item.codec, shard_of(item.position, entry.shard), entry.shards
        streams = NAMES.bitstreams(*place).as_posix()
        shard = f"{NAMES.compressed(item.task, item.codec).as_posix()}/{shard_name(item.position)}"
        for level in range(item.levels):
            feature = stored = None
            try:
                if item.decode:
                    found = folder.decoded(item.source, item.codec, level)
                    feature = found.dequantize() if isinstance(found, Codes) else found
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
        """Return where a label row is not what is computed now."""
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
        of = f"of {job.source} by {job.codec} at level {row['level']}"
        return [
            Fault(name, f"{key} {of} is {row[key]:.9g}, recomputed it is {value:.9g}")
            for key, value in values.items()
            if row[key] is not None
            and not _near(key, row[key], value)
            and not (math.isnan(row[key]) and "loss" in key)
        ]


def _lacks_models(manifest: Manifest, options: Mapping[str, Any]) -> bool:
    """Whether a codec has models that neither its entry nor the manifest's hashes tell."""
    models = options.get("models")
    shipped = isinstance(models, str) and models.startswith(PACKAGE)
    return shipped and models not in manifest.weights


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


def _near(column: str, recorded: float, value: float) -> bool:
    relative, absolute = TOLERANCE[column]
    return math.isclose(recorded, value, rel_tol=relative, abs_tol=absolute)
