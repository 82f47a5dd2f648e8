"""Build a toy dataset, and damage a copy of it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pipeline_toy import LAMBDAS, TEN_QPS, toy_recipe, write_models, write_networks

from cfqa_data.builders.pipeline import build
from cfqa_data.format.manifest import hash_file
from cfqa_data.format.schema import label_schema
from cfqa_data.format.storage import write_table
from cfqa_data.recipe.load import Recipe


def build_toy(folder: Path) -> Path:
    """Build a toy dataset in a folder, with two codecs for dpt, and return its path."""
    write_networks(folder)
    write_models(folder)
    learned = {"parameter_name": "lambda", "levels": list(LAMBDAS)}
    codecs = {
        "x265": TEN_QPS,
        "hyperprior_multi_task": learned | {"models": str(folder / "models.safetensors")},
    }
    data = toy_recipe(folder, codecs, sources_per_task=2, group_size=1).to_dict()
    for task in ("cls", "seg"):
        del data["tasks"][task]["codecs"]["hyperprior_multi_task"]
    return build(Recipe.from_dict(data), folder / "cfqa", workers=1)


def flip(path: Path, at: int | None = None) -> None:
    """Flip a bit of a byte, by default in the middle of the file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if at is None else at] ^= 4
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside").write_text("x")


def replace_by_link(path: Path) -> None:
    """Move the file out of the dataset, and replace it by a link."""
    root = next(p for p in path.parents if (p / "manifest.json").exists())
    away = root.parent / f"away-{path.name}"
    shutil.move(path, away)
    path.symlink_to(away)


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "flip": flip,
    "cut": cut,
    "missing": Path.unlink,
    "folder": replace_by_folder,
    "link": replace_by_link,
    "pipe": replace_by_pipe,
}

KINDS = {
    "card": "README.md",
    "labels": "labels/dpt.parquet",
    "originals table": "labels/originals.parquet",
    "previews": "previews/originals.parquet",
    "hero": "previews/hero.webp",
    "originals": "originals/seg-00001-of-00002.safetensors",
    "bitstreams": "bitstreams/cls-x265-00000-of-00002.safetensors",
    "learned bitstreams": "bitstreams/dpt-hyperprior_multi_task-00001-of-00002.safetensors",
    "truth": "truth/seg.safetensors",
    "metadata": "compressed/dpt/x265.zarr/zarr.json",
    "codes": "compressed/seg/x265.zarr/c/1/0/0/0/0/0",
}
"""Kind of file -> a file of the dataset."""


def rehash(root: Path) -> None:
    """Update sizes and hashes in the manifest, as somebody who edits files would."""
    path = root / "manifest.json"
    manifest = json.loads(path.read_text())
    for name, entry in manifest["files"].items():
        entry |= {"size": (root / name).stat().st_size, "sha256": hash_file(root / name)}
    path.write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")


def edit_manifest(root: Path, **changes: Any) -> None:
    path = root / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_labels(root: Path, task: str, edit: Callable[[list[dict[str, Any]]], None]) -> None:
    """Edit rows of the labels, and update the manifest."""
    path = root / "labels" / f"{task}.parquet"
    rows = pq.read_table(path).to_pylist()
    edit(rows)
    write_table(path, pa.Table.from_pylist(rows, schema=label_schema()))
    rehash(root)
