"""Recreate damaged files of a dataset folder so that each has the manifest's SHA-256.

Damaged files are recreated by items of the pipeline in a scratch build, `.repair/work`, to which
the intact files are linked. Intact bitstreams are reused, and codes are decoded from bitstreams,
which needs no encoder. A recreated file is moved into the dataset, by a rename, only if it has the
bytes of the manifest. An interrupted repair can therefore be run again.
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
"""Folder to which other files are moved, instead of deleting them."""


@dataclass(frozen=True)
class Repaired:
    """Result of a repair, or of a dry run.

    Attributes:
        root: The dataset folder.
        damaged: Faults that the verification reported, each with its file.
        repaired: Files that have the manifest's bytes again, or would be recreated.
        aside: Files outside the dataset that were, or would be, moved to `.repair/aside`.
        failed: Files that could not be recreated, with the reasons.
    """

    root: Path
    damaged: tuple[Fault, ...]
    repaired: tuple[str, ...]
    aside: tuple[str, ...]
    failed: tuple[Fault, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-safe data."""
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
    """Recreate the damaged files of a dataset folder with the manifest's bytes.

    Args:
        root: The dataset folder; its manifest must be intact.
        workers: Number of processes.
        accept_versions: Try it although the installed versions differ from those in the manifest.
        dry_run: Report what would be done, without changing the folder.
        progress: Display that is notified of each stage and finished item.
        follow_links: Accept links to files outside the folder. A link to a damaged file is replaced
            by a file; a linked folder is written to.
        plugins: `module:Class` of classes that the dataset uses and that are not installed.

    Raises:
        FormatError: If the folder is not a dataset, its manifest is damaged, or files are only
            pointers to Git LFS or git-annex.
        BuildError: If the installed software or weights differ, another process works in the
            folder, or an item cannot be recreated; files that were already repaired are kept.
        DiskError: If the disk is full or not writable.
    """
    check_guard()
    folder, display = real_path(root), progress or Silent()
    LocalFiles(folder, follow_links).read_manifest()
    _check_own_folders(folder)

    def make_plan() -> tuple[Verified, RepairPlan]:
        verified = verify(folder, progress=display, follow_links=follow_links)
        return verified, _plan(verified, accept_versions, tuple(plugins))

    if dry_run:
        verified, repair_plan = make_plan()
        failed = {fault.path: fault.what for fault in repair_plan.impossible}
        return _result(folder, verified, repair_plan.damaged - failed.keys(), failed)
    with clear_disk_errors("repairing"), locked(folder):
        _check_own_folders(folder)
        verified, repair_plan = make_plan()
        for name in _extra(verified):
            _move_aside(folder, name)
        if _extra(verified):  # plan again, since one of them may have been a link to a folder
            _, repair_plan = make_plan()
        done, failed = _recreate(repair_plan, folder / WORK, workers, display)
        shutil.rmtree(folder / WORK, ignore_errors=True)
        with suppress(OSError):
            (folder / ".repair").rmdir()
    return _result(folder, verified, done, failed)


def _plan(verified: Verified, accept_versions: bool, plugins: tuple[str, ...]) -> RepairPlan:
    """Plan a repair and check that the installed software can do it."""
    _check_fetched(verified)
    damaged = {fault.path for fault in verified.faults}
    repair_plan = plan_repair(verified.files, verified.manifest, damaged, plugins)
    if not damaged:
        return repair_plan
    return check_environment(repair_plan, versions=not accept_versions)


def _extra(verified: Verified) -> tuple[str, ...]:
    return tuple(fault.path for fault in verified.damage if fault.what == EXTRA)


def _result(
    root: Path, verified: Verified, done: Iterable[str], failed: Mapping[str, str]
) -> Repaired:
    failures = tuple(Fault(name, reason) for name, reason in sorted(failed.items()))
    return Repaired(root, verified.damage, tuple(sorted(done)), _extra(verified), failures)


def _check_own_folders(root: Path) -> None:
    """Check that a repair writes only inside the dataset folder, which is untrusted."""
    for name in (".build", ".repair", WORK, ASIDE):
        path = root / name
        if _is_obstacle(path):
            raise BuildError(f"{path} is not a folder made by a repair: remove it")


