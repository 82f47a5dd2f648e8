"""From sources to original features, and from those to the centre that codes are counted from."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from cfqa_data.builders.pipeline.label import score
from cfqa_data.builders.pipeline.plan import Item
from cfqa_data.builders.pipeline.tools import Tools
from cfqa_data.builders.pipeline.workspace import write_json
from cfqa_data.errors import BuildError
from cfqa_data.format.codes import create_codes_array
from cfqa_data.format.quantizers import Quantizer
from cfqa_data.format.storage import write_tensors

__all__ = ["centre", "extract", "median_codes"]


def extract(tools: Tools, item: Item) -> None:
    """Write a group's original features, then their scores and losses."""
    task, group = item.task, item.group
    source = tools.models.source(task)
    features: dict[str, np.ndarray] = {}
    for source_id in tools.group_ids(task, group):
        features[source_id] = tools.models.features(task, source.sample(source_id).inputs)
    write_tensors(tools.layout.originals(task, group, tools.plan.groups), features)
    scored = [
        score(tools.models.task(task), feature[None], truth, f"the original {source_id}")
        for (source_id, feature), truth in zip(
            features.items(), tools.truths(task, group), strict=True
        )
    ]
    write_json(
        item.marker(tools.layout),
        {
            "score": [float(scores[0]) for scores, _ in scored],
            "loss": [float(losses[0]) for _, losses in scored],
        },
    )


def centre(tools: Tools, item: Item) -> None:
    """Find the centres of all ladders of a task; make the arrays of the full tier."""
    task, plan = item.task, tools.plan
    centres: dict[str, list[int]] = {}
    known: list[tuple[Quantizer, list[int]]] = []
    for codec, ladder in tools.spec(task).ladders.items():
        for quantizer, found in known:
            if quantizer == ladder.quantizer:
                centres[codec] = found
        if codec not in centres:
            groups = (tools.originals(task, group) for group in range(plan.groups))
            centres[codec] = median_codes(ladder.quantizer, groups)
            known.append((ladder.quantizer, centres[codec]))
    if plan.tier == "full":
        ids = tools.source_ids(task)
        shape = tools.originals(task, 0).shape[1:]
        for codec, ladder in tools.spec(task).ladders.items():
            create_codes_array(
                tools.layout.compressed(task, codec),
                sources=len(ids),
                levels=len(ladder.levels),
                shape=shape,
                quantizer=ladder.quantizer,
                centres=centres[codec],
                source_ids=ids,
            )
    write_json(item.marker(tools.layout), centres)


def median_codes(quantizer: Quantizer, groups: Iterable[np.ndarray]) -> list[int]:
    """Return the lower median code per layer of originals, from their histograms.

    Args:
        quantizer: of the ladder.
        groups: iterable of float32 (S, N, C, T, D).
    """
    size = 1 << quantizer.bits
    counts = np.zeros((quantizer.layers, size), np.int64)
    for group in groups:
        codes = quantizer.quantize(group)
        if int(codes.max(initial=0)) >= size:  # only of a quantiser that lets values wrap around
            raise BuildError(
                f"quantiser {quantizer.to_dict()['kind']}: a feature lies outside its range, and "
                f"wraps around to code {int(codes.max())}; widen the range, or use uniform"
            )
        for layer in range(quantizer.layers):
            counts[layer] += np.bincount(codes[..., layer, :, :].ravel(), minlength=size)
    half = (counts.sum(axis=1, keepdims=True) + 1) // 2
    return [int(code) for code in (counts.cumsum(axis=1) >= half).argmax(axis=1)]
