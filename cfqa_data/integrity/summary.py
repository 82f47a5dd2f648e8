"""Summarise a dataset folder, for `cfqa info` and the end of a build."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cfqa_data.access.dataset import Dataset, load
from cfqa_data.arrow import pa, pc
from cfqa_data.console.text import counted, printable, size_text, table_text, wrapped
from cfqa_data.format.facts import Score, TaskEntry
from cfqa_data.format.layout import NAMES, Layout
from cfqa_data.format.manifest import Manifest, manifest_text
from cfqa_data.integrity.health import (
    LEAST_CHANGING,
    LEAST_MONOTONE,
    LEAST_SPAN,
    health,
    health_cells,
)

__all__ = [
    "build_text",
    "float32_size",
    "imported_text",
    "info_text",
    "light_files",
    "score_text",
    "summarise",
]


def summarise(path: str | Path, *, follow_links: bool = False) -> dict[str, Any]:
    """Return the properties of a dataset, as JSON values.

    Args:
        path: Dataset folder or repo, as for :func:`cfqa_data.load`. Only the manifest and the label
            tables are read.
        follow_links: Follow symbolic links that lead out of the folder.

    Returns:
        ``path``, ``name``, ``format``, ``summary``, ``tier``, ``tasks`` (per task: sources,
        features, shape, smallest and largest number of tokens, title, score, loss, and the number
        of levels of each codec), ``codecs``, ``sizes`` in bytes (of each subfolder, of the
        ``light`` and ``full`` tier, and of all features as plain float32), ``versions`` and
        ``health`` (rows of `cfqa_data.integrity.health.health`, computed from the labels).
        ``sizes.full`` is None for a light folder; ``sizes.light`` is None if a feature has no
        bitstream.

    Raises:
        FormatError: If the path is not a dataset folder, or its build is not finished.
        HubError: If the repo does not exist, may not be read, or cannot be reached.
    """
    dataset = load(path, follow_links=follow_links)
    manifest = dataset.manifest
    rows = dataset.labels
    labels = {name: rows.filter(pc.equal(rows["task"], name)) for name in manifest.tasks}
    tasks = {}
    plain = 0
    for name, entry in manifest.tasks.items():
        plain += float32_size(entry, labels[name])
        tasks[name] = {
            "sources": len(entry.sources),
            "features": entry.rows,
            "shape": list(entry.shape),
            "tokens": _token_range(entry, labels[name]),
            "title": entry.facts.title,
            "score": score_text(entry.facts.score),
            "loss": entry.facts.loss.name if entry.facts.loss else None,
            "codecs": {name: len(codec.levels) for name, codec in entry.codecs.items()},
        }
    sizes: dict[str, int | None] = {}
    for name, file in manifest.files.items():
        folder = name.split("/")[0] if "/" in name else "card"
        sizes[folder] = (sizes.get(folder) or 0) + file["size"]
    total = sum(size or 0 for size in sizes.values()) + _manifest_size(dataset)
    light = manifest.files if manifest.tier == "light" else light_files(manifest, labels)
    left_out = () if light is None else manifest.files.keys() - light.keys()
    spared = sum(manifest.files[name]["size"] for name in left_out)
    sizes["light"] = None if light is None else total - spared
    sizes["full"] = total if manifest.tier == "full" else None
    sizes["float32"] = plain
    return {
        "path": dataset.location,
        "name": manifest.name,
        "format": manifest.format,
        "summary": manifest.summary,
        "tier": manifest.tier,
        "tasks": tasks,
        "codecs": list(dict.fromkeys(dataset.labels["codec"].to_pylist())),
        "sizes": sizes,
        "versions": dict(manifest.versions),
        "health": health(dataset.labels),
    }


def float32_size(entry: TaskEntry, labels: pa.Table) -> int:
    """Return the size in bytes of a task's original and compressed features as plain float32.

    Args:
        entry: Manifest entry of the task.
        labels: Label rows of the task.
    """
    n, c, t, d = entry.shape
    tokens = t * (len(entry.sources) + labels.num_rows)
    if entry.varying_tokens:
        counts = labels["tokens"].to_pylist()
        of_source = dict(zip(labels["source_id"].to_pylist(), counts, strict=True))
        tokens = sum(counts) + sum(of_source.values())
    return 4 * n * c * d * tokens


def _token_range(entry: TaskEntry, labels: pa.Table) -> list[int]:
    """Return the smallest and largest number of tokens of a task's features."""
    if not (entry.varying_tokens and labels.num_rows):
        return [entry.shape[2]] * 2
    limits = pc.min_max(labels["tokens"])
    return [limits["min"].as_py(), limits["max"].as_py()]


def light_files(manifest: Manifest, labels: Mapping[str, pa.Table]) -> dict[str, Any] | None:
    """Return the files of the light tier: all except arrays that can be decoded from bitstreams.

    Args:
        manifest: Manifest of a folder of either tier.
        labels: Label rows by task.

    Returns:
        The entries of these files in the manifest; None if a feature has no bitstream.
    """
    arrays = []
    for task, entry in manifest.tasks.items():
        for codec in entry.codecs.values():
            if codec.facts.on == "inputs":  # its bitstreams do not suffice without the backbone
                continue
            streams = NAMES.shards(entry.shards, NAMES.bitstreams, task, codec.name)
            if not manifest.files.keys() >= set(streams):
                return None
            bits = labels[task].filter(pc.equal(labels[task]["codec"], codec.name))["bits"]
            if codec.facts.bits == "bitstream" and bits.null_count:
                return None
            arrays.append(f"{NAMES.compressed(task, codec.name).as_posix()}/")
    return {k: v for k, v in manifest.files.items() if not k.startswith(tuple(arrays))}


