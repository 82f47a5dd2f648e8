"""`cfqa curves`: rate-distortion curves, and BD-rates against an anchor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfqa_data.cli.command import command
from cfqa_data.cli.shared import answer, check_new_file

if TYPE_CHECKING:
    from cfqa_data.eval.curves import Curves

__all__ = ["curves"]


@command("curves")
def curves(
    folder: str,
    *,
    anchor: str | None = None,
    quality: list[str] | None = None,
    task: str | None = None,
    scores: Path | None = None,
    out: Path | None = None,
    figure: Path | None = None,
    force: bool = False,
    follow_links: bool = False,
    as_json: bool = False,
) -> None:
    """Compare codecs: rate-distortion curves per task, and BD-rates relative to an anchor codec.

    Args:
        anchor (CODEC): Anchor of the BD-rates: how many percent more bits (below 0: fewer) each
            other codec needs for the same quality. Default: only the curves.
        quality (NAME): score, loss, distortion, mse, cosine, cka, or a metric of SCORES; may be
            repeated. Default: score and loss.
        scores (SCORES): Scores of further metrics: what `cfqa eval DIR --out` wrote, .parquet.
        out (FILE): Write the points of the curves to this .csv file.
        figure (FILE): Draw the curves: .svg, .pdf or .png.
    """
    from cfqa_data.access.dataset import load
    from cfqa_data.eval import read_evaluation
    from cfqa_data.eval.curve_figure import draw_curves
    from cfqa_data.eval.curves import curves as compute_curves
    from cfqa_data.format.storage import atomic_path, write_csv

    check_new_file(out, (".csv",), force)
    check_new_file(figure, (".svg", ".pdf", ".png"), force)
    dataset = load(folder, task, follow_links=follow_links)
    evaluation = read_evaluation(dataset, scores) if scores else None
    result = compute_curves(dataset, quality or None, anchor=anchor, evaluation=evaluation)
    if out is not None:
        write_csv(out, result.points)
    if figure is not None:
        facts = {name: entry.facts for name, entry in dataset.manifest.tasks.items()}
        with atomic_path(figure) as partial:
            draw_curves(result, partial, facts, figure.suffix)
    answer(as_json, lambda: _data(result), lambda: _text(result))
    for what, path in (("Points", out), ("Figure", figure)):
        if path is not None and not as_json:
            print(f"{what}: {path}")


def _data(result: Curves) -> dict[str, Any]:
    return {
        "anchor": result.anchor,
        "points": result.points.to_pylist(),
        "bd_rates": result.bd_rates.to_pylist(),
    }


def _text(result: Curves) -> str:
    from cfqa_data.console.text import table_text

    if result.anchor is None:
        heads = ["task", "codec", "quality", "level", "parameter", "bits/point", "value"]
        rows = [
            [row["task"], row["codec"], row["quality"], str(row["level"])]
            + [_number(row[key]) for key in ("parameter", "bpfp", "value")]
            for row in result.points.to_pylist()
        ]
        return table_text([heads, *rows], left=3)
    heads = ["task", "quality", "codec", "BD-rate", "95% interval", "quality range", "points"]
    rows, notes = [], []
    for row in result.bd_rates.to_pylist():
        cells = ["-", "-", "-", "-"]
        if row["bd_rate"] is not None:
            low, high = ("?" if row[key] is None else f"{row[key]:+.1f}" for key in ("low", "high"))
            limits = f"{_number(row['from'])} to {_number(row['to'])}"
            points = f"{row['points']} and {row['anchor_points']}"
            cells = [f"{row['bd_rate']:+.1f}%", f"{low} to {high}", limits, points]
        else:
            notes.append(f"{row['task']}, {row['quality']}, {row['codec']}: {row['note']}")
        rows.append([row["task"], row["quality"], row["codec"], *cells])
    title = f"BD-rate relative to {result.anchor}: bits for the same quality (below 0: fewer)"
    return "\n".join([title, "", table_text([heads, *rows], left=3), *notes])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
