"""Write a small dataset folder with the real writers, random features and no encoder.

Each level of a codec adds noise that grows with the level and depends on the codec. The labels
follow the noise, with a factor per source, so that correlations are meaningful.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from mock_codec import MockCodec

from cfqa_data.card.write import write_card
from cfqa_data.format.codes import create_codes_array, find_centres, write_codes
from cfqa_data.format.facts import TaskFacts
from cfqa_data.format.format_1 import LAYERS, LEVELS, TASKS, read_tasks
from cfqa_data.format.invariants import FOLDS
from cfqa_data.format.layout import Layout
from cfqa_data.format.manifest import (
    Manifest,
    hash_file,
    package_versions,
    write_manifest,
)
from cfqa_data.format.packing import pack
from cfqa_data.format.resources import resolve
from cfqa_data.format.schema import label_schema, originals_schema
from cfqa_data.format.storage import write_table, write_tensors
from cfqa_data.integrity.health import health
from cfqa_data.recipe.load import CodecSpec, Recipe

__all__ = ["TOY_SHAPES", "toy_recipe", "write_mock_dataset"]

TOY_SHAPES = {"cls": (1, 1, 9, 16), "seg": (2, 1, 9, 16), "dpt": (2, 4, 9, 16)}
"""Task -> shape (N, C, T, D)."""

NOISE = {
    "x265": 0.05,
    "vvenc": 0.04,
    "hyperprior_multi_task": 0.08,
    "hyperprior_task_specific": 0.06,
}
"""Codec -> standard deviation of the noise that each level adds."""


def toy_recipe(sources: int = 3, **changes: Any) -> Recipe:
    """Return a recipe of all tasks and codecs that requires no files."""
    return Recipe.from_dict(toy_recipe_dict(sources) | changes)


def toy_recipe_dict(sources: int = 3) -> dict[str, Any]:
    """Return the toy recipe as a dict, for tests that modify it."""
    tasks = {}
    for seed, name in enumerate(TASKS):
        layers = LAYERS[name]
        uniform = {"kind": "uniform", "bits": 10, "lo": [-8.0] * layers, "hi": [8.0] * layers}
        centers = np.sinh(np.linspace(-3, 3, 256)).astype(np.float32).tolist()
        kmeans = {"kind": "kmeans", "bits": 8, "centers": [centers] * layers}
        qp = {"parameter_name": "qp", "levels": list(range(4, 44, 4)), "quantizer": uniform}
        lambdas = [round(0.2 / 2**level, 9) for level in range(LEVELS)]
        learned = {"parameter_name": "lambda", "levels": lambdas, "quantizer": kmeans}
        tasks[name] = {
            "source": {"kind": "scenes", "seed": seed},
            "blocks": list(range(layers)),
            "head": f"head_{name}.safetensors",
            "codecs": {
                "x265": qp,
                "vvenc": qp | {"options": {"preset": "faster"}},
                "hyperprior_multi_task": learned,
                "hyperprior_task_specific": learned,
            },
        }
    return {
        "name": "toy",
        "summary": "invented features for tests",
        "sources_per_task": sources,
        "group_size": 2,
        "backbone": {"weights": "backbone.safetensors", "num_heads": 2},
        "tasks": tasks,
    }


def write_mock_dataset(
    root: Path,
    *,
    sources: int = 3,
    seed: int = 0,
    tier: str = "full",
    recipe: Recipe | None = None,
    weak: Collection[tuple[str, str]] = (),
) -> Path:
    """Write a dataset folder of all tasks, codecs and levels, and return its path.

    Folders are cached: the same arguments are written once per process, and copied afterwards.

    Args:
        root: Path of the folder.
        sources: Number of originals per task.
        seed: Random seed of the features and the noise.
        tier: Tier, "light" or "full".
        recipe: Recipe similar to :func:`toy_recipe`. Fewer tasks or codecs make a smaller folder.
        weak: (task, codec) pairs whose labels do not vary, so that their label health is weak.
    """
    recipe = recipe or toy_recipe(sources)
    weak = frozenset(weak)
    key = json.dumps([sources, seed, tier, recipe.to_dict(), sorted(weak), TOY_SHAPES])
    cached = _cache() / hashlib.sha256(key.encode()).hexdigest()[:16]
    if not cached.exists():
        partial = cached.with_suffix(".partial")
        _write(partial, recipe, sources, seed, tier, weak)
        partial.rename(cached)
    return shutil.copytree(cached, root, dirs_exist_ok=True)


@functools.cache
def _cache() -> Path:
    """Return the folder of this process's cache, which is removed at exit."""
    folder = tempfile.mkdtemp(prefix="cfqa-mock-", dir=os.environ.get("PYTEST_DEBUG_TEMPROOT"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _write(
    root: Path,
    recipe: Recipe,
    sources: int,
    seed: int,
    tier: str,
    weak: Collection[tuple[str, str]],
) -> None:
    layout = Layout(root)
    rng = np.random.default_rng(seed)
    tables, entries, originals = [], {}, []
    for name in recipe.tasks:
        task, shape = TASKS[name], TOY_SHAPES[name]
        ids = [f"{name}-{index:03d}" for index in range(sources)]
        features = rng.standard_normal((sources, *shape)).astype(np.float32)
        entries[name] = {"shape": list(shape), "sources": ids}
        groups = _groups(sources, recipe.group_size)
        for shard, members in enumerate(groups):
            path = layout.originals(name, shard, len(groups))
            write_tensors(path, {ids[i]: features[i] for i in members})
            originals += [_original_row(task, i, ids[i], layout.relative(path)) for i in members]
        truth = task.truth
        assert truth is not None
        truths = {ids[i]: np.full((1,) * truth.axes, i, truth.dtype) for i in range(sources)}
        write_tensors(layout.truth(name), truths)
        rows: list[dict[str, Any]] = []
        for ladder in recipe.tasks[name].codecs.values():
            harmful = float((name, ladder.codec) not in weak)
            rows += _compress(layout, task, ladder, ids, features, groups, tier, rng, harmful)
        rows.sort(key=lambda row: row["index"])  # by source, then codec and level
        tables.append(pa.Table.from_pylist(rows, schema=label_schema()))
        write_table(layout.labels(name), tables[-1])
    write_table(layout.originals_table, pa.Table.from_pylist(originals, schema=originals_schema()))
    manifest = Manifest(
        name=recipe.name,
        tier=tier,
        recipe=recipe.to_dict(),
        tasks=read_tasks(recipe.to_dict(), entries),
        versions=package_versions(),
        weights={
            ladder.models: hash_file(resolve(ladder.models))
            for task in recipe.tasks.values()
            for ladder in task.codecs.values()
            if ladder.models
        },
        health=tuple(health(pa.concat_tables(tables))),
    )
    write_card(layout.root, manifest)
    write_manifest(layout.root, manifest)


def _groups(sources: int, size: int) -> list[range]:
    return [range(start, min(start + size, sources)) for start in range(0, sources, size)]


def _reference(task: TaskFacts, index: int) -> float:
    return {"cls": 1.0, "seg": 0.9 - index / 100, "dpt": 0.2 + index / 100}[task.name]


def _original_row(task: TaskFacts, index: int, source_id: str, array: str) -> dict[str, Any]:
    return {
        "task": task.name,
        "source_id": source_id,
        "fold": index % FOLDS,
        "reference_score": _reference(task, index),
        "reference_loss": 0.1,
        "array": array,
        "key": source_id,
    }


def _compress(
    layout: Layout,
    task: TaskFacts,
    ladder: CodecSpec,
    ids: list[str],
    features: np.ndarray,
    groups: list[range],
    tier: str,
    rng: np.random.Generator,
    harmful: float,
) -> list[dict[str, Any]]:
    """Write the bitstreams and codes of a codec; return its label rows.

    ``harmful`` is a factor of the distortion.
    """
    quantizer = ladder.quantizer
    shape = features.shape[1:]
    codec = MockCodec(quantizer.dtype)
    noise = rng.standard_normal((len(ids), 1, *shape))  # a common direction per source,
    noise = noise + 0.3 * rng.standard_normal((len(ids), LEVELS, *shape))  # with some deviation
    noise *= NOISE[ladder.codec] * np.arange(1, LEVELS + 1)[:, None, None, None, None]
    severity = np.exp(0.1 * rng.standard_normal((len(ids), LEVELS)))
    codes = quantizer.quantize(features[:, None] + noise)
    streams = {
        f"{ids[i]}/{level}": _padded(codec.encode(pack(codes[i, level])), level)
        for i in range(len(ids))
        for level in range(LEVELS)
    }
    for shard, members in enumerate(groups):
        keys = {ids[i] for i in members}
        chosen = {key: stream for key, stream in streams.items() if key.split("/")[0] in keys}
        write_tensors(layout.bitstreams(task.name, ladder.codec, shard, len(groups)), chosen)
    array = layout.compressed(task.name, ladder.codec)
    if tier == "full":
        create_codes_array(
            array,
            sources=len(ids),
            levels=LEVELS,
            shape=shape,
            quantizer=quantizer,
            centres=find_centres(quantizer.quantize(features)),
            source_ids=ids,
        )
        for index in range(len(ids)):
            write_codes(array, index, codes[index])
    decoded = quantizer.dequantize(codes)
    rows = []
    for index, source_id in enumerate(ids):
        for level in range(LEVELS):
            x, y = features[index].astype(np.float64), decoded[index, level].astype(np.float64)
            mse = float(np.square(x - y).mean())
            harm = harmful * mse * float(severity[index, level]) * (1 + index / 7)
            reference = _reference(task, index)
            score = reference + (harm if task.score.lower_better else -harm)
            if task.name == "cls":
                score = round(reference + 20 * harm)
            bits = 8 * streams[f"{source_id}/{level}"].size
            rows.append(
                {
                    "task": task.name,
                    "source_id": source_id,
                    "fold": index % FOLDS,
                    "codec": ladder.codec,
                    "level": level,
                    "parameter_name": ladder.parameter_name,
                    "parameter": ladder.levels[level],
                    "bits": bits,
                    "bpfp": bits / x.size,
                    "score": score,
                    "reference_score": reference,
                    "distortion": task.distortion(score, reference),
                    "loss": 0.1 + harm,
                    "reference_loss": 0.1,
                    "mse": mse,
                    "cosine": _cosine(x, y),
                    "cka": _cka(x, y),
                    "array": layout.relative(array),
                    "index": index,
                }
            )
    return rows


def _padded(stream: bytes, level: int) -> np.ndarray:
    """Pad a bitstream with zeros, so that the rate falls with the level."""
    size = max(256 * (18 - level), len(stream))
    return np.frombuffer(stream.ljust(size, b"\0"), np.uint8)


def _cosine(x: np.ndarray, y: np.ndarray) -> float:
    norms = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
    return float(((x * y).sum(-1) / norms).mean())


def _cka(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(-2, keepdims=True), y - y.mean(-2, keepdims=True)

    def inner(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.square(np.swapaxes(a, -1, -2) @ b).sum((-1, -2))

    return float((inner(x, y) / np.sqrt(inner(x, x) * inner(y, y))).mean())
