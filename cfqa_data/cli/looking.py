"""Commands that look at a dataset: `info`."""

from __future__ import annotations

from cfqa_data.cli.shared import AnyDataset, FollowLinks, Json, print_json

__all__ = ["info"]


def info(folder: AnyDataset, follow_links: FollowLinks = False, as_json: Json = False) -> None:
    """Show what a dataset holds, and whether its labels can tell metrics apart."""
    from cfqa_data.integrity.summary import info_text, summarise

    summary = summarise(folder, follow_links=follow_links)
    if as_json:
        print_json(summary)
    else:
        print(info_text(summary))
