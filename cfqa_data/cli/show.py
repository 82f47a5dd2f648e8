"""`cfqa show` and `cfqa gallery`: pictures of what compression does to features."""

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
    """Show a source: its input, and the task output from its feature at each level.

    Args:
        source (SOURCE): Id of the source.
        level (LEVEL): Only this level (0 is the best); may be repeated.
        metric (NAME): Show scores of this metric, a name, MODULE:FUNCTION or FILE.py:FUNCTION;
            separated by commas, or repeated. Default: mse, cosine and cka of the labels.
        scores (SCORES): Read the scores from this .parquet file, written by `cfqa eval DIR --out`;
            --metric selects some of its metrics.
        out (FILE): Write an .html page with a slider, or a .png picture.
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
        metrics=_metrics(metric),
        evaluation=evaluation,
    )
    if out is not None:
        shown.save(out)
    answer(as_json, shown.to_dict, lambda: repr(shown))
    if out is not None and not as_json:
        print(f"Picture: {out}")


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
    """Write an offline HTML page: sources, with a slider over the levels and a choice of codec.

    Args:
        out (FILE): Write the page to this .html file.
        level (LEVEL): Only this level (0 is the best); may be repeated.
        sources (N): Number of sources, spread over the tasks and the range of distortion.
        metric (NAME): Show scores of this metric, a name, MODULE:FUNCTION or FILE.py:FUNCTION;
            separated by commas, or repeated. Default: mse, cosine and cka of the labels.
        scores (SCORES): Read the scores from this .parquet file, written by `cfqa eval DIR --out`;
            --metric selects some of its metrics.
    """
    from cfqa_data.access.dataset import LoadOptions, load
    from cfqa_data.builders.gallery.page import write_gallery
    from cfqa_data.console.text import size_text
    from cfqa_data.eval import read_evaluation

    check_new_file(out, (".html",), force)
    options: LoadOptions = {"untrusted": untrusted, "plugins": plugin, "follow_links": follow_links}
    rows = LoadOptions(codec=codec or None, level=level or None)
    dataset = load(folder, task, **options | rows)
    evaluation = read_evaluation(load(folder, **options), scores) if scores else None
    with working("nothing was written") as progress:
        write_gallery(
            dataset,
            out,
            sources=sources,
            metrics=_metrics(metric),
            evaluation=evaluation,
            progress=progress,
        )
    print(f"Gallery: {out} ({size_text(out.stat().st_size)})")


def _metrics(metric: list[str] | None) -> list[str] | None:
    """Return the metrics named by the options, each of which may name several."""
    from cfqa_data.eval.metrics.spec import split_specs

    return (split_specs(",".join(metric)) or metric) if metric else None
