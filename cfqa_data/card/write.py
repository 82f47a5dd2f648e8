"""The dataset card: a README whose YAML head tells `load_dataset` what there is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from cfqa_data.console.text import percent
from cfqa_data.format.layout import Layout
from cfqa_data.format.manifest import Manifest
from cfqa_data.format.schema import (
    LABEL_COLUMNS,
    ORIGINAL_COLUMNS,
    originals_schema,
)
from cfqa_data.format.storage import read_labels, read_table, write_text

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["BUILT", "Terms", "write_card"]


@dataclass(frozen=True)
class Terms:
    """What a card says of a dataset as a whole.

    Attributes:
        licence: identifier of its licence, as dataset hubs write it.
        licence_text: the section on it.
        standing: how its numbers stand to those of the published benchmark.
        choice: how its levels were chosen, and what its encoders are.
    """

    licence: str
    licence_text: str
    standing: str
    choice: str


BUILT = Terms(
    licence="cc-by-4.0",
    licence_text="The data is licensed under CC BY 4.0.",
    standing=(
        "Its numbers describe this dataset and its encoders; they are not\nthose of the published "
        "benchmark (Gao et al., arXiv 2506.07412), whose protocol it follows."
    ),
    choice=(
        "Ranges and levels are chosen per task and codec so that the\nharm runs from little to "
        "nearly useless. x265 and VVenC are encoders of HEVC and VVC, not the reference\nsoftware; "
        "the version of each is in `manifest.json`."
    ),
)
"""Terms of a dataset that `cfqa build` makes."""


def write_card(root: Path, manifest: Manifest, terms: Terms = BUILT) -> Path:
    """Write the card of a folder whose tables and arrays are there; return its path.

    Args:
        root: the folder.
        manifest: what will be its manifest; its files are not looked at.
        terms: what it says of the dataset as a whole.

    Raises:
        FormatError: a table is missing or is not one of this format.
    """
    layout = Layout(root)
    labels = {task: read_labels(layout.labels(task)) for task in manifest.tasks}
    originals = read_table(layout.originals_table, originals_schema())
    template = resources.files("cfqa_data.card").joinpath("dataset_card.md").read_text("utf-8")
    text = Template(template).substitute(
        yaml="\n".join(_yaml(_head(layout, labels, originals, terms))),
        name=manifest.name,
        summary=manifest.summary,
        tier=manifest.tier,
        standing=terms.standing,
        choice=terms.choice,
        licence=terms.licence_text,
        originals=f"{originals.num_rows:,}",
        compressed=f"{sum(table.num_rows for table in labels.values()):,}",
        codecs=len({codec for task in manifest.tasks.values() for codec in task.codecs}),
        levels=max(len(c.levels) for task in manifest.tasks.values() for c in task.codecs.values()),
        tasks=_task_table(manifest),
        origin=_origin(manifest),
        codecs_table=_codec_table(manifest),
        health=_health_table(manifest),
        sizes=_size_table(layout, manifest, labels),
        columns=_column_table(LABEL_COLUMNS),
        originals_columns=_column_table(ORIGINAL_COLUMNS),
        versions=", ".join(f"{name} {v}" for name, v in sorted(manifest.versions.items())),
    )
    write_text(layout.card, text)
    return layout.card


def _head(
    layout: Layout, labels: Mapping[str, pa.Table], originals: pa.Table, terms: Terms
) -> dict[str, Any]:
    """Return the card's metadata: configs by name, and their exact columns and row counts."""
    per_task = {task: {layout.labels(task): table} for task, table in labels.items()}
    everything = {path: table for files in per_task.values() for path, table in files.items()}
    originals_files = {layout.originals_table: originals}
    configs = {"default": everything} | per_task | {"originals": originals_files}
    return {
        "license": terms.licence,
        "pretty_name": "Compressed Feature Quality Assessment",
        "tags": ["feature-compression", "quality-assessment", "benchmark"],
        "configs": [
            {"config_name": name}
            | ({"default": True} if name == "default" else {})
            | {"data_files": [{"split": "test", "path": [layout.relative(f) for f in files]}]}
            for name, files in configs.items()
        ],
        "dataset_info": [
            {"config_name": name} | _dataset_info(files) for name, files in configs.items()
        ],
    }


