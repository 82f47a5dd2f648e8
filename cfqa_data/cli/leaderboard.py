"""`cfqa leaderboard`: rank metrics by their score files."""

from __future__ import annotations

import warnings
from pathlib import Path

from cfqa_data.cli.command import Target, command
from cfqa_data.cli.shared import answer, check_new_file
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
    as_json: bool = False,
) -> None:
    """Rank metrics by their mean SROCC over the tasks, all codecs pooled.

    Args:
        results (RESULTS): Score files, .parquet, of `cfqa eval DIR --out`; one leaderboard per
            dataset.
        dataset (DIR): Dataset that was scored. Default: the labels stored in the score files.
        target: Label to correlate with. Default: that of the scores.
        out (FILE): Write the leaderboard to this .html or .md file.
    """
    from cfqa_data.eval.report import leaderboard as boards_of
    from cfqa_data.format.storage import write_text

    check_new_file(out, (".html", ".md"), force)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MetricWarning)  # the leaderboard contains them
        boards = boards_of.leaderboard(*results, dataset=dataset, target=target)
    answer(
        as_json,
        lambda: {"leaderboards": [board.to_dict() for board in boards]},
        lambda: boards_of.terminal_text(boards),
    )
    if out is not None:
        write = boards_of.html_page if out.suffix == ".html" else boards_of.markdown_page
        write_text(out, write(boards))
        if not as_json:
            print(f"\nLeaderboard: {out}")
