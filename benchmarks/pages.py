"""Fill the tables of the pages about levels and metrics from datasets and their scores.

    cfqa build mini --out data/mini
    cfqa eval data/mini --metric all --out mini.parquet
    python benchmarks/pages.py --mini data/mini mini.parquet --wide data/wide wide.parquet

A table stands in its page between `<!-- table NAME -->` and `<!-- end -->`. Tables of a dataset
that is not given stay as they are; without scores, only those of its labels are made.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

import cfqa_data
from cfqa_data.eval import read_evaluation
from cfqa_data.eval.label_figures import describe_labels
from cfqa_data.eval.results import Evaluation
from cfqa_data.integrity.health import health, health_cells

DOCS = Path(__file__).parents[1] / "docs"
BASELINES = ("mse", "cosine", "cosine_class", "cka", "gap_mean")


def markdown(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def levels(dataset: Any) -> str:
    """Return the levels of every codec, and what the best and the worst cost."""
    labels, rows = dataset.labels, []
    for task, entry in dataset.manifest.tasks.items():
        for name, codec in entry.codecs.items():
            chosen = labels.filter(
                pc.and_(pc.equal(labels["task"], task), pc.equal(labels["codec"], name))
            )
            level, rate = chosen["level"].to_numpy(), chosen["bpfp"].to_numpy()
            best, worst = (rate[level == end].mean() for end in (0, level.max()))
            values = ", ".join(f"{value:g}" for value in codec.levels)
            parameter = codec.facts.parameter.name
            rows.append([task, name, f"{parameter} {values}", f"{best:.2g} to {worst:.2g}"])
    return markdown(["task", "codec", "levels, best first", "bits per point"], rows)


def label_health(dataset: Any) -> str:
    """Return what `cfqa info` tells of the labels of every codec."""
    negative = {
        (row["task"], row["codec"]): f"{row['negative']:.1%}"
        for row in describe_labels(dataset.labels)["labels"]
    }
    rows = [
        [*health_cells(row), "yes" if row["ok"] else "no", negative[row["task"], row["codec"]]]
        for row in health(dataset.labels)
    ]
    heads = ["changing", "best distortion", "worst", "rate falls", "MSE rises", "ok", "negative"]
    return markdown(["task", "codec", *heads], rows)


def ceilings(dataset: Any) -> str:
    """Return ceiling and share of negative labels of every task."""
    described, labels, rows = describe_labels(dataset.labels), dataset.labels, []
    for task, ceiling in described["ceilings"].items():
        distortion = labels.filter(pc.equal(labels["task"], task))["distortion"].to_numpy()
        rows.append([task, len(distortion), f"{ceiling:.3f}", f"{(distortion < 0).mean():.1%}"])
    return markdown(["task", "features", "ceiling", "negative"], rows)


def oriented(found: Evaluation) -> dict[str, dict[str, float | None]]:
    """Return the mean SROCC of each metric by task, and over all, positive if it is right."""
    signs = {metric.name: 1 if metric.lower_better else -1 for metric in found.metrics}
    table: dict[str, dict[str, float | None]] = {name: {} for name in signs}
    across = [(row, "all") for row in found.across_tasks.to_pylist()]
    for row, task in [(row, row["task"]) for row in found.across_codecs.to_pylist()] + across:
        if row["metric"] in signs:
            value = row["srocc"]
            sign = signs[row["metric"]]
            table[row["metric"]][task] = None if value is None else sign * value
    return table


def scores(found: Evaluation) -> str:
    """Return the mean SROCC of every metric, the best over all tasks first."""
    table = oriented(found)
    tasks = [*dict.fromkeys(found.across_codecs["task"].to_pylist()), "all"]
    order = sorted(table, key=lambda name: -np.mean([v or 0 for v in table[name].values()]))
    cells = [[_shown(table[name].get(task)) for task in tasks] for name in order]
    rows = [[f"`{name}`", *row] for name, row in zip(order, cells, strict=True)]
    return markdown(["metric", *tasks], rows)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def apart(found: Evaluation, names: Collection[str]) -> str:
    """Return how far a dataset tells metrics apart, by task: spread, and significant pairs."""
    table = {name: row for name, row in oriented(found).items() if name in names}
    rows = []
    for task in [*dict.fromkeys(found.across_codecs["task"].to_pylist()), "all"]:
        values = np.array([v for row in table.values() if (v := row.get(task)) is not None])
        pairs = [
            row
            for row in found.comparisons.to_pylist()
            if (row["task"], row["codec"], row["figure"]) == (task, "all", "srocc")
            and {row["metric"], row["other"]} <= set(names)
        ]
        far = sum(row["p_holm"] is not None and row["p_holm"] < 0.05 for row in pairs)
        spread = values.max() - np.median(values)
        row = [task, f"{values.max():.3f}", f"{np.median(values):.3f}", f"{spread:.3f}"]
        rows.append([*row, f"{far} of {len(pairs)} ({far / len(pairs):.0%})"])
    return markdown(["task", "best SROCC", "median", "spread", "pairs that differ"], rows)


def by_codec(found: Evaluation) -> str:
    """Return PLCC and SROCC, signs kept, of the metrics that `cfqa eval` takes by itself."""
    names = {"mse": "MSE", "cosine": "cosine", "cka": "CKA"}
    cells: dict[tuple[str, str], dict[str, list[str]]] = {}
    across = [row | {"codec": "all"} for row in found.across_codecs.to_pylist()]
    for row in [*found.correlations.to_pylist(), *across]:
        figures = [f"{row[figure] or 0:.4f}" for figure in ("plcc", "srocc")]
        cells.setdefault((row["codec"], row["task"]), {})[row["metric"]] = figures
    codecs = list(dict.fromkeys(codec for codec, _ in cells))
    rows = [
        [codec, task, *(figure for name in names for figure in row[name])]
        for (codec, task), row in sorted(cells.items(), key=lambda item: codecs.index(item[0][0]))
    ]
    heads = [f"{name} {figure}" for name in names.values() for figure in ("PLCC", "SROCC")]
    return markdown(["codec", "task", *heads], rows)


def baselines(found: Evaluation) -> str:
    """Return the mean SROCC of some metrics, and what the trained one gains over `cosine`."""
    table, rows = oriented(found), []
    shown = [name for name in BASELINES if name in table]
    for task in [*dict.fromkeys(found.across_codecs["task"].to_pylist()), "all"]:
        gain = next(
            (
                row
                for row in found.comparisons.to_pylist()
                if (row["task"], row["codec"], row["figure"]) == (task, "all", "srocc")
                and {row["metric"], row["other"]} == {"gap_mean", "cosine"}
            ),
            None,
        )
        told = "-"
        if gain is not None and gain["difference"] is not None:
            ends = [gain[end] for end in ("difference", "low", "high")]
            if gain["metric"] != "gap_mean":
                ends = [-ends[0], -ends[2], -ends[1]]
            told = "{:.4f} [{:.4f}, {:.4f}]".format(*ends)
        rows.append([task, *(_shown(table[name].get(task)) for name in shown), told])
    heads = [f"`{name}`" for name in shown]
    return markdown(["task", *heads, "`gap_mean` above `cosine`"], rows)


def tables(
    name: str, dataset: Any, found: Evaluation | None, names: Collection[str]
) -> Iterator[tuple[str, str]]:
    """Yield the tables of a dataset by their names; `names` are metrics that all datasets have."""
    yield f"{name} levels", levels(dataset)
    yield f"{name} health", label_health(dataset)
    yield f"{name} ceilings", ceilings(dataset)
    if found is None:
        return
    yield f"{name} scores", scores(found)
    yield f"{name} baselines", baselines(found)
    if name == "mini":
        yield "mini codecs", by_codec(found)
    yield f"{name} apart", apart(found, names)


def main() -> None:
    """Fill the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("mini", "wide"):
        parser.add_argument(f"--{name}", nargs="+", metavar="FOLDER or SCORES")
    parser.add_argument("--docs", type=Path, default=DOCS, help="the folder of the pages")
    given = parser.parse_args()
    datasets: dict[str, tuple[Any, Evaluation | None]] = {}
    for name in ("mini", "wide"):
        if paths := getattr(given, name):
            dataset = cfqa_data.load(paths[0])
            read = read_evaluation(dataset, paths[1]) if len(paths) > 1 else None
            datasets[name] = dataset, read
    known = [{metric.name for metric in found.metrics} for _, found in datasets.values() if found]
    names = set.intersection(*known) if known else set()
    found = {
        key: table for name, both in datasets.items() for key, table in tables(name, *both, names)
    }
    for page in sorted(given.docs.glob("*.md")):
        text = page.read_text()
        filled = re.sub(
            r"(<!-- table (.*?) -->\n).*?(<!-- end -->)",
            lambda match: (
                f"{match[1]}{found[match[2]]}\n{match[3]}" if match[2] in found else match[0]
            ),
            text,
            flags=re.DOTALL,
        )
        page.write_text(filled)


if __name__ == "__main__":
    main()
