"""Write the dataset card: a README with a YAML head for the Hub and `load_dataset`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from cfqa_data.arrow import pa, pc
from cfqa_data.card.head import head_text
from cfqa_data.card.wording import collected, meanings, plain, wording
from cfqa_data.console.text import percent, size_text
from cfqa_data.format import schema
from cfqa_data.format.layout import ALL, NAMES, Layout
from cfqa_data.format.manifest import Manifest
from cfqa_data.format.previews import column_meaning, read_previews
from cfqa_data.format.storage import read_labels, read_table, write_text
from cfqa_data.integrity.health import health_cells
from cfqa_data.integrity.summary import float32_size, score_text
from cfqa_data.recipe.load import list_recipes, load_recipe

__all__ = ["card_text", "write_card"]

FOLDERS = {
    "labels": "labels",
    "originals": "original features",
    "previews": "originals with pictures, for viewers",
    "bitstreams": "bitstreams",
    "tables": "tables that decoders need beside the bitstreams",
    "truth": "truth for the heads",
    "compressed": "codes of the compressed features",
}
"""Folder of a dataset -> its content."""

LICENCE = ("license", "license_name", "license_link")
"""Keys of the YAML head; the last two are used if the first is "other"."""


def write_card(root: Path, manifest: Manifest) -> Path:
    """Write the card of a folder with complete tables and arrays; return its path.

    Args:
        root: Path of the folder.
        manifest: The future manifest of the folder, whose list of files may be incomplete.

    Raises:
        FormatError: If a table is missing or invalid.
    """
    layout = Layout(root)
    version = manifest.format
    labels = {task: read_labels(layout.labels(task), format=version) for task in manifest.tasks}
    columns, nullable = schema.originals_schema(version), schema.NULLABLE[version]
    originals = read_table(layout.originals_table, columns, nullable=nullable)
    files = [p for folder in FOLDERS for p in (layout.root / folder).rglob("*") if p.is_file()]
    sizes = {layout.relative(path): path.stat().st_size for path in files}
    shown: list[str] = []
    if layout.previews.exists():
        data = layout.previews.read_bytes()
        shown, _ = read_previews(layout.previews, data, manifest.tasks)
    write_text(layout.card, card_text(manifest, labels, originals, sizes, shown))
    return layout.card


def card_text(
    manifest: Manifest,
    labels: Mapping[str, pa.Table],
    originals: pa.Table,
    sizes: Mapping[str, int],
    shown: Sequence[str] = (),
    repo: str = "",
    tag: str = "",
) -> str:
    """Return the text of a card.

    Args:
        manifest: Manifest of the dataset, whose list of files may be incomplete.
        labels: Label tables by task.
        originals: Table of originals.
        sizes: Path of a file -> size in bytes, of all files except the card and the manifest.
        shown: Image columns of the table of previews; empty if there is none.
        repo: Repo id on the Hub, "org/name"; empty for the card of a local folder.
        tag: Tag of this version in the repo.
    """
    texts = wording(manifest)
    codecs = [codec for entry in manifest.tasks.values() for codec in entry.codecs.values()]
    counts = sorted({len(codec.levels) for codec in codecs})
    licence = {key: texts.pop(key) for key in LICENCE if key in texts}
    head = head_text(manifest, labels, originals, sizes, shown, licence)
    features = _feature_table(manifest) if manifest.format > 1 else ""
    texts["bibtex"] = ""
    where = f'; "{manifest.name}" is the path of this folder'
    hub, use = "", {"path": manifest.name, "revision": "", "where": where}
    if repo:
        use = {"path": repo, "revision": f', revision="{tag}"', "where": ""}
        hub = _template("hub_section.md").substitute(
            tag=tag,
            name=manifest.name,
            tier=manifest.tier,
            files=f"{len(sizes) + 3:,}",  # with the card, the manifest and the Croissant file
            size=size_text(sum(sizes.values())),
            again=_again(manifest),
        )
        community = f"https://huggingface.co/datasets/{repo}/discussions"
        texts["contact"] = f"For questions and errors, use its [Community tab]({community})."
        texts["bibtex"] = _bibtex(manifest, repo, tag)
    several = len(labels) > 1 and ALL not in labels  # a task may have this name
    of_all = f", and `{ALL}`, the labels of all tasks" if several else ""
    first = next(iter(labels))
    inputs, personal = collected(manifest)
    return _template("dataset_card.md").substitute(
        texts | use,
        configs=f"Configs: one per task, the first (`{first}`) by default; `originals`{of_all}.",
        hub=f"\n{hub}" if hub else "",
        yaml=head,
        pictures=_pictures(sizes, shown),
        summary=plain(manifest.summary.rstrip(".")),
        tier=manifest.tier,
        originals=f"{originals.num_rows:,}",
        compressed=f"{sum(table.num_rows for table in labels.values()):,}",
        codecs=len({codec.name for codec in codecs}),
        levels=" to ".join(map(str, dict.fromkeys((counts[0], counts[-1])))),
        worst=f"level {counts[0] - 1}" if len(counts) == 1 else "the last",
        tasks=_task_table(manifest),
        origin="\n\n".join(filter(None, [features, _origin(manifest)])),
        inputs=inputs,
        personal=personal,
        codecs_table=_codec_table(manifest, labels),
        labels_table=_label_table(labels),
        health=_health_table(manifest),
        sizes=_size_table(manifest, labels, sizes),
        columns=_column_table(schema.LABEL_COLUMNS, manifest),
        originals_columns=_column_table(schema.ORIGINAL_COLUMNS, manifest, shown),
        versions=", ".join(f"{name} {v}" for name, v in sorted(manifest.versions.items())),
    )


def _bibtex(manifest: Manifest, repo: str, tag: str) -> str:
    """Return the BibTeX entry of a published dataset."""
    lines = {
        "title": f"CFQA {manifest.name}, {manifest.tier} tier",
        "howpublished": f"\\url{{https://huggingface.co/datasets/{repo}}}",
        "note": f"Version {tag}",
    }
    inside = ",\n".join(f"  {key:<12} = {{{text}}}" for key, text in lines.items())
    return f"\n@misc{{{repo.replace('/', '-')},\n{inside}\n}}\n"


def _pictures(sizes: Mapping[str, int], shown: Sequence[str]) -> str:
    """Return Markdown with the overview image and its caption; empty if there is no image."""
    path = NAMES.hero.as_posix()
    if path not in sizes:
        return ""
    names = ", ".join(f"`{name}`" for name in shown if column_meaning(name)[0] == "image")
    return (
        "![Inputs, ground truths, and predictions from the original and compressed features]"
        f"({path})\n\n"
        f"*One source per row; columns as in the table `originals`: {names}.*\n"
    )


def _template(name: str) -> Template:
    return Template(resources.files("cfqa_data.card").joinpath(name).read_text("utf-8"))


def _again(manifest: Manifest) -> str:
    """Return how to build the dataset again."""
    if manifest.name in list_recipes() and load_recipe(manifest.name).to_dict() == manifest.recipe:
        tier = "" if manifest.tier == "full" else f" --tier {manifest.tier}"
        return (
            f"`cfqa build {manifest.name} --out cfqa{tier}`, with cfqa-data "
            f"{manifest.versions.get('cfqa-data', '')}. With the software\n"
            "versions in the manifest, the bytes are the same on the same kind of processor; on\n"
            "another, features and labels may differ slightly."
        )
    return (
        "`manifest.json` contains the complete recipe and the software versions that the bytes\n"
        "depend on."
    )


def _task_table(manifest: Manifest) -> str:
    rows: list[list[Any]] = []
    for name, entry in manifest.tasks.items():
        facts = entry.facts
        blocks = ", ".join(layer.name.removeprefix("block ") for layer in entry.layers)
        shape = " x ".join(map(str, entry.shape))
        loss = facts.loss.name if facts.loss else "-"
        score = score_text(facts.score)
        rows.append([name, plain(facts.title), len(entry.sources), shape, blocks, score, loss])
    heads = ["task", "title", "originals", "N x C x T x D", "blocks", "score", "loss"]
    if manifest.format > 1:  # the layers are in the table of features
        rows, heads = [[*row[:4], *row[5:]] for row in rows], [*heads[:4], *heads[5:]]
    return _table(heads, rows)


def _feature_table(manifest: Manifest) -> str:
    """Return a table of the axes of each task's features, for cards of format 2."""
    rows = []
    for name, entry in manifest.tasks.items():
        layers = [
            layer.name + (f" ({layer.norm} the norm)" if layer.norm else "")
            for layer in entry.layers
        ]
        tokens = f"up to {entry.shape[2]}" if entry.varying_tokens else f"{entry.shape[2]}"
        rows.append(
            [
                name,
                ", ".join(entry.views) or "-",
                ", ".join(layers) or "-",
                tokens,
                entry.prefix_tokens,
                " x ".join(map(str, entry.grid)) if entry.grid else "-",
                len(set(entry.groups)) if entry.groups else "-",
            ]
        )
    heads = ["task", "views", "layers", "tokens", "prefix tokens", "grid", "groups"]
    return _table(heads, rows)


