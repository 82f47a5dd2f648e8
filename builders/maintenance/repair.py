"""Recreate damaged files of a dataset folder so that each has the manifest's SHA-256.

What is damaged is made by the pipeline's own items in `.repair/work`, a build folder of its own to
which the intact files are linked, with bitstreams taken as already encoded where they are intact.
Codes are decoded from bitstreams, which needs no encoder. A file gets into the dataset only if it
has the manifest's bytes, by a rename; so a repair that was killed is simply run again.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfqa_data.access.files import LocalFiles
from cfqa_data.builders.maintenance.plan import RepairPlan, check_environment, plan_repair
from cfqa_data.builders.maintenance.scratch import is_intact, link, prepare_scratch
from cfqa_data.builders.maintenance.stages import CARD
from cfqa_data.builders.pipeline.lock import locked
from cfqa_data.builders.pipeline.plan import Item
from cfqa_data.builders.pipeline.select import BuildStage
from cfqa_data.console.progress import Progress, Silent
from cfqa_data.errors import BuildError, CfqaError, DiskError, FormatError, clear_disk_errors
from cfqa_data.extras import extras
from cfqa_data.format.layout import Layout
from cfqa_data.format.limits import pointer_at
from cfqa_data.format.storage import atomic_path, make_folder
from cfqa_data.guard import check_guard
from cfqa_data.integrity.verify import EXTRA, Fault, Verified, verify
from cfqa_data.paths import real_path
from cfqa_data.processes.executor import Executor
from cfqa_data.processes.stage import drive

__all__ = ["ASIDE", "Repaired", "repair"]

WORK = ".repair/work"

ASIDE = ".repair/aside"
"""Folder for files that are no part of the dataset or stood in the way; nothing is deleted."""


@dataclass(frozen=True)
class Repaired:
    """Result of a repair, or of a dry run.

    Attributes:
        root: The folder.
        damaged: What was wrong with which file.
        repaired: Files that have the manifest's bytes again, or would be made again.
        aside: Files that are no part of the dataset, moved to `.repair/aside`, or to be moved.
        failed: Files that could not be rebuilt, and why.
    """

    root: Path
    damaged: tuple[Fault, ...]
    repaired: tuple[str, ...]
    aside: tuple[str, ...]
    failed: tuple[Fault, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the facts, JSON-safe."""
        return {
            "path": str(self.root),
            "damaged": [{"path": fault.path, "what": fault.what} for fault in self.damaged],
            "repaired": list(self.repaired),
            "aside": list(self.aside),
            "failed": [{"path": fault.path, "why": fault.what} for fault in self.failed],
        }


@extras("build")
def repair(
    root: str | Path,
    *,
    workers: int = 2,
    accept_versions: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
    follow_links: bool = False,
    plugins: Iterable[str] = (),
) -> Repaired:
    """Make the damaged files of a dataset folder again, to the manifest's bytes.

    Args:
        root: The folder; its manifest must be intact.
        workers: Processes.
        accept_versions: Try although other versions are installed than the manifest names.
        dry_run: Say what would be done, and do nothing.
        progress: Notified of stages and their progress.
        follow_links: Take what links lead to, wherever that is, for files of the folder; one that
            is damaged is replaced by a file, a folder behind a link is written to.
        plugins: `module:Class` of what the dataset was made with and that is not installed.

    Raises:
        FormatError: It is not a dataset folder, its manifest is damaged, or Git keeps files of it
            elsewhere.
        BuildError: Other software or weights are installed here, another process is at work in the
            folder, or an item cannot be made again; what was repaired before stays.
        DiskError: The disk is full, or may not be written to.
    """
    check_guard()
    folder, look = real_path(root), progress or Silent()
    LocalFiles(folder, follow_links).read_manifest()
    _check_ours(folder)

    def planned() -> tuple[Verified, RepairPlan]:
        found = verify(folder, progress=look, follow_links=follow_links)
        return found, _plan(found, accept_versions, tuple(plugins))

    if dry_run:
        found, repair_plan = planned()
        failed = {fault.path: fault.what for fault in repair_plan.impossible}
        return _result(folder, found, repair_plan.damaged - failed.keys(), failed)
    with clear_disk_errors("repairing"), locked(folder):
        _check_ours(folder)
        found, repair_plan = planned()
        for name in _extra(found):
            _put_aside(folder, name)
        if _extra(found):  # a link to a folder may have been among them
            _, repair_plan = planned()
        done, failed = _make_again(repair_plan, folder / WORK, workers, look)
        shutil.rmtree(folder / WORK, ignore_errors=True)
        with suppress(OSError):
            (folder / ".repair").rmdir()
    return _result(folder, found, done, failed)


def _plan(found: Verified, accept_versions: bool, plugins: tuple[str, ...]) -> RepairPlan:
    """Plan a repair and check that the installed software can do it."""
    _check_fetched(found)
    damaged = {fault.path for fault in found.faults}
    repair_plan = plan_repair(found.files, found.manifest, damaged, plugins)
    if not damaged:
        return repair_plan
    return check_environment(repair_plan, versions=not accept_versions)


