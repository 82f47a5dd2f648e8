"""`cfqa export`: write features as plain float32 files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cfqa_data.cli import shared
from cfqa_data.cli.process import say
from cfqa_data.console.text import size_text

__all__ = ["export"]


def export(
    folder: shared.AnyDataset,
    out: Annotated[Path, shared.path_option("OUT", *shared.OUT)],
    format: Literal["safetensors", "zarr", "npy", "parquet"],
    task: shared.Task = None,
    codec: shared.Codecs = None,
    level: Annotated[list[int] | None, typer.Option(metavar="LEVEL")] = None,
    fold: Annotated[list[int] | None, typer.Option(metavar="K")] = None,
    originals: Annotated[bool, typer.Option("--originals/--no-originals")] = True,
    untrusted: shared.Untrusted = False,
    plugin: shared.Plugins = None,
    follow_links: shared.FollowLinks = False,
    as_json: shared.Json = False,
) -> None:
    """Write features as plain float32 files. Goes on where it was stopped.

    Args:
        out: Folder to make, or an unfinished export to resume.
        format: Of the files to write.
        level: Only this level; repeat it for several.
        fold: Only the sources of this fold; repeat it for several.
        originals: Also write the originals.
    """
    from cfqa_data.builders.sharing.export import INDEX
    from cfqa_data.builders.sharing.export import export as run_export

    plugins = shared.use_plugins(plugin)
    with shared.working() as progress:
        exported = run_export(
            folder,
            out,
            format,
            task=task,
            codec=codec or None,
            level=level or None,
            fold=fold or None,
            originals=originals,
            progress=progress,
            untrusted=untrusted,
            plugins=plugins,
            follow_links=follow_links,
        )
    shared.answer(
        as_json,
        exported.to_dict,
        lambda: (
            f"{out}: {exported.features} features, {size_text(exported.size)} of float32\n"
            f"What is where, with the labels: {out / INDEX}"
        ),
    )
    for note in exported.notes if not as_json else ():
        say(note)
