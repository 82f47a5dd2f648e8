"""`cfqa publish`: put a dataset on the Hub."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from cfqa_data.cli import shared
from cfqa_data.console import terminal

__all__ = ["publish"]


def publish(
    folder: shared.Folder,
    repo: Annotated[str, typer.Argument(metavar="ORG/NAME")],
    private: Annotated[bool, typer.Option("--private")] = False,
    tier: shared.Tier | None = None,
    revision: Annotated[str | None, typer.Option(metavar="BRANCH")] = None,
    tag: Annotated[str | None, typer.Option(metavar="TAG")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run")] = False,
    follow_links: shared.FollowLinks = False,
    as_json: shared.Json = False,
) -> None:
    """Publish a dataset on the Hugging Face Hub. Goes on where it was stopped.

    Args:
        repo: Dataset repo on the Hub.
        private: A new repo is seen by its owners only.
        tier: light leaves out the codes of a full folder. Default: the folder's.
        revision: Branch, made if it is not there. Default: main.
        tag: Of this version. Default: one made of its content.
        dry_run: Check everything, tell what would go, send nothing.
    """
    from cfqa_data.builders.sharing.publish import plan_publishing
    from cfqa_data.builders.sharing.publish import publish as run_publishing
    from cfqa_data.builders.sharing.publish_text import plan_text, published_text, quiet_client

    with terminal.show_progress() as progress:
        plan = plan_publishing(
            folder,
            repo,
            tier=tier,
            revision=revision,
            tag=tag,
            private=private,
            progress=progress,
            follow_links=follow_links,
        )
    if dry_run:
        shared.answer(as_json, plan.to_dict, lambda: plan_text(plan))
        return
    for note in plan.notes:
        print(f"note: {note}", file=sys.stderr)
    with (
        shared.working("what was sent is kept, the same command goes on from there"),
        quiet_client(),
    ):
        published = run_publishing(plan)
    shared.answer(as_json, published.to_dict, lambda: published_text(published))