def _extra(found: Verified) -> tuple[str, ...]:
    return tuple(fault.path for fault in found.damage if fault.what == EXTRA)


def _result(
    root: Path, found: Verified, done: Iterable[str], failed: Mapping[str, str]
) -> Repaired:
    failures = tuple(Fault(name, why) for name, why in sorted(failed.items()))
    return Repaired(root, found.damage, tuple(sorted(done)), _extra(found), failures)


def _check_ours(root: Path) -> None:
    """Check that a repair writes only inside the folder, which is untrusted.

    Raises:
        BuildError: A link or something else is where a repair has its own folders.
    """
    for name in (".build", ".repair", WORK, ASIDE):
        path = root / name
        if _in_the_way(path):
            raise BuildError(f"{path} is not a folder made by a repair: remove it")


def _make_again(
    repair_plan: RepairPlan, root: Path, workers: int, progress: Progress
) -> tuple[set[str], dict[str, str]]:
    """Make damaged files in a scratch build, and put those that are right into the dataset.

    Items that fail do not stop the others, except by a full disk.

    Returns:
        The files that have the manifest's bytes again; the others, and why.
    """
    done: set[str] = set()
    failed = {fault.path: fault.what for fault in repair_plan.impossible}
    why = dict.fromkeys(repair_plan.damaged, "the files that it is built from are damaged")
    if not repair_plan.damaged:
        return done, failed
    prepare_scratch(repair_plan, root)
    layout, files = Layout(root), repair_plan.files

    def made(stage: BuildStage, item: Item) -> set[str]:
        return {layout.relative(path) for path in stage.outputs(item)} & repair_plan.damaged

    def put(names: set[str]) -> None:
        for name in names - done:
            if is_intact(repair_plan, root, name):
                _put(files, name, root / name)
                failed.pop(name, None)
                done.add(name)
            elif (root / name).is_file():
                failed[name] = "the rebuilt file differs from the manifest; fetch the dataset again"

    with Executor(workers) as executor:
        for stage, items in repair_plan.stages(root):
            tables = ("labels/", "previews/")
            if stage.name == CARD and any(name.startswith(tables) for name in why.keys() - done):
                continue
            files_of = {item: made(stage, item) for item in items}
            todo = [
                item
                for item, names in files_of.items()
                if not (stage.done(item) and all((root / name).is_file() for name in names))
            ]
            left = set[str]().union(*(files_of[item] for item in todo))
            put(set[str]().union(*files_of.values()) - left)
            try:
                for item, _ in drive(stage, executor, progress, items, todo):
                    left -= files_of[item]
                    put(files_of[item])
            except DiskError:
                raise
            except CfqaError as error:
                why |= dict.fromkeys(left, str(error))
    for name in repair_plan.damaged - done - failed.keys():
        failed[name] = f"could not be rebuilt: {why[name]}"
    return done, failed


def _check_fetched(found: Verified) -> None:
    """Check that no file is one that Git keeps elsewhere: fetching it is a command, not hours.

    Raises:
        FormatError: Some are; the first is named.
    """
    places = [found.files.root / fault.path for fault in found.faults]
    if kinds := {path: kind for path in places if (kind := pointer_at(path))}:
        first, kind = next(iter(kinds.items()))
        more = f" (and {len(kinds) - 1} more)" if len(kinds) > 1 else ""
        raise FormatError(f"{first}{more}: {kind}; then repair again")


def _in_the_way(path: Path) -> bool:
    """Whether a folder is wanted where there is something else, or a link that leads elsewhere."""
    return path.is_symlink() or (path.exists() and not path.is_dir())


def _put(files: LocalFiles, name: str, made: Path) -> None:
    """Put a file into its place in the dataset, whatever stands there or on the way."""
    root, parts = files.root, Path(name).parts
    for count in range(1, len(parts)):
        folder = root.joinpath(*parts[:count])
        if _in_the_way(folder) and not (files.follow_links and folder.is_dir()):
            _put_aside(root, "/".join(parts[:count]))
    target = root / name
    if target.is_dir() and not target.is_symlink():
        _put_aside(root, name)
    with atomic_path(target) as partial:
        link(made, partial)


def _put_aside(root: Path, name: str) -> None:
    """Move a file, link or folder of the dataset's folder aside."""
    parts = Path(name).parts
    for number in itertools.count():
        below = root / ASIDE / str(number or "")
        repair_plan = [below.joinpath(*parts[:count]) for count in range(len(parts))]
        target = below / name
        if not os.path.lexists(target) and not any(map(_in_the_way, repair_plan)):
            break
    make_folder(target.parent)
    shutil.move(root / name, target)  # behind a link may be another disk
    with suppress(OSError):  # the folders that it leaves empty
        for parent in Path(name).parents:
            if parent != Path():
                (root / parent).rmdir()
