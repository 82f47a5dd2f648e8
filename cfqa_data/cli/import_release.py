"""`cfqa import-release`: make a dataset of a downloaded release."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cfqa_data.cli import shared

__all__ = ["import_release"]


def import_release(
    source: Annotated[Path, typer.Argument(parser=shared.local_path, metavar="SRC")],
    out: shared.Out,
    logs: Annotated[Path | None, shared.path_option("LOGS")] = None,
    recipe: Annotated[str, typer.Option(metavar="RECIPE")] = "paper",
    root: shared.DataRoot = None,
    accept_versions: shared.AcceptVersions = False,
    as_json: shared.Json = False,
) -> None:
    """Make a dataset of a downloaded release, without loss. Goes on where it was stopped.

    Args:
        source: A downloaded release of the benchmark.
        out: Folder to make.
        logs: Published score logs. Default: score by the recipe.
        recipe: Ranges, and what to score with.
    """
    from cfqa_data.builders.importing.release import import_release as run_import
    from cfqa_data.integrity.summary import imported_text, summarise

    shared.use_root(root)
    shared.use_recipe(recipe)
    with shared.working() as progress:
        imported = run_import(
            source,
            out,
            logs=logs,
            recipe=recipe,
            accept_versions=accept_versions,
            progress=progress,
        )
    summary = summarise(imported.root) | {"import": imported.to_dict()}
    shared.answer(as_json, lambda: summary, lambda: imported_text(summary, out))
