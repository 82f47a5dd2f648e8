"""`cfqa info`: what a dataset holds."""

from __future__ import annotations

from cfqa_data.cli import shared

__all__ = ["info"]


def info(
    folder: shared.AnyDataset,
    follow_links: shared.FollowLinks = False,
    as_json: shared.Json = False,
) -> None:
    """Show what a dataset holds, and whether its labels can tell metrics apart."""
    from cfqa_data.integrity.summary import info_text, summarise

    summary = summarise(folder, follow_links=follow_links)
    shared.answer(as_json, lambda: summary, lambda: info_text(summary))
