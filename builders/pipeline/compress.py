"""Compressing one group of sources with one codec, at all levels, and labelling what comes out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cfqa_data.builders.pipeline.coding import code_ladder
from cfqa_data.builders.pipeline.kept import KeptStreams
from cfqa_data.builders.pipeline.label import baseline_values, score
from cfqa_data.builders.pipeline.plan import Item
from cfqa_data.builders.pipeline.tools import Tools
from cfqa_data.format.codes import write_codes
from cfqa_data.format.invariants import bits_of, fold_of, rate_of
from cfqa_data.format.layout import Layout
from cfqa_data.format.schema import label_schema
from cfqa_data.format.storage import write_table, write_tensors
from cfqa_data.format.tasks import get_task

__all__ = ["batch_of_levels", "compress", "kept_streams", "label_rows"]

BATCH_POINTS = 1 << 24
"""Feature points that are labelled at once; their metrics take some 30 bytes each."""


def batch_of_levels(points: int, levels: int) -> int:
    """Return how many levels of a feature of so many points are labelled at once."""
    return min(levels, max(1, BATCH_POINTS // points))


def compress(tools: Tools, item: Item) -> None:
    """Write a group's bitstreams and stored codes, and last its label rows."""
    import pyarrow as pa

    task, group, layout, plan = item.task, item.group, tools.layout, tools.plan
    ladder, codec = tools.ladder(item), tools.codec(item.task, item.codec)
    originals = tools.originals(task, group)
    there = kept_streams(layout, item)
    # Those that a repair took from the dataset are there for any codec.
    kept = there if codec.slow or there.folder.is_dir() else None
    bitstreams, codes = code_ladder(codec, ladder.quantizer, originals, ladder.levels, kept)
    ids = tools.group_ids(task, group)
    write_tensors(
        layout.bitstreams(task, item.codec, group, plan.groups),
        {
            f"{source_id}/{level}": np.frombuffer(streams[index], np.uint8)
            for index, source_id in enumerate(ids)
            for level, streams in enumerate(bitstreams)
        },
    )
    rows: list[dict[str, Any]] = []
    for index, (position, truth) in enumerate(
        zip(plan.members(group), tools.truths(task, group), strict=True)
    ):
        if plan.tier == "full":
            write_codes(layout.compressed(task, item.codec), position, codes[index])
        bits = [bits_of(len(streams[index])) for streams in bitstreams]
        rows += _rows(tools, item, index, originals[index], codes[index], truth, bits)
    write_table(item.marker(layout), pa.Table.from_pylist(rows, schema=label_schema()))
    if kept:
        kept.remove()


def kept_streams(layout: Layout, item: Item) -> KeptStreams:
    """Return where an item's bitstreams are taken from, if they are there."""
    return KeptStreams(layout.work / "streams" / item.marker(layout).stem)


def _rows(
    tools: Tools,
    item: Item,
    index: int,
    original: np.ndarray,
    codes: np.ndarray,
    truth: np.ndarray,
    bits: list[int],
) -> list[dict[str, Any]]:
    """Label rows of one source, from its decoded codes (L, N, C, T, D)."""
    ladder = tools.ladder(item)
    what = f"{tools.group_ids(item.task, item.group)[index]} by {item.codec}"
    parts = []
    step = batch_of_levels(original.size, len(codes))
    for first in range(0, len(codes), step):
        decoded = ladder.quantizer.dequantize(codes[first : first + step])
        scores, losses = score(tools.models.task(item.task), decoded, truth, what)
        values = baseline_values(tools.baselines, original, decoded)
        parts.append({"score": scores, "loss": losses, **values})
    told = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return label_rows(tools, item, index, original.size, bits, told)


def label_rows(
    tools: Tools,
    item: Item,
    index: int,
    points: int,
    bits: Sequence[int | None],
    told: Mapping[str, np.ndarray],
) -> list[dict[str, Any]]:
    """Return the label rows of one source by one codec, best level first.

    Args:
        tools: of the build.
        item: of the codec and the source's group.
        index: of the source in the group.
        points: N*C*T*D.
        bits: of the bitstream of each level; None where there is none.
        told: score, loss and baseline metrics -> float64 (L,).
    """
    task, ladder = get_task(item.task), tools.ladder(item)
    position = tools.plan.members(item.group)[index]
    references = tools.references(item.task, item.group)
    reference = references["score"][index]
    return [
        {
            "task": item.task,
            "source_id": tools.group_ids(item.task, item.group)[index],
            "fold": fold_of(position),
            "codec": item.codec,
            "level": level,
            "parameter_name": ladder.parameter_name,
            "parameter": float(parameter),
            "bits": size,
            "bpfp": math.nan if size is None else rate_of(size, points),
            "reference_score": reference,
            "distortion": task.distortion(float(told["score"][level]), reference),
            "reference_loss": references["loss"][index],
            **{name: float(series[level]) for name, series in told.items()},
            "array": tools.layout.relative(tools.layout.compressed(item.task, item.codec)),
            "index": position,
        }
        for level, (parameter, size) in enumerate(zip(ladder.levels, bits, strict=True))
    ]
