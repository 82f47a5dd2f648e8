"""Commands that give a dataset away: `export` and `publish`."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cfqa_data.cli.shared import (
    AnyDataset,
    Codecs,
    Folder,
    FollowLinks,
    Json,
    Task,
    Tier,
    Untrusted,
    local_path,
    print_json,
    resumable,
)

__all__ = ["export", "publish"]


class ExportFormat(StrEnum):
    """What `cfqa export` writes."""

    safetensors = "safetensors"
    zarr = "zarr"
    npy = "npy"
    parquet = "parquet"


def export(
    folder: AnyDataset,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            parser=local_path,
            metavar="OUT",
            help="Folder to make, or to go on with.",
        ),
    ],
    format: Annotated[ExportFormat, typer.Option(help="Of the files to write.")],
    task: Task = None,
    codec: Codecs = None,
    level: Annotated[
        list[int] | None,
        typer.Option(metavar="LEVEL", help="Only this level; repeat it for several."),
    ] = None,
    fold: Annotated[
        list[int] | None,
        typer.Option(metavar="K", help="Only the sources of this fold; repeat it for several."),
    ] = None,
    originals: Annotated[
        bool, typer.Option("--originals/--no-originals", help="Also write the originals.")
    ] = True,
    untrusted: Untrusted = False,
    follow_links: FollowLinks = False,
    as_json: Json = False,
) -> None:
    """Write features as plain float32 files. Goes on where it was stopped."""
    from cfqa_data.builders.sharing.export import INDEX
    from cfqa_data.builders.sharing.export import export as run_export
    from cfqa_data.console.terminal import show_progress
    from cfqa_data.console.text import size_text

    with (
        resumable("what is finished is kept, the same command goes on from here"),
        show_progress() as progress,
    ):
        exported = run_export(
            folder,
            out,
            format.value,
            task=task,
            codec=codec or None,
            level=level or None,
            fold=fold or None,
            originals=originals,
            progress=progress,
            untrusted=untrusted,
            follow_links=follow_links,
        )
    if as_json:
        print_json(exported.to_dict())
    else:
        print(f"{out}: {exported.features} features, {size_text(exported.size)} of float32")
        print(f"What is where, with the labels: {out / INDEX}")


def publish(
    folder: Folder,
    repo: Annotated[str, typer.Argument(metavar="ORG/NAME", help="Dataset repo on the Hub.")],
    private: Annotated[
        bool, typer.Option("--private", help="A new repo is seen by its owners only.")
    ] = False,
    tier: Annotated[
        Tier | None,
        typer.Option(help="light leaves out the codes of a full folder. Default: the folder's."),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(metavar="BRANCH", help="Branch, made if it is not there. Default: main."),
    ] = None,
    tag: Annotated[
        str | None,
        typer.Option(metavar="TAG", help="Of this version. Default: one made of its content."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, tell what would go, send nothing.")
    ] = False,
    follow_links: FollowLinks = False,
    as_json: Json = False,
) -> None:
    """Publish a dataset on the Hugging Face Hub. Goes on where it was stopped."""
    from cfqa_data.builders.sharing.publish import plan_publishing
    from cfqa_data.builders.sharing.publish import publish as run_publishing
    from cfqa_data.builders.sharing.publish_text import plan_text, published_text, quiet_client
    from cfqa_data.console.terminal import show_progress

    with show_progress() as progress:
        plan = plan_publishing(
            folder,
            repo,
            tier=tier.value if tier else None,
            revision=revision,
            tag=tag,
            private=private,
            progress=progress,
            follow_links=follow_links,
        )
    if dry_run:
        if as_json:
            print_json(plan.to_dict())
        else:
            print(plan_text(plan))
        return
    for note in plan.notes:
        print(f"note: {note}", file=sys.stderr)
    with resumable("what was sent is kept, the same command goes on from there"), quiet_client():
        published = run_publishing(plan)
    if as_json:
        print_json(published.to_dict())
    else:
        print(published_text(published))
