"""Compressing one group of sources with one codec, at all levels, and labelling what comes out."""

from __future__ import annotations

from typing import Any

import numpy as np

from cfqa_data.builders.pipeline.coding import code_ladder
from cfqa_data.builders.pipeline.label import baseline_values, score
from cfqa_data.builders.pipeline.plan import Item
from cfqa_data.builders.pipeline.tools import Tools
from cfqa_data.codes import write_codes
from cfqa_data.schema import label_schema
from cfqa_data.storage import write_table, write_tensors
from cfqa_data.tasks import FOLDS, get_task

__all__ = ["compress"]


def compress(tools: Tools, item: Item) -> None:
    """Write a group's bitstreams and stored codes, and last its label rows."""
    import pyarrow as pa

    task, group, layout, plan = item.task, item.group, tools.layout, tools.plan
    ladder, codec = tools.ladder(item), tools.codec(item.task, item.codec)
    originals = tools.originals(task, group)
    bitstreams, codes = code_ladder(codec, ladder.quantizer, originals, ladder.levels)
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
        bits = [8 * len(streams[index]) for streams in bitstreams]
        decoded = ladder.quantizer.dequantize(codes[index])
        rows += _rows(tools, item, index, originals[index], decoded, truth, bits)
    write_table(item.marker(layout), pa.Table.from_pylist(rows, schema=label_schema()))


def _rows(
    tools: Tools,
    item: Item,
    index: int,
    original: np.ndarray,
    decoded: np.ndarray,
    truth: np.ndarray,
    bits: list[int],
) -> list[dict[str, Any]]:
    """Label rows of one source: all levels are scored in one batch."""
    task, ladder = get_task(item.task), tools.ladder(item)
    position = tools.plan.members(item.group)[index]
    source_id = tools.group_ids(item.task, item.group)[index]
    references = tools.references(item.task, item.group)
    what = f"{source_id} by {item.codec}"
    scores, losses = score(tools.models.head(item.task), decoded, truth, what)
    values = baseline_values(tools.baselines, original, decoded)
    reference = references["score"][index]
    return [
        {
            "task": item.task,
            "source_id": source_id,
            "fold": position % FOLDS,
            "codec": item.codec,
            "level": level,
            "parameter_name": ladder.parameter_name,
            "parameter": float(parameter),
            "bits": bits[level],
            "bpfp": bits[level] / original.size,
            "score": float(scores[level]),
            "reference_score": reference,
            "distortion": task.distortion(float(scores[level]), reference),
            "loss": float(losses[level]),
            "reference_loss": references["loss"][index],
            **{name: float(value[level]) for name, value in values.items()},
            "array": tools.layout.relative(tools.layout.compressed(item.task, item.codec)),
            "index": position,
        }
        for level, parameter in enumerate(ladder.levels)
    ]
