"""`cfqa build` and `cfqa import-release`: make a dataset."""

from __future__ import annotations

import os
from pathlib import Path

from cfqa_data.cli.command import Tier, command, cores
from cfqa_data.cli.shared import answer, working
from cfqa_data.errors import CfqaError

__all__ = ["build", "import_release"]


@command("build", extra="build")
def build(
    recipe: str = "mini",
    *,
    out: Path | None = None,
    workers: int | None = None,
    tier: Tier = "full",
    scheduler: str | None = None,
    root: Path | None = None,
    plan: bool = False,
    hm_encoder: Path | None = None,
    hm_config: Path | None = None,
    vtm_encoder: Path | None = None,
    vtm_config: Path | None = None,
    check_decoder: bool = False,
    accept_versions: bool = False,
    as_json: bool = False,
) -> None:
    """Build a dataset from a recipe. Goes on where an earlier build stopped.

    Args:
        recipe (RECIPE): mini, nano, wide, ret, paper, dinov2-s, -b, -l, -g, or a TOML file.
        out (DIR): Folder to make.
        tier: light leaves out what bitstreams decode to.
        scheduler (ADDRESS): Dask scheduler to run on instead.
        plan: Check everything, tell what it takes, build nothing.
        hm_encoder (FILE): Reference encoder. Default: the environment's, or on PATH.
        hm_config (FILE): Its configuration. Default: the environment's, or near it.
        vtm_encoder (FILE): Reference encoder. Default: the environment's, or on PATH.
        vtm_config (FILE): Its configuration. Default: the environment's, or near it.
        check_decoder: Have HM's and VTM's decoders decode all again.
    """
    from cfqa_data.builders.pipeline import build as run_build
    from cfqa_data.builders.pipeline.check import make_plan
    from cfqa_data.builders.pipeline.estimate import estimate, estimate_text
    from cfqa_data.integrity.summary import build_text, summarise
    from cfqa_data.recipe.load import load_recipe

    if check_decoder:
        os.environ["CFQA_CHECK_DECODER"] = "1"
    if plan:
        estimated = estimate(make_plan(load_recipe(recipe), tier))
        answer(as_json, lambda: estimated, lambda: estimate_text(estimated))
        return
    if out is None:
        raise CfqaError("--out is missing: name the folder to build in, or add --plan")
    with working() as progress:
        folder = run_build(
            recipe,
            out,
            workers=workers or cores(),
            tier=tier,
            scheduler=scheduler,
            accept_versions=accept_versions,
            progress=progress,
        )
    summary, tasks = summarise(folder), load_recipe(recipe).tasks.values()
    kinds = [spec.kind or "" for task in tasks for spec in task.codecs.values()]
    plugins = dict.fromkeys(kind for kind in kinds if tier == "light" and ":" in kind)
    answer(as_json, lambda: summary, lambda: build_text(summary, out, [*plugins]))


@command("import-release", extra="build")
def import_release(
    source: Path,
    *,
    out: Path,
    logs: Path | None = None,
    recipe: str = "paper",
    root: Path | None = None,
    accept_versions: bool = False,
    as_json: bool = False,
) -> None:
    """Make a dataset of a downloaded release, without loss. Goes on where it was stopped.

    Args:
        source (SRC): A downloaded release of the benchmark.
        out (DIR): Folder to make.
        logs (LOGS): Published score logs. Default: score by the recipe.
        recipe (RECIPE): Ranges, and what to score with.
    """
    from cfqa_data.builders.importing.release import import_release as run_import
    from cfqa_data.integrity.summary import imported_text, summarise

    with working() as progress:
        imported = run_import(
            source,
            out,
            logs=logs,
            recipe=recipe,
            accept_versions=accept_versions,
            progress=progress,
        )
    summary = summarise(imported.root) | {"import": imported.to_dict()}
    answer(as_json, lambda: summary, lambda: imported_text(summary, out))
