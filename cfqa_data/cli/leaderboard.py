"""`cfqa leaderboard`: rank the metrics of files of scores."""

from __future__ import annotations

import warnings
from pathlib import Path

from cfqa_data.cli.command import Target, command
from cfqa_data.cli.shared import check_new_file
from cfqa_data.errors import MetricWarning

__all__ = ["leaderboard"]


@command("leaderboard")
def leaderboard(
    results: list[Path],
    *,
    dataset: str | None = None,
    target: Target | None = None,
    out: Path | None = None,
    force: bool = False,
) -> None:
    """Rank the metrics of files of scores by their mean SROCC, all codecs together.

    Args:
        results (RESULTS): What `cfqa eval DIR --out` wrote, .parquet; of several datasets, each has
            its own board.
        dataset (DIR): The dataset that all are of. Default: the labels that the files keep.
        target: Label to follow. Default: that of the scores.
        out (FILE): Write a page, .html, or Markdown, .md.
    """
    from cfqa_data.eval.report import leaderboard as boards_of
    from cfqa_data.format.storage import write_text

    check_new_file(out, (".html", ".md"), force)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MetricWarning)  # the board has them
        boards = boards_of.leaderboard(*results, dataset=dataset, target=target)
    print(boards_of.terminal_text(boards))
    if out is not None:
        write = boards_of.html_page if out.suffix == ".html" else boards_of.markdown_page
        write_text(out, write(boards))
        print(f"\nLeaderboard: {out}")
