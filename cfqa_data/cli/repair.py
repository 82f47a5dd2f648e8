"""`cfqa repair`: make damaged files again."""

from __future__ import annotations

from typing import Annotated

import typer

from cfqa_data.cli import shared
from cfqa_data.console.text import printable

__all__ = ["repair"]


def repair(
    folder: shared.Folder,
    workers: shared.Workers = None,
    dry_run: Annotated[bool, typer.Option("--dry-run")] = False,
    root: shared.DataRoot = None,
    accept_versions: Annotated[bool, typer.Option("--accept-versions")] = False,
    plugin: shared.Plugins = None,
    follow_links: shared.FollowLinks = False,
    as_json: shared.Json = False,
) -> None:
    """Make damaged files again, to the manifest's bytes. Exit status: 1 where that fails.

    Args:
        dry_run: Tell what would be done, and do nothing.
        accept_versions: Try with other versions of software; only the manifest's bytes get in.
    """
    from cfqa_data.builders.maintenance.repair import ASIDE
    from cfqa_data.builders.maintenance.repair import repair as run_repair

    shared.use_root(root)
    plugins = shared.use_plugins(plugin)
    with shared.working(
        "what was made again stays, the same command goes on from here"
    ) as progress:
        repaired = run_repair(
            folder,
            workers=workers or shared.cores(),
            accept_versions=accept_versions,
            dry_run=dry_run,
            progress=progress,
            follow_links=follow_links,
            plugins=plugins,
        )
    lines = [f"{name}: {'can be' if dry_run else 'was'} made again" for name in repaired.repaired]
    lines += [f"{name}: {'goes' if dry_run else 'went'} to {ASIDE}" for name in repaired.aside]
    lines = [printable(line) for line in (*lines, *map(str, repaired.failed))]
    if not repaired.damaged:
        lines.append(f"{folder}: no file is damaged")
    shared.answer(as_json, repaired.to_dict, lambda: "\n".join(lines))
    if repaired.failed:
        raise typer.Exit(1)
