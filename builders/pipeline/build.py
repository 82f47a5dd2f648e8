"""Build a dataset: run the stages in order, resuming where an earlier build stopped."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

from cfqa_data.builders.pipeline.check import make_plan, pinned
from cfqa_data.builders.pipeline.compress import Compress
from cfqa_data.builders.pipeline.context import BuildContext
from cfqa_data.builders.pipeline.fit import fit_recipe
from cfqa_data.builders.pipeline.lock import locked
from cfqa_data.builders.pipeline.pack import pack
from cfqa_data.builders.pipeline.plan import Plan
from cfqa_data.builders.pipeline.prepare import Prepare
from cfqa_data.builders.pipeline.preview import Preview
from cfqa_data.builders.pipeline.select import BuildStage, Extract, Infer, Select
from cfqa_data.builders.pipeline.workspace import open_workspace, remove_work, status
from cfqa_data.console.progress import Progress, Silent
from cfqa_data.errors import clear_disk_errors
from cfqa_data.extras import extras
from cfqa_data.format.layout import Layout
from cfqa_data.format.storage import check_folder, make_folder
from cfqa_data.guard import check_guard
from cfqa_data.paths import real_path
from cfqa_data.processes.executor import Executor
from cfqa_data.processes.stage import drive
from cfqa_data.recipe.load import Recipe, load_recipe

__all__ = ["STAGES", "build", "run_stages"]

STAGES: tuple[type[BuildStage], ...] = (Select, Extract, Infer, Prepare, Compress, Preview)
"""The stages that consist of items, in order; `pack` follows as a single step."""


@extras("build")
def build(
    recipe: Recipe | str | Path,
    out: Path | str,
    *,
    workers: int | None = None,
    tier: str = "full",
    scheduler: str | None = None,
    accept_versions: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Build the dataset of a recipe in a folder, or resume an interrupted build there.

    The same recipe gives the same bytes, whatever the number of workers or interruptions.

    Args:
        recipe: A recipe, its name, or the path of its TOML file.
        out: Output folder: new, empty, or with a started or finished build of this recipe.
        workers: Number of processes, 2 by default; with 0 or 1 the build runs in this process.
        tier: "full", or "light" without the decoded features, which are then decoded on access.
        scheduler: Address of a Dask scheduler to use instead of workers on this machine. Its
            workers must see `out`; while it has none, a `CfqaWarning` says that the build waits.
        accept_versions: Resume a build that was started with other versions of the software. The
            manifest then names both versions, and the bytes may equal those of neither.
        progress: Display that is notified of each stage and finished item; None shows nothing.

    Returns:
        The absolute path of the finished folder.

    Raises:
        RecipeError: If there is no such recipe, or it is invalid.
        BuildError: If the recipe cannot be built here, or both `workers` and `scheduler` are given;
            finished items are kept.
        DiskError: If the disk is full or not writable; finished items are kept.
    """
    check_guard()
    recipe = pinned(load_recipe(recipe))
    root = real_path(out)
    with clear_disk_errors(f"building {recipe.name!r}"):
        if status(recipe, root, tier=tier) != "finished":
            check_folder(root)
            if workers is None:
                workers = 2 if scheduler is None else 0
            with Executor(workers, scheduler) as executor:
                plan = make_plan(recipe, tier)
                run_stages(STAGES, plan, root, executor, progress, accept_versions)
        elif Layout(root).work.exists():
            with locked(root):
                remove_work(root)
    return root


def run_stages(
    stages: Iterable[Callable[[BuildContext], BuildStage]],
    plan: Plan,
    root: Path,
    executor: Executor,
    progress: Progress | None,
    accept_versions: bool,
) -> None:
    """Run the unfinished items of the stages, then pack the dataset, while holding its lock."""
    progress = progress or Silent()
    make_folder(root)
    with locked(root):
        if status(plan.recipe, root, tier=plan.tier) != "finished":
            plan = open_workspace(plan, root, accept_versions=accept_versions)
            context = fit_recipe(BuildContext(plan, Layout(root)), executor, progress)
            for stage in stages:
                deque(drive(stage(context), executor, progress), maxlen=0)
            progress.start("pack", len(plan.recipe.tasks) + 3, "files")
            pack(context, progress.advance)
            progress.finish()
        remove_work(root)