def _manifest_size(dataset: Dataset) -> int:
    if dataset.path is None:
        return len(manifest_text(dataset.manifest).encode())
    return Layout(dataset.path).manifest.stat().st_size


def info_text(summary: dict[str, Any]) -> str:
    """Return a summary as the text that `cfqa info` prints."""
    sizes = summary["sizes"]
    tasks = [["task", "sources", "compressed", "feature (N, C, T, D)"]]
    for name, task in summary["tasks"].items():
        n, c, t, d = task["shape"]
        least, most = task["tokens"]
        tokens = f"{least} to {most}" if least < most else t
        shape = f"({n}, {c}, {tokens}, {d})"
        tasks.append([name, str(task["sources"]), str(task["features"]), shape])
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    return "\n".join(
        [
            wrapped(f"{summary['name']}: {summary['summary']}"),
            f"{summary['path']}, {summary['tier']} tier",
            "",
            table_text(tasks),
            "",
            *_codec_lines(summary),
            *_size_lines(sizes),
            wrapped(f"built with {versions}"),
            "",
            _health_table(summary["health"]),
        ]
    )


def _codec_lines(summary: dict[str, Any]) -> list[str]:
    """Return the lines on codecs; for format 2 also on the score of each task."""
    if summary["format"] == 1:
        return [f"codecs    {', '.join(summary['codecs'])}"]
    lines = []
    for name, task in summary["tasks"].items():
        codecs = ", ".join(f"{c} ({counted(n, 'levels')})" for c, n in task["codecs"].items())
        lines.append(wrapped(f"{name}: {task['title']}; {task['score']}; {codecs}"))
    return [*lines, ""]


def score_text(score: Score) -> str:
    """Return the description of a score, such as "RMSE (lower is better, m)"."""
    better = "lower" if score.lower_better else "higher"
    return f"{score.name} ({better} is better{f', {score.unit}' if score.unit else ''})"


def build_text(summary: dict[str, Any], folder: Path, plugins: Sequence[str] = ()) -> str:
    """Return the text that `cfqa build` prints at its end.

    Args:
        summary: Summary of the finished folder.
        folder: Path of the folder as the user wrote it, for the suggested commands.
        plugins: `module:Class` of codecs that are required for decoding and are not installed.
    """
    features = sum(task["features"] for task in summary["tasks"].values())
    sources = sum(task["sources"] for task in summary["tasks"].values())
    quoted = shlex.quote(str(folder))
    first = next(iter(summary["tasks"]))
    argument = f", plugins={list(plugins)!r}" if plugins else ""
    options = "".join(f" --plugin {shlex.quote(plugin)}" for plugin in plugins)
    python = f"import cfqa_data; print(cfqa_data.load({str(folder)!r}, {first!r}{argument})[0])"
    return "\n".join(
        [
            f"{summary['path']}: {sources} originals, {features} compressed features with labels",
            *_size_lines(summary["sizes"]),
            "",
            "Try next:",
            f"  cfqa info {quoted}",
            f"  cfqa eval {quoted}{options}",
            f"  python -c {shlex.quote(python)}",
        ]
    )


def imported_text(summary: dict[str, Any], folder: Path) -> str:
    """Return the text that `cfqa import-release` prints at its end.

    Args:
        summary: Summary of the finished folder, with the facts of the import as ``import``.
        folder: Path of the folder as the user wrote it.
    """
    facts = summary["import"]
    lines = [build_text(summary, folder), ""]
    if facts["borrowed_references"]:
        lines.append(
            f"No score of the originals of {', '.join(facts['borrowed_references'])} in the logs: "
            "that of the least distorted version is used."
        )
    if facts["other_mse_than_logged"]:
        lines.append(f"MSE differs from the logs: {len(facts['other_mse_than_logged'])} features")
        lines += [f"  {line}" for line in facts["other_mse_than_logged"]]
    lines.append(f"Files placed: {facts['placed']}; not placed: {len(facts['unplaced'])}")
    lines += [f"  {printable(file['path'] + ': ' + file['why'])}" for file in facts["unplaced"]]
    return "\n".join(lines)


def _size_lines(sizes: dict[str, int | None]) -> list[str]:
    plain = sizes["float32"] or 0
    lines = []
    for tier in ("full", "light"):
        size = sizes[tier]
        if size:
            times = f"1/{plain / size:.1f} of" if size <= plain else f"{size / plain:.1f} x"
            share = f"{times} {size_text(plain)} as float32" if plain else "of no features"
            lines.append(f"{tier:<9} {size_text(size)}, {share}")
    return lines


def _health_table(rows: list[dict[str, Any]]) -> str:
    """Return the label sanity checks, with their thresholds as a second heading."""
    heads = ["task", "codec", "changing", "best", "worst", "rate falls", "MSE rises", "health"]
    thresholds = ["", "", f">= {LEAST_CHANGING:.0%}", "distortion", f">= {LEAST_SPAN:g} x best"]
    thresholds += [f">= {LEAST_MONOTONE:.0%}"] * 2 + [""]
    lines = [[*health_cells(row), "ok" if row["ok"] else "weak"] for row in rows]
    table = table_text([heads, thresholds, *lines], left=2, heads=2)
    if all(row["ok"] for row in rows):
        return table
    return f"{table}\nweak: a figure does not meet the threshold in its heading"
