"""Commands that make a dataset: `build` and `import-release`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from cfqa_data.cli.shared import (
    DataRoot,
    Json,
    Tier,
    Workers,
    cores,
    local_path,
    plain_file,
    print_json,
    resumable,
    use_root,
)
from cfqa_data.paths import absolute_path

__all__ = ["build", "import_release"]

KEPT = "what is finished is kept, the same command goes on from here"

Encoder = Annotated[
    Path | None,
    typer.Option(
        parser=plain_file,
        metavar="FILE",
        help="Reference encoder. Default: the environment's, or on PATH.",
    ),
]
EncoderConfig = Annotated[
    Path | None,
    typer.Option(
        parser=plain_file,
        metavar="FILE",
        help="Its configuration. Default: the environment's, or near it.",
    ),
]

AcceptVersions = Annotated[
    bool,
    typer.Option("--accept-versions", help="Go on with what other versions of software began."),
]


def build(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="mini, nano, paper, or a recipe's TOML file.")
    ] = "mini",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", parser=local_path, metavar="DIR", help="Folder to make."),
    ] = None,
    workers: Workers = None,
    tier: Annotated[
        Tier, typer.Option(help="light leaves out what bitstreams decode to.")
    ] = Tier.full,
    scheduler: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Dask scheduler to run on instead.")
    ] = None,
    root: DataRoot = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Check everything, tell what it takes, build nothing.")
    ] = False,
    hm_encoder: Encoder = None,
    hm_config: EncoderConfig = None,
    vtm_encoder: Encoder = None,
    vtm_config: EncoderConfig = None,
    check_decoder: Annotated[
        bool,
        typer.Option("--check-decoder", help="Have HM's and VTM's decoders decode all again."),
    ] = False,
    accept_versions: AcceptVersions = False,
    as_json: Json = False,
) -> None:
    """Build a dataset from a recipe. Goes on where an earlier build stopped."""
    from cfqa_data.builders.pipeline import build as run_build
    from cfqa_data.console.terminal import show_progress
    from cfqa_data.integrity.summary import build_text, summarise

    use_root(root)
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
        _plan(recipe, tier.value, as_json)
        return
    if out is None:
        raise typer.BadParameter("Missing option '--out' / '-o'.")
    with resumable(KEPT), show_progress() as progress:
        folder = run_build(
            recipe,
            out,
            workers=workers or cores(),
            tier=tier.value,
            scheduler=scheduler,
            accept_versions=accept_versions,
            progress=progress,
        )
    summary = summarise(folder)
    if as_json:
        print_json(summary)
    else:
        print(build_text(summary, out))


def _plan(recipe: str, tier: str, as_json: bool) -> None:
    from cfqa_data.builders.pipeline.check import make_plan
    from cfqa_data.builders.pipeline.estimate import estimate, estimate_text
    from cfqa_data.recipe.load import load_recipe

    told = estimate(make_plan(load_recipe(recipe), tier))
    if as_json:
        print_json(told)
    else:
        print(estimate_text(told))


def import_release(
    source: Annotated[
        Path,
        typer.Argument(
            parser=local_path, metavar="SRC", help="A downloaded release of the benchmark."
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", parser=local_path, metavar="DIR", help="Folder to make.")
    ],
    logs: Annotated[
        Path | None,
        typer.Option(
            parser=local_path,
            metavar="LOGS",
            help="Published score logs. Default: score by the recipe.",
        ),
    ] = None,
    recipe: Annotated[
        str, typer.Option(metavar="RECIPE", help="Ranges, and what to score with.")
    ] = "paper",
    root: DataRoot = None,
    accept_versions: AcceptVersions = False,
    as_json: Json = False,
) -> None:
    """Make a dataset of a downloaded release, without loss. Goes on where it was stopped."""
    from cfqa_data.builders.importing.release import import_release as run_import
    from cfqa_data.console.terminal import show_progress
    from cfqa_data.integrity.summary import imported_text, summarise

    use_root(root)
    with resumable(KEPT), show_progress() as progress:
        imported = run_import(
            source,
            out,
            logs=logs,
            recipe=recipe,
            accept_versions=accept_versions,
            progress=progress,
        )
    summary = summarise(imported.root) | {"import": imported.to_dict()}
    if as_json:
        print_json(summary)
    else:
        print(imported_text(summary, out))
