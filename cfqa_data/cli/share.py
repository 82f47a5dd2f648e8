"""`cfqa export` and `cfqa publish`: export features to files, and publish on the Hub."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from cfqa_data.cli.command import Tier, command
from cfqa_data.cli.process import print_error
from cfqa_data.cli.shared import answer, working
from cfqa_data.console import terminal
from cfqa_data.console.text import size_text
from cfqa_data.errors import CfqaError

__all__ = ["export", "publish"]


@command("export")
def export(
    folder: str,
    *,
    out: Path,
    format: Literal["safetensors", "zarr", "npy", "parquet"],
    task: str | None = None,
    codec: list[str] | None = None,
    level: list[int] | None = None,
    fold: list[int] | None = None,
    originals: bool = True,
    untrusted: bool = False,
    plugin: list[str] | None = None,
    follow_links: bool = False,
    as_json: bool = False,
) -> None:
    """Export features to plain float32 files. Resumes an interrupted export.

    Args:
        out (OUT): Folder to create, or an unfinished export to resume.
        format (FORMAT): Format of the files: safetensors, zarr, npy or parquet.
        level (LEVEL): Only this level; may be repeated.
        fold (K): Only the sources of this fold; may be repeated.
        originals: Also export the originals.
    """
    from cfqa_data.builders.sharing.export import INDEX
    from cfqa_data.builders.sharing.export import export as run_export

    with working() as progress:
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
            plugins=plugin,
            follow_links=follow_links,
        )
    text = (
        f"{out}: {exported.features} features, {size_text(exported.size)} of float32\n"
        f"Index of the files, with the labels: {out / INDEX}"
    )
    answer(as_json, exported.to_dict, lambda: text)
    for note in exported.notes if not as_json else ():
        print_error(note)


@command("publish")
def publish(
    folder: Path,
    repo: str,
    *,
    private: bool = False,
    tier: Tier | None = None,
    revision: str | None = None,
    tag: str | None = None,
    licence: str | None = None,
    licence_link: str = "",
    attribution: str = "",
    dry_run: bool = False,
    follow_links: bool = False,
    as_json: bool = False,
) -> None:
    """Publish a dataset on the Hugging Face Hub. Resumes an interrupted upload.

    Args:
        folder (DIR): A dataset folder.
        repo (ORG/NAME): Dataset repo on the Hub.
        private: If the repo is new, make it private.
        tier: light leaves out the decoded codes of a full folder. Default: the folder's tier.
        revision (BRANCH): Branch, created if it does not exist. Default: main.
        tag (TAG): Tag of this version. Default: one derived from its content.
        licence (ID): Licence of the tasks that state none, such as cc-by-4.0, or other with
            --licence-link.
        licence_link (URL): URL of the licence's text.
        attribution (TEXT): Authors to credit, with --licence.
        dry_run: Check everything, report what would be uploaded, upload nothing.
    """
    from cfqa_data.builders.sharing.publish import plan_publishing
    from cfqa_data.builders.sharing.publish import publish as run_publishing
    from cfqa_data.builders.sharing.publish_text import plan_text, published_text, quiet_client
    from cfqa_data.format.facts import Terms

    if (licence_link or attribution) and licence is None:
        raise CfqaError("--licence-link and --attribution require --licence")
    terms = Terms(licence, licence_link, attribution, truths=True) if licence is not None else None
    with terminal.show_progress() as progress:
        plan = plan_publishing(
            folder,
            repo,
            tier=tier,
            revision=revision,
            tag=tag,
            private=private,
            terms=terms,
            progress=progress,
            follow_links=follow_links,
        )
    if dry_run:
        answer(as_json, plan.to_dict, lambda: plan_text(plan))
        return
    for note in plan.notes:
        print(f"note: {note}", file=sys.stderr)
    hint = "uploaded files are kept, run the same command again to resume"
    with working(hint), quiet_client():
        published = run_publishing(plan)
    answer(as_json, published.to_dict, lambda: published_text(published))
