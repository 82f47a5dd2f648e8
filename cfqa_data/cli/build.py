"""`cfqa build` and `cfqa import-release`: create a dataset."""

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
    dry_run: bool = False,
    hm_encoder: Path | None = None,
    hm_config: Path | None = None,
    vtm_encoder: Path | None = None,
    vtm_config: Path | None = None,
    check_decoder: bool = False,
    allow_version_mismatch: bool = False,
    as_json: bool = False,
) -> None:
    """Build a dataset from a recipe. Resumes an interrupted build.

    Args:
        recipe (RECIPE): mini, nano, wide, ret, paper, dinov2-s, -b, -l, -g, or a TOML file.
        out (DIR): Folder to create.
        tier: light leaves out the decoded codes and keeps the bitstreams only.
        scheduler (ADDRESS): Run on the Dask cluster of this scheduler, not with --workers.
        dry_run: Check everything, estimate time and space, build nothing.
        hm_encoder (FILE): HM encoder. Default: CFQA_HM_ENCODER, or on PATH.
        hm_config (FILE): Its configuration. Default: CFQA_HM_CONFIG, or near the encoder.
        vtm_encoder (FILE): VTM encoder. Default: CFQA_VTM_ENCODER, or on PATH.
        vtm_config (FILE): Its configuration. Default: CFQA_VTM_CONFIG, or near the encoder.
        check_decoder: Also decode every bitstream of HM and VTM with their own decoders.
    """
    from cfqa_data.builders.pipeline import build as run_build
    from cfqa_data.builders.pipeline.check import make_plan
    from cfqa_data.builders.pipeline.estimate import estimate, estimate_text
    from cfqa_data.integrity.summary import build_text, summarise
    from cfqa_data.recipe.load import load_recipe

    if check_decoder:
        os.environ["CFQA_CHECK_DECODER"] = "1"
    if dry_run:
        estimated = estimate(make_plan(load_recipe(recipe), tier))
        answer(as_json, lambda: estimated, lambda: estimate_text(estimated))
        return
    if out is None:
        raise CfqaError("--out is missing: name the folder to build in, or add --dry-run")
    with working() as progress:
        folder = run_build(
            recipe,
            out,
            workers=workers or (cores() if scheduler is None else None),
            tier=tier,
            scheduler=scheduler,
            accept_versions=allow_version_mismatch,
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
    allow_version_mismatch: bool = False,
    as_json: bool = False,
) -> None:
    """Convert a downloaded release to a dataset, losslessly. Resumes an interrupted import.

    Args:
        source (SRC): A downloaded release of the benchmark.
        out (DIR): Folder to create.
        logs (LOGS): Published score logs. Default: score by the recipe.
        recipe (RECIPE): Quantiser ranges, and the models to score with.
    """
    from cfqa_data.builders.importing.release import import_release as run_import
    from cfqa_data.integrity.summary import imported_text, summarise

    with working() as progress:
        imported = run_import(
            source,
            out,
            logs=logs,
            recipe=recipe,
            accept_versions=allow_version_mismatch,
            progress=progress,
        )
    summary = summarise(imported.root) | {"import": imported.to_dict()}
    answer(as_json, lambda: summary, lambda: imported_text(summary, out))
