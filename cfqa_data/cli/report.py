"""`cfqa report`: write a page of scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cfqa_data.cli import shared
from cfqa_data.errors import CfqaError

__all__ = ["report"]


def report(
    folder: shared.AnyDataset,
    scores: Annotated[Path, typer.Argument(parser=shared.local_path, metavar="SCORES")],
    out: Annotated[Path, shared.path_option("FILE", *shared.OUT)],
    target: Annotated[shared.Target | None, typer.Option(show_default=False)] = None,
    force: shared.Force = False,
    follow_links: shared.FollowLinks = False,
) -> None:
    """Write a report of scores: one HTML file that opens offline.

    Args:
        scores: What `cfqa eval DIR --out` wrote, .parquet.
        out: Page to write, .html.
        target: Label to follow. Default: that of the scores.
    """
    from cfqa_data.access.dataset import load
    from cfqa_data.eval import read_evaluation
    from cfqa_data.eval.report import write_report
    from cfqa_data.format.storage import check_writable

    if out.suffix != ".html":
        raise CfqaError(f"{out}: a report is written as .html, by that ending")
    check_writable(out)
    shared.check_free(out, force)
    dataset = load(folder, follow_links=follow_links)
    print(f"Report: {write_report(read_evaluation(dataset, scores, target), out, dataset)}")
