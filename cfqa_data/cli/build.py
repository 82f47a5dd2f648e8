"""`cfqa build`: make a dataset from a recipe."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from cfqa_data.cli import shared
from cfqa_data.paths import absolute_path

__all__ = ["build"]

File = Annotated[Path | None, typer.Option(parser=shared.plain_file, metavar="FILE")]


def build(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE")] = "mini",
    out: Annotated[Path | None, shared.path_option("DIR", *shared.OUT)] = None,
    workers: shared.Workers = None,
    tier: shared.Tier = "full",
    scheduler: Annotated[str | None, typer.Option(metavar="ADDRESS")] = None,
    root: shared.DataRoot = None,
    plan: Annotated[bool, typer.Option("--plan")] = False,
    hm_encoder: File = None,
    hm_config: File = None,
    vtm_encoder: File = None,
    vtm_config: File = None,
    check_decoder: Annotated[bool, typer.Option("--check-decoder")] = False,
    accept_versions: shared.AcceptVersions = False,
    as_json: shared.Json = False,
) -> None:
    """Build a dataset from a recipe. Goes on where an earlier build stopped.

    Args:
        recipe: mini, nano, paper, or a recipe's TOML file.
        out: Folder to make.
        tier: light leaves out what bitstreams decode to.
        scheduler: Dask scheduler to run on instead.
        plan: Check everything, tell what it takes, build nothing.
        hm_encoder: Reference encoder. Default: the environment's, or on PATH.
        hm_config: Its configuration. Default: the environment's, or near it.
        vtm_encoder: Reference encoder. Default: the environment's, or on PATH.
        vtm_config: Its configuration. Default: the environment's, or near it.
        check_decoder: Have HM's and VTM's decoders decode all again.
    """
    from cfqa_data.builders.pipeline import build as run_build
    from cfqa_data.integrity.summary import build_text, summarise

    shared.use_root(root)
    shared.use_recipe(recipe)
    files = {
        "CFQA_HM_ENCODER": hm_encoder,
        "CFQA_HM_CONFIG": hm_config,
        "CFQA_VTM_ENCODER": vtm_encoder,
        "CFQA_VTM_CONFIG": vtm_config,
    }
    os.environ.update({name: str(absolute_path(file)) for name, file in files.items() if file})
    if check_decoder:
        os.environ["CFQA_CHECK_DECODER"] = "1"
    if plan:
        _plan(recipe, tier, as_json)
        return
    if out is None:
        raise typer.BadParameter("Missing option '--out' / '-o'.")
    with shared.working() as progress:
        folder = run_build(
            recipe,
            out,
            workers=workers or shared.cores(),
            tier=tier,
            scheduler=scheduler,
            accept_versions=accept_versions,
            progress=progress,
        )
    summary = summarise(folder)
    plugins = _decoders(recipe) if tier == "light" else []
    shared.answer(as_json, lambda: summary, lambda: build_text(summary, out, plugins))


def _decoders(recipe: str) -> list[str]:
    """Return `module:Class` of the codecs that a recipe so names."""
    from cfqa_data.recipe.load import load_recipe

    codecs = [spec for task in load_recipe(recipe).tasks.values() for spec in task.codecs.values()]
    return list(dict.fromkeys(spec.kind for spec in codecs if spec.kind and ":" in spec.kind))


def _plan(recipe: str, tier: str, as_json: bool) -> None:
    from cfqa_data.builders.pipeline.check import make_plan
    from cfqa_data.builders.pipeline.estimate import estimate, estimate_text
    from cfqa_data.recipe.load import load_recipe

    estimated = estimate(make_plan(load_recipe(recipe), tier))
    shared.answer(as_json, lambda: estimated, lambda: estimate_text(estimated))
