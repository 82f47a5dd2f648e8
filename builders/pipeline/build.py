"""Building a dataset: the stages in order, each going on where it stopped."""

from __future__ import annotations

from pathlib import Path

from cfqa_data.builders.pipeline.check import check_selection, check_space, make_plan
from cfqa_data.builders.pipeline.lock import locked
from cfqa_data.builders.pipeline.pack import pack
from cfqa_data.builders.pipeline.plan import STAGES, Plan
from cfqa_data.builders.pipeline.run import Runner, make_runner
from cfqa_data.builders.pipeline.tools import Tools
from cfqa_data.builders.pipeline.workspace import (
    open_workspace,
    remove_work,
    status,
)
from cfqa_data.console.progress import Progress, Silent
from cfqa_data.disk import clear_disk_errors
from cfqa_data.extras import extras
from cfqa_data.format.layout import Layout
from cfqa_data.format.storage import check_folder, make_folder
from cfqa_data.guard import check_guard
from cfqa_data.paths import real_path
from cfqa_data.recipe.load import Recipe, load_recipe

__all__ = ["build"]


@extras("build")
def build(
    recipe: Recipe | str | Path,
    out: Path | str,
    *,
    workers: int = 2,
    tier: str = "full",
    scheduler: str | None = None,
    accept_versions: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Build the dataset of a recipe in a folder, or go on with a build that was stopped there.

    The same recipe gives the same bytes, with any number of workers and after any number of stops.

    Args:
        recipe: a recipe, its name, or the path of its TOML file.
        out: the folder; new, empty, or one where this recipe's build was begun or finished.
        workers: processes on this machine; with 0 or 1 the work is done in this process.
        tier: "full", or "light" without the decoded codes, which are then decoded on access.
        scheduler: address of a Dask scheduler to use instead; its workers must see `out`.
        accept_versions: go on with a build that was begun with other versions of the software; the
            manifest then names both, and the bytes may be those of neither.
        progress: told of stages and their progress; nobody if None.

    Returns:
        The absolute path of the finished folder.

    Raises:
        RecipeError: there is no such recipe, or it is impossible.
        BuildError: it cannot be built here; whatever was finished is kept.
        DiskError: the disk is full, or may not be written to; what was finished is kept.
    """
    check_guard()
    recipe = load_recipe(recipe)
    root = real_path(out)
    with clear_disk_errors(f"building {recipe.name!r}"):
        if status(recipe, root, tier=tier) != "finished":
            check_folder(root)
            plan = make_plan(recipe, tier)
            runner = make_runner(workers, scheduler)
            make_folder(root)
            with locked(root):
                if status(recipe, root, tier=tier) != "finished":
                    plan = open_workspace(plan, root, accept_versions=accept_versions)
                    _build(plan, Layout(root), runner, progress or Silent())
                remove_work(root)
        elif Layout(root).work.exists():
            with locked(root):
                remove_work(root)
    return root


def _build(plan: Plan, layout: Layout, runner: Runner, progress: Progress) -> None:
    items = {stage: plan.items(stage) for stage in STAGES}
    todo = {
        stage: [item for item in items[stage] if not item.marker(layout).exists()]
        for stage in STAGES
    }
    if any(todo.values()):
        with runner:
            for stage in STAGES:
                if stage == "extract":
                    check_selection(plan, layout)
                if not todo[stage]:
                    continue
                if stage == "compress":
                    check_space(plan, layout, todo[stage])
                total = sum(map(plan.size, items[stage]))
                progress.start(stage, total, plan.unit(stage))
                if done := total - sum(map(plan.size, todo[stage])):
                    progress.advance(done)
                for item in runner.run(layout.root, plan.digest(), todo[stage]):
                    progress.advance(plan.size(item))
                progress.finish()
    progress.start("pack", len(plan.recipe.tasks) + 3, "files")
    pack(Tools(plan, layout), progress.advance)
    progress.finish()
