"""Write the report of a calibration: Markdown, CSV, TOML for the recipe, and a figure."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cfqa_data.codecs import list_codecs
from cfqa_data.format.format_1 import LAYERS, TASKS, VIEWS
from cfqa_data.format.storage import write_text

__all__ = ["write_report"]

_MARKS = "os^vDPX*"


def write_report(folder: Path) -> list[Path]:
    """Write the report of all `{task}-{codec}.json` files in a folder; return its paths."""
    paths = sorted(folder.glob("*-*.json"))
    results = sorted(
        (json.loads(path.read_text(encoding="utf-8")) for path in paths),
        key=lambda r: (_rank(r["task"], TASKS), _rank(r["codec"], list_codecs())),
    )
    files = {
        "calibration.md": _markdown(results),
        "calibration.csv": _csv(results),
        "ladders.toml": "\n".join(_toml(result) for result in results),
    }
    for name, text in files.items():
        write_text(folder / name, text)
    _figure(results, folder / "calibration.png")
    return [*(folder / name for name in files), folder / "calibration.png"]


def _rank(name: str, known: Iterable[str]) -> tuple[int, str]:
    """Return the sort key that puts names in the order of `known`, and others after them."""
    names = list(known)
    return (names.index(name) if name in names else len(names)), name


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
    """Return a sentence on the mean rate and size, if all built-in tasks are calibrated."""
    by_task = {
        task: [_best(r)["figures"]["bpfp"] for r in results if r["task"] == task] for task in TASKS
    }
    if not all(by_task.values()):
        return "Sizes: not all tasks are calibrated yet."
    weights = {task: len(VIEWS[task]) * LAYERS[task] for task in TASKS}
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
    """Return a codec's table of a recipe; numbers, strings and lists of JSON are valid TOML."""
    best = _best(result)
    values = {
        "parameter_name": result["parameter_name"],
        "levels": [json.loads(f"{row['parameter']:g}") for row in best["levels"]],
        "quantizer": best["quantizer"],
        "class": result.get("class"),
        "models": result["models"],
    }
    lines = [f"[tasks.{result['task']}.codecs.{result['codec']}]"]
    for key, value in values.items():
        if isinstance(value, dict):
            inner = ", ".join(f"{name} = {json.dumps(part)}" for name, part in value.items())
            lines.append(f"{key} = {{ {inner} }}")
        elif value:
            lines.append(f"{key} = {json.dumps(value)}")
    return "\n".join(lines) + "\n"


def _figure(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Plot distortion (top) and loss (bottom) against the rate, with a column per task."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    tasks = list(dict.fromkeys(result["task"] for result in results))
    codecs = sorted({r["codec"] for r in results}, key=lambda c: _rank(c, list_codecs()))
    figure = Figure(figsize=(1 + 3.5 * len(tasks), 6), layout="constrained")
    axes = figure.subplots(2, len(tasks), sharex="col", squeeze=False)
    lines: dict[str, Any] = {}
    for column, task in enumerate(tasks):
        own = [result for result in results if result["task"] == task]
        title, score, loss = _labels(own[0])
        axes[0, column].set_title(title)
        axes[0, column].set_ylabel(f"distortion: {score}")
        axes[1, column].set_ylabel(f"added {loss}")
        axes[1, column].set_xlabel("bits per feature point")
        for result in own:
            codec, rows = result["codec"], _best(result)["levels"]
            for row, key in enumerate(("distortion", "loss")):
                (lines[codec],) = axes[row, column].plot(
                    [level["bpfp"] for level in rows],
                    [level[key] for level in rows],
                    marker=_MARKS[codecs.index(codec) % len(_MARKS)],
                    color=f"C{codecs.index(codec)}",
                    markersize=4,
                )
        for axis in axes[:, column]:
            axis.set_xscale("log")
            axis.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}"))
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.grid(alpha=0.3, which="both")
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=110)


def _labels(result: dict[str, Any]) -> tuple[str, str, str]:
    """Return the names of a result's task, its score with the unit, and its loss."""
    facts = result["facts"]
    score, loss = facts["score"], facts["loss"] or {"name": ""}
    unit = f" ({score['unit']})" if score["unit"] else ""
    return facts["title"], f"{score['name']}{unit}", loss["name"]
