"""Import a downloaded release of the published benchmark as a dataset folder, losslessly.

The bitstreams of HM and VTM are decoded and kept; the hyperpriors' features are stored as codes in
the table of their distinct values. An interrupted import is resumed like a build.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cfqa_data.builders.importing.files import Release, Unplaced, scan_release
from cfqa_data.builders.importing.recipe import (
    Recorded,
    find_quantizers,
    provenance,
    release_recipe,
)
from cfqa_data.builders.importing.scores import LogScores
from cfqa_data.builders.importing.stages import STAGES
from cfqa_data.builders.pipeline.build import run_stages
from cfqa_data.builders.pipeline.context import Models
from cfqa_data.builders.pipeline.plan import PLAN, Plan
from cfqa_data.builders.pipeline.workspace import status
from cfqa_data.console.progress import Progress, Silent
from cfqa_data.errors import BuildError, CfqaError, clear_disk_errors
from cfqa_data.extras import extras
from cfqa_data.format.layout import Layout
from cfqa_data.format.limits import LARGEST_JSON, parse_json, read_limited
from cfqa_data.format.manifest import read_manifest
from cfqa_data.format.quantizers import quantizer_from_dict
from cfqa_data.format.storage import check_folder, read_labels
from cfqa_data.paths import absolute_path, real_path
from cfqa_data.processes.executor import Executor
from cfqa_data.recipe.load import Recipe, load_recipe

__all__ = ["Imported", "import_release"]

MSE_TOLERANCE = 1e-3
"""Relative tolerance to a logged MSE, since the published code sums in float32."""


@dataclass(frozen=True)
class Imported:
    """Result of an import.

    Attributes:
        root: The dataset folder.
        placed: Number of the release's files that are in the dataset.
        unplaced: Files that are not in the dataset, with the reasons.
        borrowed: Tasks whose originals have the score of their least distorted version.
        disagreeing: Compressed features whose MSE differs from that in the logs.
    """

    root: Path
    placed: int
    unplaced: tuple[Unplaced, ...]
    borrowed: tuple[str, ...] = ()
    disagreeing: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-safe data."""
        return {
            "path": str(self.root),
            "placed": self.placed,
            "unplaced": [{"path": file.path, "why": file.why} for file in self.unplaced],
            "borrowed_references": list(self.borrowed),
            "other_mse_than_logged": list(self.disagreeing),
        }


@extras("build")
def import_release(
    source: Path | str,
    out: Path | str,
    *,
    logs: Path | str | None = None,
    recipe: str | Path | Recipe = "paper",
    accept_versions: bool = False,
    progress: Progress | None = None,
) -> Imported:
    """Import a downloaded release as a dataset folder, or resume an interrupted import.

    Args:
        source: Folder of the release, laid out as in `cfqa_data.builders.importing.files`.
        out: Output folder: new, empty, or with a started or finished run of this import.
        logs: Folder of published score logs, for the labels. Without it, the recipe's heads score
            the features against the truths of its sources.
        recipe: Recipe with the blocks, the ranges of HM's and VTM's quantisers, and the heads.
        accept_versions: Resume an import that was started with other versions of the software.
        progress: Display that is notified of each stage and finished item; None shows nothing.

    Returns:
        The files that were imported and those that were not.

    Raises:
        BuildError: If nothing can be imported, a file is damaged, or originals of two tasks have
            the same name; finished items are kept.
        MetricError: If a line of a log is invalid.
    """
    progress, root = progress or Silent(), real_path(out)
    release, layout = scan_release(source), Layout(root)
    if root.is_relative_to(release.root):
        raise BuildError(f"{out} lies in the release itself: choose another folder")
    if not layout.manifest.exists():
        check_folder(root)
    base = load_recipe(recipe, fitted=False).check_numbers()
    logged = None if logs is None else LogScores(absolute_path(logs))
    if logged is not None:
        logged.match(release)
    elif not layout.manifest.exists():
        _check_scorers(base, release)
    release.check_ids()
    quantizers = find_quantizers(release, base, _recorded(root), progress)
    release.drop_tasks_without_codecs()
    if not release.codec_files:
        first = release.unplaced[0] if release.unplaced else Unplaced(".", "it is empty")
        raise BuildError(
            f"{source}: contains nothing that can be imported; the first of "
            f"{len(release.unplaced)} files: {first.path}: {first.why}"
        )
    derived = release_recipe(release, base, quantizers, logged)
    with clear_disk_errors("importing the release"):
        if status(derived, root) != "finished" or layout.work.exists():
            plan = Plan(derived, "full", *provenance(release, derived, logged))
            stages = [partial(stage, release=release, logged=logged) for stage in STAGES]
            run_stages(stages, plan, root, Executor(), progress, accept_versions)
    return Imported(
        root=root,
        placed=sum(map(len, release.originals.values()))
        + sum(len(ladder.files) + len(ladder.streams) for ladder in release.codec_files.values()),
        unplaced=tuple(sorted(release.unplaced, key=lambda file: file.path)),
        borrowed=tuple(logged.borrowed(release)) if logged else (),
        disagreeing=tuple(_disagreeing(release, layout, logged)) if logged else (),
    )


def _check_scorers(base: Recipe, release: Release) -> None:
    """Check that a recipe's sources and tasks, which score the release, can be created."""
    models = Models(base)
    try:
        for task in [name for name in release.originals if name in base.tasks]:
            models.source(task)
            models.task(task)
    except CfqaError as error:
        raise BuildError(
            f"no scores: give published score logs by --logs, or the weights that recipe "
            f"{base.name!r} names ({error})"
        ) from None


def _recorded(root: Path) -> Recorded:
    """Return levels and quantiser of each task and codec of an import that was started here.

    The folder is untrusted, so that its recipe is read as plain data and no class is looked up.
    """
    layout = Layout(root)
    try:
        if layout.manifest.exists():
            recipe: Any = read_manifest(root).recipe
        else:
            recipe = parse_json(read_limited(layout.work / PLAN, LARGEST_JSON))["recipe"]
        return {
            (task, codec): (tuple(table["levels"]), quantizer_from_dict(table["quantizer"]))
            for task, spec in recipe["tasks"].items()
            for codec, table in spec["codecs"].items()
        }
    except (OSError, ValueError, AttributeError, KeyError, TypeError, CfqaError):
        return {}


def _disagreeing(release: Release, layout: Layout, logged: LogScores) -> Iterator[str]:
    """Yield the compressed features whose MSE differs from that in the logs, with both values."""
    version = read_manifest(layout.root).format
    for task in release.originals:
        for row in read_labels(layout.labels(task), format=version).to_pylist():
            codec, name, level = row["codec"], row["source_id"], row["parameter"]
            mse = logged.mse(task, codec, name, level)
            if abs(row["mse"] - mse) > MSE_TOLERANCE * row["mse"] + 1e-8:
                yield f"{name} by {codec} at {level:g}: {row['mse']:.8f}, logged {mse:.8f}"