def _dataset_info(files: Mapping[Path, pa.Table]) -> dict[str, Any]:
    """Return the columns and sizes of one config; `datasets` refuses another number of rows."""
    tables = list(files.values())
    size = sum(table.nbytes for table in tables)
    rows = sum(table.num_rows for table in tables)
    return {
        "features": [{"name": f.name, "dtype": _dtype(f)} for f in tables[0].schema],
        "splits": [{"name": "test", "num_bytes": size, "num_examples": rows}],
        "download_size": sum(path.stat().st_size for path in files),
        "dataset_size": size,
    }


def _dtype(column: pa.Field) -> str:
    return {"double": "float64"}.get(str(column.type), str(column.type))


def _yaml(value: Any, indent: str = "") -> list[str]:
    """Return tables, lists and scalars as lines of block YAML; scalars are JSON, which is YAML."""
    lines = []
    if isinstance(value, Mapping):
        for key, item in value.items():
            if isinstance(item, Mapping | list):
                lines += [f"{indent}{key}:", *_yaml(item, indent)]
            else:
                lines.append(f"{indent}{key}: {json.dumps(item)}")
        return lines
    for item in value:
        if isinstance(item, Mapping):
            first, *rest = _yaml(item, indent + "  ")
            lines += [f"{indent}- {first.lstrip()}", *rest]
        else:
            lines.append(f"{indent}- {json.dumps(item)}")
    return lines


def _task_table(manifest: Manifest) -> str:
    rows = []
    for name, entry in manifest.tasks.items():
        facts = entry.facts
        better = "lower" if facts.score.lower_better else "higher"
        unit = f", {facts.score.unit}" if facts.score.unit else ""
        score = f"{facts.score.name} ({better} is better{unit})"
        blocks = ", ".join(layer.name.removeprefix("block ") for layer in entry.layers)
        shape = " x ".join(map(str, entry.shape))
        loss = facts.loss.name if facts.loss else ""
        rows.append([name, facts.title, len(entry.sources), shape, blocks, score, loss])
    heads = ["task", "", "originals", "N x C x T x D", "blocks", "score", "loss beside it"]
    return _table(heads, rows)


def _origin(manifest: Manifest) -> str:
    backbone = manifest.recipe.get("backbone", {})
    weights = f"The weights are those of `{backbone.get('weights')}`."
    return f"**Backbone.** {backbone.get('origin') or weights}"


def _codec_table(manifest: Manifest) -> str:
    rows = []
    for task, entry in manifest.tasks.items():
        for name, codec in entry.codecs.items():
            quantizer = codec.quantizer.to_dict() if codec.quantizer else None
            levels = ", ".join(f"{level:g}" for level in codec.levels)
            kind = f"{quantizer['kind']}, {quantizer['bits']} bits" if quantizer else "none"
            rows.append([task, name, kind, codec.facts.parameter.name, levels])
    return _table(["task", "codec", "quantiser", "parameter", "levels, best first"], rows)


def _health_table(manifest: Manifest) -> str:
    rows = [
        [
            row["task"],
            row["codec"],
            f"{row['changing']:.0%}",
            f"{row['distortion_best']:.4g}",
            f"{row['distortion_worst']:.4g}",
            percent(row["rate_falls"], 1),
            percent(row["mse_rises"], 1),
            "yes" if row["ok"] else "no",
        ]
        for row in manifest.health
    ]
    heads = ["task", "codec", "changing", "mean distortion, best level", "worst level"]
    return _table([*heads, "rate falls", "MSE rises", "ok"], rows)


def _size_table(layout: Layout, manifest: Manifest, labels: Mapping[str, pa.Table]) -> str:
    """Return the size of each part, and of the same features as plain float32 files."""
    parts = {
        "labels": "labels",
        "originals": "original features",
        "bitstreams": "bitstreams",
        "truth": "truth for the heads",
        "compressed": "codes of the compressed features",
    }
    rows = []
    for folder, meaning in parts.items():
        files = [p.stat().st_size for p in (layout.root / folder).rglob("*") if p.is_file()]
        if files:
            rows.append([f"`{folder}/`", meaning, _megabytes(sum(files)), len(files)])
    plain = 0
    for name, entry in manifest.tasks.items():
        n, c, t, d = entry.shape
        plain += 4 * n * c * t * d * (labels[name].num_rows + len(entry.sources))
    rows.append(["", "the same features as float32 arrays", _megabytes(plain), ""])
    return _table(["folder", "holds", "size", "files"], rows)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _column_table(columns: Mapping[str, tuple[str, str]]) -> str:
    return _table(
        ["column", "type", "meaning"], [[f"`{n}`", *about] for n, about in columns.items()]
    )


def _table(heads: list[str], rows: list[list[Any]]) -> str:
    """Return a Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