def _origin(manifest: Manifest) -> str:
    backbone = manifest.recipe.get("backbone")
    spec = backbone if isinstance(backbone, Mapping) else {}
    weights = f"The weights are those of `{spec.get('weights')}`." if "weights" in spec else ""
    text = spec.get("origin") or weights or spec.get("class")
    return f"**Backbone.** {text}" if text else ""


def _codec_table(manifest: Manifest, labels: Mapping[str, pa.Table]) -> str:
    rows = []
    for task, entry in manifest.tasks.items():
        for name, codec in entry.codecs.items():
            quantizer = codec.quantizer.to_dict() if codec.quantizer else None
            levels = ", ".join(f"{level:g}" for level in codec.levels)
            kind = f"{quantizer['kind']}, {quantizer['bits']} bits" if quantizer else "none"
            facts = codec.facts
            about = [plain(facts.title), facts.on, facts.bits] if manifest.format > 1 else []
            rates = [_mean_rate(labels[task], name, at) for at in (0, len(codec.levels) - 1)]
            rate = " to ".join(rates)
            rows.append([task, name, *about, kind, facts.parameter.name, levels, rate])
    about = ["title", "on", "bits"] if manifest.format > 1 else []
    return _table(
        ["task", "codec", *about, "quantiser", "parameter", "levels, best first", "bits per point"],
        rows,
    )


