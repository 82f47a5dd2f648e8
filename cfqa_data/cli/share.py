"""`cfqa export` and `cfqa publish`: features as plain files, and a dataset on the Hub."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from cfqa_data.cli.command import Tier, command
from cfqa_data.cli.process import say
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
    """Write features as plain float32 files. Goes on where it was stopped.

    Args:
        out (OUT): Folder to make, or an unfinished export to resume.
        format: Of the files to write.
        level (LEVEL): Only this level; repeat it for several.
        fold (K): Only the sources of this fold; repeat it for several.
        originals: Also write the originals.
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
        f"What is where, with the labels: {out / INDEX}"
    )
    answer(as_json, exported.to_dict, lambda: text)
    for note in exported.notes if not as_json else ():
        say(note)


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
    """Publish a dataset on the Hugging Face Hub. Goes on where it was stopped.

    Args:
        folder (DIR): A dataset folder.
        repo (ORG/NAME): Dataset repo on the Hub.
        private: A new repo is seen by its owners only.
        tier: light leaves out the codes of a full folder. Default: the folder's.
        revision (BRANCH): Branch, made if it is not there. Default: main.
        tag (TAG): Of this version. Default: one made of its content.
        licence (ID): Terms of tasks that state none, such as cc-by-4.0; other with --licence-link.
        licence_link (URL): Text of that licence.
        attribution (TEXT): Authors to credit, with --licence.
        dry_run: Check everything, tell what would go, send nothing.
    """
    from cfqa_data.builders.sharing.publish import plan_publishing
    from cfqa_data.builders.sharing.publish import publish as run_publishing
    from cfqa_data.builders.sharing.publish_text import plan_text, published_text, quiet_client
    from cfqa_data.format.facts import Terms

    if (licence_link or attribution) and licence is None:
        raise CfqaError("--licence-link and --attribution belong to --licence")
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
    hint = "what was sent is kept, the same command goes on from there"
    with working(hint), quiet_client():
        published = run_publishing(plan)
    answer(as_json, published.to_dict, lambda: published_text(published))
