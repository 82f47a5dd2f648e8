"""The stage that compresses shards of sources with each codec at all levels, and labels them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cfqa_data.arrow import pa
from cfqa_data.builders.pipeline.coding import Coded, StreamCache, code
from cfqa_data.builders.pipeline.label import label_values
from cfqa_data.builders.pipeline.plan import Item
from cfqa_data.builders.pipeline.select import BuildStage
from cfqa_data.errors import BuildError
from cfqa_data.format.codes import shard_name, write_codes
from cfqa_data.format.schema import label_rows, label_schema
from cfqa_data.format.storage import write_table, write_tensors

__all__ = ["FEATURE_SECONDS", "LABEL_SECONDS", "Compress"]

LABEL_SECONDS = 0.3
"""Core-seconds per million feature points for the head, the metrics and storage."""

FEATURE_SECONDS = 0.0015
"""Core-seconds of overhead per compressed feature, independent of its size."""

MIN_SIZE_RATIO = {"full": 1 / 10, "light": 1 / 40}
"""Tier -> lower bound of the finished folder's size, relative to all features as float32."""


class Compress(BuildStage):
    """Stage that compresses each shard of sources with each codec, and labels the result."""

    name, unit = "compress", "features"

    def items(self) -> list[Item]:
        tasks = self.plan.recipe.tasks
        items = [
            item
            for task, spec in tasks.items()
            for codec in spec.codecs
            for item in self.per_shard(task, codec)
        ]
        return sorted(items, key=self.effort, reverse=True)

    def effort(self, item: Item) -> float:
        """Return an estimate of an item's seconds; the longest items run first."""
        try:
            points = self.context.entry(item.task).points
        except OSError:  # the prepare stage has not run yet: the shape is unknown
            points = 1_000_000 * len(self.plan.recipe.tasks[item.task].blocks)
        cost = self.context.codec_spec(item).registered.target.cost
        return self.cost(item) * ((cost + LABEL_SECONDS) * points / 1e6 + FEATURE_SECONDS)

    def cost(self, item: Item) -> int:
        levels = len(self.context.codec_spec(item).levels)
        return len(self.plan.members(item.task, item.shard)) * levels

    def streams(self, item: Item) -> Path:
        """Return the path of a shard's bitstreams."""
        shards = self.plan.shards(item.task)
        return self.layout.bitstreams(item.task, item.codec, item.shard, shards)

    def outputs(self, item: Item) -> tuple[Path, ...]:
        array = self.layout.compressed(item.task, item.codec)
        members = self.plan.members(item.task, item.shard)
        arrays = [array / shard_name(position) for position in members]
        return (self.streams(item), *arrays, item.result_path(self.layout))

    def check(self, todo: Sequence[Item]) -> None:
        """Check that the free disk space suffices, by an estimate from the size of the originals.

        Raises:
            BuildError: If there is not enough space.
        """
        needed = 0.0
        for item in todo:
            originals = self.context.originals_path(item.task, item.shard).stat().st_size
            levels = len(self.context.codec_spec(item).levels)
            needed += originals * levels * MIN_SIZE_RATIO[self.plan.tier]
        free = shutil.disk_usage(self.layout.root).free
        if free < needed:
            raise BuildError(
                f"{self.layout.root}: not enough disk space: {free / 1e6:.0f} MB are free and the "
                f"{self.plan.tier} tier needs about {needed / 1e6:.0f} MB more; free some space, "
                "then run the same command again"
            )

    def run(self, item: Item) -> None:
        task, shard, context = item.task, item.shard, self.context
        spec, codec = context.codec_spec(item), context.codec(task, item.codec)
        ids = context.ids(task, shard)
        inputs: list[Any] = []
        if spec.facts.on == "inputs":
            source = context.models.source(task)
            inputs = [source.sample(source_id).inputs for source_id in ids]
        folder = self.layout.work / "streams" / item.result_path(self.layout).stem
        cache = StreamCache(folder, self.streams(item), ids)

        def extract(decoded: Any) -> np.ndarray:
            return context.models.features(task, decoded, "the feature of a decoded input")

        rehearse = shard == 0 and not spec.registered.builtin
        originals = context.originals(task, shard)
        self.write(item, code(spec, codec, ids, originals, inputs, extract, cache, rehearse))
        cache.remove()

    def write(self, item: Item, coded: Coded) -> None:
        """Write a shard's bitstreams and decoded arrays, and last its label rows.

        Args:
            item: Item of the shard and codec.
            coded: Coded features of the shard; an import may lack their bitstreams.
        """
        task, shard, context = item.task, item.shard, self.context
        entry, spec, scorer = context.entry(task), context.codec_spec(item), self.scorer(item)
        streams = {
            f"{source_id}/{level}": np.frombuffer(stream, np.uint8)
            for source_id, levels in zip(context.ids(task, shard), coded.bitstreams, strict=True)
            for level, stream in enumerate(levels)
        }
        if streams:
            write_tensors(self.streams(item), streams)
        rows: list[dict[str, Any]] = []
        array, columns = self.layout.compressed(task, item.codec), context.columns(task, shard)
        has_array, name = (array / "zarr.json").exists(), self.layout.relative(array)
        members = zip(self.plan.members(task, shard), context.originals(task, shard), strict=True)
        for index, (position, original) in enumerate(members):
            stored = coded.stored[index]
            if has_array:
                write_codes(array, position, np.stack(stored))
            values = label_values(original, stored, spec.quantizer, partial(scorer, index))
            about = columns[index] | {"array": name, "index": position}
            rows += label_rows(entry, entry.codecs[item.codec], about, coded.bits[index], values)
        table = pa.Table.from_pylist(rows, schema=label_schema(2))
        write_table(item.result_path(self.layout), table)
