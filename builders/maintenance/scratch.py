"""The scratch build of a repair, with links to the intact files of the dataset.

Stages write to temporary files and rename them, and never through a link to a dataset's file.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from cfqa_data.access.folder import Folder
from cfqa_data.builders.maintenance.plan import RepairPlan
from cfqa_data.builders.pipeline.context import write_json
from cfqa_data.builders.pipeline.plan import PLAN, Item
from cfqa_data.format.layout import NAMES, Layout
from cfqa_data.format.manifest import hash_file
from cfqa_data.format.storage import atomic_path, remove_partials, write_text

__all__ = ["is_intact", "link", "prepare_scratch"]

INPUTS = ("originals/", "truth/", "bitstreams/", "tables/")
"""Folders of files that items read."""


def link(source: Path, target: Path) -> None:
    """Hard-link a file, or copy it atomically if the file system does not support links.

    The folder is not synced, which would be slow for many files; a power cut may lose the link.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(os.path.realpath(source), target)  # resolves symbolic links
    except OSError:
        with atomic_path(target) as partial:
            shutil.copyfile(source, partial)


def is_intact(repair_plan: RepairPlan, root: Path, name: str) -> bool:
    """Return whether a file in a folder has the manifest's bytes."""
    path, entry = root / name, repair_plan.manifest.files[name]
    sized = path.is_file() and path.stat().st_size == entry["size"]
    return sized and hash_file(path) == entry["sha256"]


def prepare_scratch(repair_plan: RepairPlan, root: Path) -> None:
    """Create the folder of the scratch build; keep intact files of an interrupted repair."""
    layout, damaged = Layout(root), repair_plan.damaged
    path, text = layout.work / PLAN, repair_plan.plan.to_json()
    links = any(inside.is_symlink() for inside in root.rglob("*"))
    if links or not path.is_file() or path.read_text(encoding="utf-8") != text:
        shutil.rmtree(root, ignore_errors=True)
    remove_partials(root)
    write_text(path, text)
    arrays = {f"{name.partition('/c/')[0]}/zarr.json" for name in damaged if "/c/" in name}
    for name in repair_plan.manifest.files:
        if name not in damaged and (name.startswith(INPUTS) or name in arrays):
            link(repair_plan.files.root / name, root / name)
        elif (root / name).is_file() and not is_intact(repair_plan, root, name):
            (root / name).unlink()
    for task in repair_plan.manifest.tasks:
        _write_stage_results(repair_plan, layout, task)


def _write_stage_results(repair_plan: RepairPlan, layout: Layout, task: str) -> None:
    """Write the result files of earlier stages, from the manifest and the intact tables."""
    entry, plan = repair_plan.manifest.tasks[task], repair_plan.plan
    selection = {"ids": entry.sources, "groups": entry.groups}
    write_json(Item("select", task).result_path(layout), selection)
    write_json(Item("prepare", task).result_path(layout), entry.to_dict())
    references = _references(repair_plan, task)
    for shard in range(plan.shards(task)) if references else ():
        path = Item("extract", task, shard=shard).result_path(layout)
        rows = [references[entry.sources[position]] for position in plan.members(task, shard)]
        write_json(path, {"score": [s for s, _ in rows], "loss": [loss for _, loss in rows]})


def _references(repair_plan: RepairPlan, task: str) -> dict[str, tuple[float, float]]:
    """Return score and loss of each original from an intact table; empty if there is none."""
    folder = Folder(repair_plan.files)
    for path, read in (
        (NAMES.originals_table, folder.originals_table),
        (NAMES.labels(task), lambda: folder.label_rows(task).table),
    ):
        if path.as_posix() not in repair_plan.damaged:
            return {
                row["source_id"]: (row["reference_score"], row["reference_loss"])
                for row in read().to_pylist()
                if row["task"] == task
            }
    return {}