def _label_table(labels: Mapping[str, pa.Table]) -> str:
    """Return a table of the shares of zero and negative distortions, and the label ceiling."""
    rows = []
    for task, table in labels.items():
        values, ceiling = table["distortion"].to_numpy(), _ceiling(table)
        shares = [percent(float(mask.mean()), 1) for mask in (values == 0, values < 0)]
        ceiling_text = "-" if ceiling is None else f"{ceiling:.3f}"
        rows.append([task, f"{len(values):,}", *shares, ceiling_text])
    return _table(["task", "labels", "unchanged", "improved", "ceiling"], rows)


def _mean_rate(labels: pa.Table, codec: str, level: int) -> str:
    """Return the mean rate of a level in bits per point; a dash if it is unknown."""
    rows = pc.and_(pc.equal(labels["codec"], codec), pc.equal(labels["level"], level))
    mean = float(np.mean(labels.filter(rows)["bpfp"].to_numpy()))
    return f"{mean:.3g}" if np.isfinite(mean) else "-"


def _ceiling(labels: pa.Table) -> float | None:
    """Return the mean SROCC of a task's loss and distortion over its sources, as `cfqa info`."""
    sources = np.unique(labels["source_id"].to_numpy(zero_copy_only=False), return_inverse=True)[1]
    coefficients = []
    for source in range(int(sources.max()) + 1):
        distortion, loss = (labels[n].to_numpy()[sources == source] for n in ("distortion", "loss"))
        if np.isnan(loss).any():
            return None
        if np.ptp(distortion):
            ranks = _ranks(loss), _ranks(distortion)
            coefficients.append(np.corrcoef(*ranks)[0, 1] if np.ptp(loss) else 0.0)
    return float(np.mean(coefficients)) if coefficients else None


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks from 1; equal values get their mean rank."""
    _, indices, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((counts.cumsum() - (counts - 1) / 2)[indices])


def _health_table(manifest: Manifest) -> str:
    rows = [[*health_cells(row), "yes" if row["ok"] else "no"] for row in manifest.health]
    heads = ["task", "codec", "changing", "mean distortion, best level", "worst level"]
    return _table([*heads, "rate falls", "MSE rises", "ok"], rows)


def _size_table(
    manifest: Manifest, labels: Mapping[str, pa.Table], sizes: Mapping[str, int]
) -> str:
    """Return a table of the size of each folder, and of the features as plain float32 files."""
    rows: list[list[Any]] = []
    for folder, meaning in FOLDERS.items():
        files = [size for name, size in sizes.items() if name.startswith(f"{folder}/")]
        if files:
            rows.append([f"`{folder}/`", meaning, _megabytes(sum(files)), len(files)])
    plain = sum(float32_size(entry, labels[name]) for name, entry in manifest.tasks.items())
    rows.append(["", "the same features as float32 arrays", _megabytes(plain), ""])
    return _table(["folder", "holds", "size", "files"], rows)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _column_table(
    columns: Mapping[str, tuple[str, str]], manifest: Manifest, shown: Sequence[str] = ()
) -> str:
    rows = [[f"`{name}`", *about] for name, about in columns.items()]
    if manifest.format > 1:
        other = meanings()
        rows = [[f"`{n}`", kind, other.get(n, text)] for n, (kind, text) in columns.items()]
        rows += [[f"`{name}`", *about] for name, about in schema.NEW_COLUMNS.items()]
    pictures = [[f"`{name}`", *column_meaning(name)] for name in shown]
    return _table(["column", "type", "meaning"], pictures + rows)


def _table(heads: list[str], rows: list[list[Any]]) -> str:
    """Return a Markdown table; vertical bars in cells are escaped."""
    lines = [[str(cell).replace("|", r"\|") for cell in line] for line in (heads, *rows)]
    lines.insert(1, ["---"] * len(heads))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
