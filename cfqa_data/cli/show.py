"""`cfqa show` and `cfqa gallery`: what compression does to features, in pictures."""

from __future__ import annotations

from pathlib import Path

from cfqa_data.cli.command import command
from cfqa_data.cli.shared import answer, check_new_file, working

__all__ = ["gallery", "show"]


@command("show", "build")
def show(
    folder: str,
    source: str,
    *,
    codec: list[str] | None = None,
    level: list[int] | None = None,
    metric: list[str] | None = None,
    scores: Path | None = None,
    out: Path | None = None,
    force: bool = False,
    root: Path | None = None,
    untrusted: bool = False,
    plugin: list[str] | None = None,
    follow_links: bool = False,
    as_json: bool = False,
) -> None:
    """Show one source: its input, and what its task makes of its feature at each level.

    Args:
        source (SOURCE): Its id.
        level (LEVEL): Only this level, 0 is the best; repeat it for several.
        metric (NAME): Scores of this metric, MODULE:FUNCTION or FILE.py:FUNCTION; several by
            commas, or repeat it. Default: those that the labels hold.
        scores (SCORES): Scores in place of those computed here: what `cfqa eval DIR --out` wrote,
            .parquet; --metric names some of its metrics.
        out (FILE): Write a page with a slider, .html, or a picture, .png.
    """
    from cfqa_data.access.dataset import load
    from cfqa_data.eval import read_evaluation

    check_new_file(out, (".html", ".png"), force)
    dataset = load(folder, untrusted=untrusted, plugins=plugin, follow_links=follow_links)
    evaluation = read_evaluation(dataset, scores) if scores else None
    shown = dataset.show(
        source,
        codec=codec or None,
        level=level or None,
        metrics=_named(metric),
        evaluation=evaluation,
    )
    if out is not None:
        shown.save(out)
    answer(as_json, shown.to_dict, lambda: repr(shown))
    if out is not None and not as_json:
        print(f"Shown: {out}")


@command("gallery", "build")
def gallery(
    folder: str,
    *,
    out: Path,
    task: str | None = None,
    codec: list[str] | None = None,
    level: list[int] | None = None,
    sources: int = 12,
    metric: list[str] | None = None,
    scores: Path | None = None,
    force: bool = False,
    root: Path | None = None,
    untrusted: bool = False,
    plugin: list[str] | None = None,
    follow_links: bool = False,
) -> None:
    """Write a page that opens offline: sources with a slider over levels and a choice of codec.

    Args:
        out (FILE): Page to write, .html.
        level (LEVEL): Only this level, 0 is the best; repeat it for several.
        sources (N): How many, spread over tasks and over the harm done.
        metric (NAME): Scores of this metric, MODULE:FUNCTION or FILE.py:FUNCTION; several by
            commas, or repeat it. Default: those that the labels hold.
        scores (SCORES): Scores in place of those computed here: what `cfqa eval DIR --out` wrote,
            .parquet; --metric names some of its metrics.
    """
    from cfqa_data.access.dataset import LoadOptions, load
    from cfqa_data.builders.gallery.page import write_gallery
    from cfqa_data.console.text import size_text
    from cfqa_data.eval import read_evaluation

    check_new_file(out, (".html",), force)
    how: LoadOptions = {"untrusted": untrusted, "plugins": plugin, "follow_links": follow_links}
    dataset = load(folder, task, **how | LoadOptions(codec=codec or None, level=level or None))
    evaluation = read_evaluation(load(folder, **how), scores) if scores else None
    with working("nothing was written") as progress:
        write_gallery(
            dataset,
            out,
            sources=sources,
            metrics=_named(metric),
            evaluation=evaluation,
            progress=progress,
        )
    print(f"Gallery: {out} ({size_text(out.stat().st_size)})")


def _named(metric: list[str] | None) -> list[str] | None:
    """Return the metrics of the options; those of one are separated by commas."""
    from cfqa_data.eval.metrics.spec import split_specs

    return (split_specs(",".join(metric)) or metric) if metric else None
