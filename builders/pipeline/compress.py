"""The stage that compresses one shard of sources with one codec at all levels and labels it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cfqa_data.builders.pipeline.coding import Coded, StreamCache, code
from cfqa_data.builders.pipeline.label import Scorer, label_rows, label_values, score
from cfqa_data.builders.pipeline.plan import Item
from cfqa_data.builders.pipeline.select import BuildStage
from cfqa_data.errors import BuildError
from cfqa_data.format.codes import shard_name, write_codes
from cfqa_data.format.invariants import folds_of
from cfqa_data.format.layout import Layout
from cfqa_data.format.schema import label_schema
from cfqa_data.format.storage import write_table, write_tensors

__all__ = ["Compress", "stream_cache"]

LEAST_SHARE = {"full": 1 / 10, "light": 1 / 40}
"""Least share of the float32 size of all features that a finished folder is expected to take."""


class Compress(BuildStage):
    """Compresses a shard of sources with a codec, and labels the result."""

    name, unit = "compress", "features"

    def items(self) -> list[Item]:
        tasks = self.plan.recipe.tasks
        items = [
            item
            for task, task_spec in tasks.items()
            for c in task_spec.codecs
            for item in self.per_shard(task, c)
        ]
        return sorted(items, key=self._seconds, reverse=True)

    def _seconds(self, item: Item) -> float:
        """Return an estimate of an item's time, by which items are sorted."""
        try:
            points = self.context.entry(item.task).points
        except OSError:  # before the sizes are known
            points = len(self.plan.recipe.tasks[item.task].blocks)
        return (
            float(self.context.codec_spec(item).registered.target.cost) * points * self.cost(item)
        )

    def cost(self, item: Item) -> int:
        assert item.shard is not None
        return len(self.plan.members(item.task, item.shard)) * len(
            self.context.codec_spec(item).levels
        )

    def outputs(self, item: Item) -> tuple[Path, ...]:
        assert item.shard is not None
        task, codec, layout = item.task, item.codec, self.layout
        streams = layout.bitstreams(task, codec, item.shard, self.plan.shards(task))
        members = self.plan.members(task, item.shard)
        arrays = [layout.compressed(task, codec) / shard_name(n) for n in members]
        return (streams, *arrays, item.result_path(layout))

    def check(self, todo: Sequence[Item]) -> None:
        """Check the free disk space against an estimate from the size of the originals."""
        needed = 0.0
        for item in todo:
            assert item.shard is not None
            originals = self.context.originals_path(item.task, item.shard).stat().st_size
            levels = len(self.context.codec_spec(item).levels)
            needed += originals * levels * LEAST_SHARE[self.plan.tier]
        free = shutil.disk_usage(self.layout.root).free
        if free < needed:
            raise BuildError(
                f"{self.layout.root}: no space: {free / 1e6:.0f} MB are free and the "
                f"{self.plan.tier} tier needs about {needed / 1e6:.0f} MB more; make room and run "
                "the same command again"
            )

    def run(self, item: Item) -> None:
        task, shard, context = item.task, item.shard, self.context
        assert shard is not None
        spec, codec = context.codec_spec(item), context.codec(task, item.codec)
        ids = context.ids(task, shard)
        inputs: list[Any] = []
        if spec.facts.on == "inputs":
            source = context.models.source(task)
            inputs = [source.sample(source_id).inputs for source_id in ids]
        existing = stream_cache(self.layout, item)
        # A repair fills the cache from the dataset, for fast codecs too.
        cache = existing if codec.slow or existing.folder.is_dir() else None

        def extract(decoded: Any) -> np.ndarray:
            return context.models.features(task, decoded, "the feature of a decoded input")

        truths = context.truths(task, shard)

        def scorer(index: int) -> Scorer:
            scores, what = context.models.task(task), f"{ids[index]} by {item.codec}"
            return lambda decoded, _: score(scores, decoded, truths[index], what)

        rehearse = shard == 0 and not spec.registered.builtin
        originals = context.originals(task, shard)
        coded = code(spec, codec, originals, inputs, extract, cache, ids, rehearse)
        self.write(item, coded, scorer)
        if cache:
            cache.remove()

    def write(self, item: Item, coded: Coded, scorer: Callable[[int], Scorer]) -> None:
        """Write a shard's bitstreams and what they decode to, and last its label rows.

        Args:
            item: of the shard.
            coded: bitstreams, if there are any, bits, and codes or values.
            scorer: gives for a source of the shard what scores its features.
        """
        import pyarrow as pa

        task, shard, context = item.task, item.shard, self.context
        assert shard is not None
        ids, entry, spec = context.ids(task, shard), context.entry(task), context.codec_spec(item)
        streams = {
            f"{source_id}/{level}": np.frombuffer(stream, np.uint8)
            for source_id, levels in zip(ids, coded.bitstreams, strict=True)
            for level, stream in enumerate(levels)
        }
        if streams:
            write_tensors(self.layout.bitstreams(task, item.codec, shard, entry.shards), streams)
        rows: list[dict[str, Any]] = []
        folds, references = folds_of(entry), context.references(task, shard)
        array = self.layout.compressed(task, item.codec)
        has_array = (array / "zarr.json").exists()
        for index, original in enumerate(context.originals(task, shard)):
            stored, position = coded.stored[index], self.plan.members(task, shard)[index]
            if has_array:
                write_codes(array, position, np.stack(stored))
            values = label_values(
                context.baselines, original, stored, spec.quantizer, scorer(index)
            )
            rows += label_rows(
                context,
                item,
                entry,
                position,
                int(folds[position]),
                (references["score"][index], references["loss"][index]),
                original.shape[2],
                coded.bits[index],
                values,
            )
        write_table(
            item.result_path(self.layout), pa.Table.from_pylist(rows, schema=label_schema(2))
        )


def stream_cache(layout: Layout, item: Item) -> StreamCache:
    """Return the cache of an item's bitstreams."""
    return StreamCache(layout.work / "streams" / item.result_path(layout).stem)