def _recreate(
    repair_plan: RepairPlan, root: Path, workers: int, progress: Progress
) -> tuple[set[str], dict[str, str]]:
    """Recreate damaged files in a scratch build, and move correct ones into the dataset.

    Items that fail do not stop the others, unless the disk is full.

    Returns:
        The files that have the manifest's bytes again; and the reasons for all others.
    """
    done: set[str] = set()
    failed = {fault.path: fault.what for fault in repair_plan.impossible}
    reasons = dict.fromkeys(repair_plan.damaged, "the files that it is built from are damaged")
    if not repair_plan.damaged:
        return done, failed
    prepare_scratch(repair_plan, root)
    layout, files = Layout(root), repair_plan.files

    def outputs(stage: BuildStage, item: Item) -> set[str]:
        return {layout.relative(path) for path in stage.outputs(item)} & repair_plan.damaged

    def install(names: set[str]) -> None:
        for name in names - done:
            if is_intact(repair_plan, root, name):
                _install(files, name, root / name)
                failed.pop(name, None)
                done.add(name)
            elif (root / name).is_file():
                failed[name] = "the rebuilt file differs from the manifest; fetch the dataset again"

    with Executor(workers) as executor:
        for stage, items in repair_plan.stages(root):
            tables = ("labels/", "previews/")
            if stage.name == CARD and any(n.startswith(tables) for n in reasons.keys() - done):
                continue
            files_of = {item: outputs(stage, item) for item in items}
            todo = [
                item
                for item, names in files_of.items()
                if not (stage.done(item) and all((root / name).is_file() for name in names))
            ]
            left = set[str]().union(*(files_of[item] for item in todo))
            install(set[str]().union(*files_of.values()) - left)
            try:
                for item, _ in drive(stage, executor, progress, items, todo):
                    left -= files_of[item]
                    install(files_of[item])
            except DiskError:
                raise
            except CfqaError as error:
                reasons |= dict.fromkeys(left, str(error))
    for name in repair_plan.damaged - done - failed.keys():
        failed[name] = f"could not be rebuilt: {reasons[name]}"
    return done, failed


def _check_fetched(verified: Verified) -> None:
    """Check that no file is a pointer to Git LFS or git-annex, which is faster to fetch."""
    paths = [verified.files.root / fault.path for fault in verified.faults]
    if kinds := {path: kind for path in paths if (kind := pointer_at(path))}:
        first, kind = next(iter(kinds.items()))
        more = f" (and {len(kinds) - 1} more)" if len(kinds) > 1 else ""
        raise FormatError(f"{first}{more}: {kind}; then repair again")


def _is_obstacle(path: Path) -> bool:
    """Whether a link or a file is in the place of a folder."""
    return path.is_symlink() or (path.exists() and not path.is_dir())


def _install(files: LocalFiles, name: str, recreated: Path) -> None:
    """Move a recreated file into the dataset, and anything in its place aside."""
    root, parts = files.root, Path(name).parts
    for count in range(1, len(parts)):
        folder = root.joinpath(*parts[:count])
        if _is_obstacle(folder) and not (files.follow_links and folder.is_dir()):
            _move_aside(root, "/".join(parts[:count]))
    target = root / name
    if target.is_dir() and not target.is_symlink():
        _move_aside(root, name)
    with atomic_path(target) as partial:
        link(recreated, partial)


def _move_aside(root: Path, name: str) -> None:
    """Move a file, link or folder of the dataset's folder to `ASIDE`."""
    parts = Path(name).parts
    for number in itertools.count():
        below = root / ASIDE / str(number or "")
        parents = [below.joinpath(*parts[:count]) for count in range(len(parts))]
        target = below / name
        if not os.path.lexists(target) and not any(map(_is_obstacle, parents)):
            break
    make_folder(target.parent)
    shutil.move(root / name, target)  # not a rename: a linked folder may be on another disk
    with suppress(OSError):  # remove the folders that are empty now
        for parent in Path(name).parents:
            if parent != Path():
                (root / parent).rmdir()
