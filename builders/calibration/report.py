"""The calibration as people read it: Markdown, CSV, TOML for the recipe, and a figure."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cfqa_data.format.storage import write_text
from cfqa_data.format.tasks import CODECS, TASKS

__all__ = ["write_report"]

_MARKS = "os^vDPX*"


def write_report(folder: Path) -> list[Path]:
    """Write the report from every `{task}-{codec}.json` in a folder; return its files."""
    results = [
        json.loads(path.read_text())
        for task in TASKS
        for codec in CODECS
        if (path := folder / f"{task}-{codec}.json").exists()
    ]
    files = {
        "calibration.md": _markdown(results),
        "calibration.csv": _csv(results),
        "ladders.toml": "\n".join(_toml(result) for result in results),
    }
    for name, text in files.items():
        write_text(folder / name, text)
    _figure(results, folder / "calibration.png")
    return [*(folder / name for name in files), folder / "calibration.png"]


def _best(result: dict[str, Any]) -> dict[str, Any]:
    return dict(result["tried"][result["best"]])


def _markdown(results: Sequence[dict[str, Any]]) -> str:
    lines = [
        "# Chosen ladders",
        "",
        "| task | codec | range | levels | bpfp best-worst (mean) | distortion best-worst | reach |"
        " changing | rate falls | MSE rises | ok |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        best = _best(result)
        rows, figures = best["levels"], best["figures"]
        scale = f"{best['scale']:g}x" if best["scale"] else "k-means"
        levels = " ".join(f"{row['parameter']:g}" for row in rows)
        lines.append(
            f"| {result['task']} | {result['codec']} | {scale} | {levels} "
            f"| {rows[0]['bpfp']:.3f}-{rows[-1]['bpfp']:.3f} ({figures['bpfp']:.3f}) "
            f"| {figures['distortion_best']:.3g}-{figures['distortion_worst']:.3g} "
            f"| {figures['reach']:.2f} | {figures['changing']:.2f} "
            f"| {figures['rate_falls']:.2f} | {figures['mse_rises']:.2f} "
            f"| {'yes' if figures['ok'] else 'no'} |"
        )
    lines += ["", "# Ranges tried", ""]
    lines += ["| task | codec | range | levels | bpfp | reach | changing | distinct | ok |"]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    for result in results:
        for tried in result["tried"]:
            figures, rows = tried["figures"], tried["levels"]
            scale = f"{tried['scale']:g}x" if tried["scale"] else "k-means"
            lines.append(
                f"| {result['task']} | {result['codec']} | {scale} "
                f"| {rows[0]['parameter']:g}-{rows[-1]['parameter']:g} | {figures['bpfp']:.3f} "
                f"| {figures['reach']:.2f} | {figures['changing']:.2f} "
                f"| {figures['distinct']:.1f} | {'yes' if figures['ok'] else 'no'} |"
            )
    lines += ["", _sizes(results), ""]
    return "\n".join(lines)


def _sizes(results: Sequence[dict[str, Any]]) -> str:
    """What the bitstreams would take of the float32 size, with the originals, if all are there."""
    by_task = {
        task: [_best(r)["figures"]["bpfp"] for r in results if r["task"] == task] for task in TASKS
    }
    if not all(by_task.values()):
        return "Sizes: not all tasks are calibrated yet."
    weights = {name: task.views * task.layers for name, task in TASKS.items()}
    total = sum(weights.values())
    bpfp = sum(weights[t] / total * sum(v) / len(v) for t, v in by_task.items())
    versions = 10 * len(by_task["cls"])
    share = (32 + versions * bpfp) / (32 * (1 + versions))
    return (
        f"Mean rate over tasks (by size), codecs and levels: {bpfp:.3f} bits per feature point. "
        f"Originals and bitstreams are then 1/{1 / share:.0f} of all features as float32."
    )


def _csv(results: Sequence[dict[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = ("parameter", "bpfp", "mse", "distortion", "loss", "harmed")
    writer.writerow(["task", "codec", "scale", "kind", *names])
    for result in results:
        for tried in result["tried"]:
            for kind in ("grid", "levels"):
                for row in tried[kind]:
                    scale = "" if tried["scale"] is None else f"{tried['scale']:g}"
                    numbers = [f"{row[name]:.6g}" for name in names]
                    writer.writerow([result["task"], result["codec"], scale, kind, *numbers])
    return out.getvalue()


def _toml(result: dict[str, Any]) -> str:
    best = _best(result)
    quantizer = best["quantizer"]
    levels = ", ".join(f"{row['parameter']:g}" for row in best["levels"])
    if quantizer["kind"] == "uniform":
        table = f'kind = "uniform", bits = {quantizer["bits"]}, lo = {quantizer["lo"]}, hi = '
        table += f"{quantizer['hi']}"
    else:
        table = 'kind = "kmeans", bits = 8, '
        table += 'centers = "package://cfqa_data.codecs/weights/kmeans.safetensors"'
    lines = [
        f"[tasks.{result['task']}.codecs.{result['codec']}]",
        f'parameter_name = "{result["parameter_name"]}"',
        f"levels = [{levels}]",
        f"quantizer = {{ {table} }}",
    ]
    if result["models"]:
        lines.append(f'models = "{result["models"]}"')
    return "\n".join(lines) + "\n"


def _figure(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Distortion (above) and loss (below) against the rate, one column per calibrated task."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    tasks = [task for name, task in TASKS.items() if any(r["task"] == name for r in results)]
    figure = Figure(figsize=(1 + 3.5 * len(tasks), 6), layout="constrained")
    axes = figure.subplots(2, len(tasks), sharex="col", squeeze=False)
    lines: dict[str, Any] = {}
    for column, task in enumerate(tasks):
        unit = f" ({task.score_unit})" if task.score_unit else ""
        axes[0, column].set_title(task.title)
        axes[0, column].set_ylabel(f"distortion: {task.score_name}{unit}")
        axes[1, column].set_ylabel(f"added {task.loss_name}")
        axes[1, column].set_xlabel("bits per feature point")
        for result in (r for r in results if r["task"] == task.name):
            codec, rows = result["codec"], _best(result)["levels"]
            place = CODECS.index(codec)
            for row, key in enumerate(("distortion", "loss")):
                (lines[codec],) = axes[row, column].plot(
                    [level["bpfp"] for level in rows],
                    [level[key] for level in rows],
                    marker=_MARKS[place % len(_MARKS)],
                    color=f"C{place}",
                    markersize=4,
                )
        for axis in axes[:, column]:
            axis.set_xscale("log")
            axis.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}"))
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.grid(alpha=0.3, which="both")
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=110)
